"""Writes a partition table (room: image; called by `iso/debian/disk.py`).

Source: UEFI specification 2.10, chapter 5, "GUID Partition Table (GPT) Disk Layout".
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

SECTOR = 512
_ENTRIES = 128
_ENTRY_BYTES = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_BYTES // SECTOR

# Source: UEFI 2.10, table 5.7; systemd, "Discoverable Partitions Specification"; GRUB manual, "BIOS installation".
BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


@dataclass(frozen=True)
class Partition:
    """One partition.

    Attributes:
        kind: What it is for: one of the constants above.
        first, sectors: Where it begins and how long it is.
        name: At most 36 characters.
    """

    kind: uuid.UUID
    first: int
    sectors: int
    name: str


def build_tables(disk: uuid.UUID, sectors: int, partitions: Sequence[Partition]) -> dict[int, bytes]:
    """Return what has to be written where: for each first sector the bytes from there on.

    The first sector holds the protective MBR; its first 440 bytes are a boot loader's, and zero here.

    Args:
        disk: The disk's own identity; those of its partitions are derived from it.
        sectors: The size of the disk.

    Raises:
        ValueError: A partition does not fit, or two overlap.
    """
    first_usable, last_usable = 2 + _TABLE_SECTORS, sectors - 2 - _TABLE_SECTORS
    end = first_usable
    for partition in sorted(partitions, key=lambda one: one.first):
        if partition.first < end or partition.first + partition.sectors - 1 > last_usable:
            raise ValueError(f"the partition {partition.name} does not fit")
        end = partition.first + partition.sectors
    entries = b"".join(_entry(disk, number, partition) for number, partition in enumerate(partitions, 1))
    entries = entries.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")

    def header(own: int, other: int, table: int) -> bytes:
        fields = (b"EFI PART", 0x10000, 92, 0, 0, own, other, first_usable, last_usable, disk.bytes_le, table)
        data = struct.pack("<8sIIIIQQQQ16sQIII", *fields, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries))
        data = data[:16] + struct.pack("<I", zlib.crc32(data)) + data[20:]
        return data.ljust(SECTOR, b"\0")

    last = sectors - 1
    return {
        0: _protective_mbr(sectors),
        1: header(1, last, 2) + entries,
        last - _TABLE_SECTORS: entries + header(last, 1, last - _TABLE_SECTORS),
    }


def _entry(disk: uuid.UUID, number: int, partition: Partition) -> bytes:
    identity = uuid.uuid5(disk, str(number))
    last = partition.first + partition.sectors - 1
    name = partition.name.encode("utf-16-le")
    return struct.pack(
        "<16s16sQQQ72s", partition.kind.bytes_le, identity.bytes_le, partition.first, last, 0, name.ljust(72, b"\0")
    )


def _protective_mbr(sectors: int) -> bytes:
    # One partition of type EE over the whole disk, from the second sector on.
    covering = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + covering + bytes(48) + b"\x55\xaa"
