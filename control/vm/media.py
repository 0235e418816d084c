"""Looks at the files a user named before QEMU does (floor 3), so that a wrong one gets a sentence of its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal

from control.errors import ImageError
from control.spec.vm_spec import DiskFormat

ISO_MAGIC, ISO_MAGIC_OFFSET = b"CD001", 32769
"""ECMA-119, section 8.1.2: the standard identifier of the first volume descriptor (sector 16)."""

QCOW2_MAGIC = b"QFI\xfb"
FOREIGN_DISKS = {b"KDMV": "vmdk", b"# Disk DescriptorFile"[:4]: "vmdk", b"<<< ": "vdi", b"vhdx": "vhdx", b"cone": "vpc"}
"""First bytes of the formats qemu-img can convert (QEMU sources, block/*.c)."""

KERNEL_MAGIC, KERNEL_MAGIC_OFFSET = b"HdrS", 0x202
"""Linux boot protocol (Documentation/arch/x86/boot.rst)."""

ELF_MAGIC = b"\x7fELF"
HEAD_BYTES = 33 * 1024


def recognize(path: Path) -> Literal["iso", "kernel", "disk"]:
    """Say what a file is by its first bytes; what is nothing else is a disk. Raises ImageError when it cannot be read.

    An ISO made for USB sticks begins as a disk does, and is an ISO.
    """
    head = _read_head(path, "IMAGE")
    if head[ISO_MAGIC_OFFSET : ISO_MAGIC_OFFSET + 5] == ISO_MAGIC:
        return "iso"
    is_linux = head[KERNEL_MAGIC_OFFSET : KERNEL_MAGIC_OFFSET + 4] == KERNEL_MAGIC
    return "kernel" if is_linux or head.startswith(ELF_MAGIC) else "disk"


def check_iso(path: Path) -> Path:
    """Return `path` when it is an ISO image. Raises ImageError."""
    head = _read_head(path, "ISO")
    if head[ISO_MAGIC_OFFSET : ISO_MAGIC_OFFSET + 5] != ISO_MAGIC:
        raise ImageError(f"{path} is not an ISO image", hint="a disk image is booted with DISK=, a kernel with KERNEL=")
    return path


def check_kernel(path: Path) -> Path:
    """Return `path` when it is a bzImage or an ELF kernel. Raises ImageError."""
    head = _read_head(path, "KERNEL")
    is_linux = head[KERNEL_MAGIC_OFFSET : KERNEL_MAGIC_OFFSET + 4] == KERNEL_MAGIC
    if not (is_linux or head.startswith(ELF_MAGIC)):
        raise ImageError(
            f"{path} is not a kernel QEMU can start", hint="KERNEL= takes a bzImage (vmlinuz) or a PVH vmlinux"
        )
    return path


def check_initrd(path: Path) -> Path:
    """Return `path` when it can be read and is not empty; what is in it is the kernel's business. Raises ImageError."""
    _read_head(path, "INITRD")
    return path


def check_disk(path: Path, *, is_written: bool = True, key: str = "DISK") -> DiskFormat:
    """Return the format of the disk image at `path`.

    Args:
        is_written: The VM may write to it.
        key: What the user named it with.

    Raises:
        ImageError: It is missing, unreadable, read-only, empty, or of a format QEMU should not write.
    """
    head = _read_head(path, key)
    if is_written and not os.access(path, os.W_OK):
        raise ImageError(f"{path} cannot be written", hint="a guest writes to its disk: chmod u+w, or make a copy")
    if head.startswith(QCOW2_MAGIC):
        return "qcow2"
    foreign = FOREIGN_DISKS.get(head[:4])
    if foreign is not None:
        raise ImageError(
            f"{path} is a {foreign} image", hint=f"convert it: qemu-img convert -O qcow2 {path.name} disk.qcow2"
        )
    if path.suffix.lower() == ".qcow2":
        raise ImageError(f"{path} is not a qcow2 image, whatever its name says", hint="qemu-img info tells what it is")
    if head[ISO_MAGIC_OFFSET : ISO_MAGIC_OFFSET + 5] == ISO_MAGIC and path.suffix.lower() == ".iso":
        raise ImageError(f"{path} is an ISO image", hint="boot it with ISO=")
    return "raw"


def check_share(path: Path, *, is_written: bool = True) -> Path:
    """Return `path` when it is a directory the VM can use. Raises ImageError."""
    _check_name(path, "SHARE")
    try:
        is_directory = path.is_dir()
    except OSError as error:
        raise ImageError(
            f"{path} cannot be reached: {error.strerror}", hint="look at SHARE=, and its rights"
        ) from error
    if not is_directory:
        raise ImageError(f"{path} is not a directory", hint="SHARE= takes a directory; make it first")
    if not os.access(path, os.R_OK | os.X_OK | (os.W_OK if is_written else 0)):
        what = "read and written" if is_written else "read"
        raise ImageError(f"{path} cannot be {what}", hint="look at the rights there, or share another directory")
    return path


def _check_name(path: Path, key: str) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        # QEMU is given file names in JSON, which is UTF-8.
        raise ImageError(
            f"{path!a} is not a name in UTF-8", hint=f"rename it, or a folder above it, for {key}="
        ) from error


def _read_head(path: Path, key: str) -> bytes:
    """Read the first bytes of a file or block device. Raises ImageError, saying what is wrong with it."""
    _check_name(path, key)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path} is a directory", hint=f"{key}= takes a file")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(f"{path} is not a file", hint=f"{key}= takes a file or a block device")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", hint=f"look at {key}=") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}", hint=f"look at {key}=, and its rights") from error
    if not head:
        raise ImageError(f"{path} is empty", hint=f"look at {key}=; was a download cut short?")
    return head
