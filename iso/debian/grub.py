"""Makes GRUB for a disk without mounting or installing anything (room: image; called by `iso/debian/disk.py`)."""

from __future__ import annotations

import struct
from pathlib import Path

from iso import packages
from iso.debian.gpt import SECTOR
from iso.failure import BuildError
from iso.programs import run
from iso.progress import Progress

_PACKAGES = ("grub-pc-bin", "grub-efi-amd64-bin")
_FIXED = {"SOURCE_DATE_EPOCH": "1704067200", "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
_FAT_SERIAL = "64656269"

_MODULES = ("part_gpt", "ext2", "normal", "linux", "minicmd", "echo", "test", "search_label")

# Where boot.img is told which sector to load and which drive to load it from.
# Source: GRUB 2.06, include/grub/i386/pc/boot.h: GRUB_BOOT_MACHINE_KERNEL_SECTOR, _DRIVE_CHECK; util/setup.c.
_KERNEL_SECTOR_AT = 0x5C
_DRIVE_CHECK_AT = 0x66
_NOPS = b"\x90\x90"
_BOOT_CODE_BYTES = 440


def fetch(cache: Path, progress: Progress) -> Path:
    """Return a directory with the modules of GRUB for both firmwares, from the distribution's own packages.

    Raises:
        BuildError: apt does not give them.
    """
    exact = packages.find(_PACKAGES)
    version = exact[_PACKAGES[0]].version.replace(":", "_")
    unpacked = cache / f"grub-{version}"
    if not unpacked.is_dir():
        packages.fetch(exact, cache / "packages", progress)
        partial = cache / f"grub-{version}.part"
        for package in exact.values():
            packages.unpack(cache / "packages" / package.file_name, partial)
        partial.replace(unpacked)
    return unpacked / "usr" / "lib" / "grub"


def make_bios(modules: Path, partition: int, first: int, room_bytes: int, scratch: Path) -> tuple[bytes, bytes]:
    """Return the boot loader of the first sector (440 bytes), and what lies in the BIOS boot partition.

    Args:
        modules: What `fetch` gave.
        partition: The number of the partition that holds `/boot/grub`.
        first: The first sector of the BIOS boot partition.
        room_bytes: Its size.
    """
    core_file = scratch / "core.img"
    _mkimage(modules / "i386-pc", "i386-pc", partition, core_file, "biosdisk")
    core = bytearray(core_file.read_bytes())
    if len(core) > room_bytes:
        raise BuildError(f"GRUB has {len(core)} bytes, more than the {room_bytes} of its partition")
    # The first sector of the core holds the list of blocks of the rest, its last entry at the end: 64 bits of sector.
    # Source: GRUB 2.06, include/grub/i386/pc/boot.h, struct grub_pc_bios_boot_blocklist; util/mkimage.c.
    struct.pack_into("<Q", core, SECTOR - 12, first + 1)
    boot = bytearray((modules / "i386-pc" / "boot.img").read_bytes()[:_BOOT_CODE_BYTES])
    struct.pack_into("<Q", boot, _KERNEL_SECTOR_AT, first)
    # A hard disk's BIOS tells the drive it booted from; the check is for floppy disks and refuses some of them.
    boot[_DRIVE_CHECK_AT : _DRIVE_CHECK_AT + 2] = _NOPS
    return bytes(boot), bytes(core)


def make_esp(modules: Path, partition: int, sectors: int, scratch: Path) -> bytes:
    """Return a FAT file system of that many sectors with GRUB where UEFI firmware looks for it."""
    program, image = scratch / "bootx64.efi", scratch / "esp.img"
    _mkimage(modules / "x86_64-efi", "x86_64-efi", partition, program)
    image.write_bytes(bytes(sectors * SECTOR))
    size = ["-T", str(sectors), "-h", "16", "-s", "63"]
    run(["mformat", "-i", str(image), *size, "-N", _FAT_SERIAL, "-v", "ESP", "::"], environment=_FIXED)
    run(["mmd", "-i", str(image), "::/EFI", "::/EFI/BOOT"], environment=_FIXED)
    run(["mcopy", "-i", str(image), str(program), "::/EFI/BOOT/BOOTX64.EFI"], environment=_FIXED)
    return image.read_bytes()


def _mkimage(modules: Path, target: str, partition: int, output: Path, *more: str) -> None:
    # A prefix without a disk's name means the disk GRUB itself was loaded from, whichever number that has.
    prefix = f"(,gpt{partition})/boot/grub"
    run(["grub-mkimage", "-d", str(modules), "-O", target, "-p", prefix, "-o", str(output), *_MODULES, *more])
