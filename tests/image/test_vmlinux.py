"""Taking the kernel out of a bzImage, with small images made here in each compression distributions use."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess

import pytest

from iso import vmlinux
from iso.failure import BuildError


def build_elf(*, with_entry: bool) -> bytes:
    """A 64-bit ELF file of one note segment, with the PVH entry or with another note."""
    kind = 18 if with_entry else 1
    note = struct.pack("<III", 4, 8, kind) + b"Xen\0" + struct.pack("<Q", 0x1000000)
    other = struct.pack("<III", 6, 3, 18) + b"Other\0\0\0" + b"abc\0"
    notes = other + note
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    )
    segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), len(notes), 4)
    return header + segment + notes + b"kernel text " * 500


def build_bz_image(payload: bytes) -> bytes:
    """A bzImage around `payload`, by the boot protocol's description."""
    image = bytearray(5 * 512 + 64)
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 64, len(payload))
    return bytes(image) + payload + b"what follows the payload"


def run_tool(*argv: str, data: bytes) -> bytes:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed: apt-get install {argv[0]}")
    return subprocess.run(argv, input=data, capture_output=True, check=True).stdout


def compress(form: str, data: bytes) -> bytes:
    # What the kernel's build does: the compressed data, then the length of the original.
    length = struct.pack("<I", len(data))
    match form:
        case "gzip":
            return gzip.compress(data)
        case "xz":
            return lzma.compress(data, check=lzma.CHECK_CRC32) + length
        case "zstd":
            return run_tool("zstd", "-c", "-q", data=data) + length
        case "lz4":
            return run_tool("lz4", "-l", "-c", "-q", data=data) + length
        case _:
            return data


@pytest.mark.parametrize("form", ["gzip", "xz", "zstd", "lz4", "none"])
def test_the_kernel_comes_out_of_each_compression(form: str) -> None:
    kernel = build_elf(with_entry=True)
    assert vmlinux.extract(build_bz_image(compress(form, kernel))) == kernel


def test_a_file_that_is_no_bz_image_is_refused() -> None:
    with pytest.raises(BuildError, match="not a bzImage"):
        vmlinux.extract(bytes(4096))


def test_a_kernel_that_is_cut_short_is_refused() -> None:
    image = build_bz_image(compress("xz", build_elf(with_entry=True)))
    with pytest.raises(BuildError, match="cut short"):
        vmlinux.extract(image[:-200])


def test_a_damaged_payload_is_refused() -> None:
    payload = bytearray(compress("xz", build_elf(with_entry=True)))
    payload[len(payload) // 2] ^= 0xFF
    with pytest.raises(BuildError, match=r"damaged|not an ELF"):
        vmlinux.extract(build_bz_image(bytes(payload)))


def test_an_unknown_compression_is_named_by_its_first_bytes() -> None:
    with pytest.raises(BuildError, match="deadbeef"):
        vmlinux.extract(build_bz_image(b"\xde\xad\xbe\xef" + bytes(60)))


def test_a_payload_that_is_no_elf_file_is_refused() -> None:
    with pytest.raises(BuildError, match="not an ELF"):
        vmlinux.extract(build_bz_image(gzip.compress(b"text" * 100)))


@pytest.mark.parametrize("with_entry", [True, False])
def test_the_pvh_entry_is_found_among_other_notes(with_entry: bool) -> None:
    assert vmlinux.has_pvh_entry(build_elf(with_entry=with_entry)) is with_entry


def test_something_else_than_elf_has_no_pvh_entry() -> None:
    assert not vmlinux.has_pvh_entry(b"MZ" + bytes(100))
