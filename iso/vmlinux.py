"""Takes the kernel proper out of the bzImage a distribution ships (room: image; called by `iso/build.py`).

QEMU enters such an ELF file through its PVH note, and the guest does not have to decompress its own kernel, which is
the largest single saving of boot time under TCG.
"""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib

from iso.failure import BuildError
from iso.programs import run

_ELF = b"\x7fELF"
_XEN_ELFNOTE_PHYS32_ENTRY = 18  # Source: Linux, include/xen/interface/elfnote.h
_PT_NOTE = 4


def extract(bz_image: bytes) -> bytes:
    """Return the uncompressed ELF kernel inside `bz_image`.

    Raises:
        BuildError: It is not a bzImage, is cut short, or is compressed in a way not known here.

    Source: Linux, Documentation/arch/x86/boot.rst, fields setup_sects (0x1F1), HdrS (0x202), payload_offset (0x248) and
    payload_length (0x24C).
    """
    if len(bz_image) < 0x250 or bz_image[0x202:0x206] != b"HdrS":
        raise BuildError("the kernel of the distribution is not a bzImage")
    setup_sectors = bz_image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bz_image, 0x248)
    begin = (setup_sectors + 1) * 512 + offset
    payload = bz_image[begin : begin + length]
    if len(payload) < max(length, 8):
        raise BuildError("the kernel of the distribution is cut short")
    kernel = _decompress(payload)
    if not kernel.startswith(_ELF):
        raise BuildError("the payload of the distribution's kernel is not an ELF file")
    return kernel


def _decompress(payload: bytes) -> bytes:
    # The last four bytes are the uncompressed length, which the kernel's build appends to every format.
    try:
        if payload.startswith(b"\x1f\x8b"):
            return zlib.decompressobj(wbits=31).decompress(payload)
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    except (zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise BuildError(f"the payload of the distribution's kernel is damaged: {error}") from error
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return run(["zstd", "-dcq"], stdin=payload[:-4])
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return run(["lz4", "-dcq"], stdin=payload[:-4])
    if payload.startswith(_ELF):
        return payload
    raise BuildError(f"the distribution's kernel is compressed in an unknown way (it begins with {payload[:6].hex()})")


def has_pvh_entry(kernel: bytes) -> bool:
    """Tell whether QEMU can enter this ELF kernel directly (it carries the PVH note).

    Source: Xen, docs/misc/pvh.pandoc; ELF64 program header layout of the System V ABI.
    """
    if not kernel.startswith(_ELF):
        return False
    table, entry_size, count = struct.unpack_from("<Q", kernel, 32)[0], *struct.unpack_from("<HH", kernel, 54)
    for index in range(count):
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", kernel, table + index * entry_size)
        if kind == _PT_NOTE and _note_has_entry(kernel[offset : offset + size]):
            return True
    return False


def _note_has_entry(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size].rstrip(b"\0")
        if name == b"Xen" and kind == _XEN_ELFNOTE_PHYS32_ENTRY:
            return True
        at += 12 + (name_size + 3) // 4 * 4 + (data_size + 3) // 4 * 4
    return False
