"""What the name of an image means (floor 3): what a machine that is not declared anywhere boots. Blocking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from control.errors import ImageError
from control.paths import IMAGE, cache_directory
from control.process.run import run
from control.spec.vm_spec import Boot, DirectBoot, Disk, DiskBoot, IsoBoot
from control.units import MIB
from control.vm import media
from control.vm.provision import HOW_TO_BUILD, get_builtin_file, read_manifest

BUILTIN, DEBIAN = "builtin", "debian"

KERNEL_IN_TREE = Path("arch/x86/boot/bzImage")
"""What `make` in the sources of Linux leaves (Documentation/arch/x86/boot.rst)."""

SMALL_BYTES, LARGE_BYTES = 512 * MIB, 1024 * MIB
"""What a machine has when nothing else is said: the built-in guest runs from memory, another system has a disk."""


@dataclass(frozen=True)
class Bootable:
    """What an image comes to.

    Attributes:
        label: What it is called in names; letters, digits, `.`, `_` and `-`.
        disk: What it boots from, and never writes to.
        files: All that a machine's state depends on.
        memory_bytes: What it has when nothing else is said.
    """

    label: str
    boot: Boot
    files: tuple[Path, ...]
    disk: Disk | None = None
    memory_bytes: int = SMALL_BYTES


def find_bootable(image: str) -> Bootable:
    """Say what `image` is: `builtin`, `debian`, or a file: a kernel, a folder that one was built in, an ISO, a disk.

    A kernel gets the built-in guest's file system, and its own modules for that where they are found.

    Raises:
        ImageError: It is not there, not built, or nothing that can be booted.
        ImageBuildError: Its modules cannot be given to the guest.
    """
    if image == BUILTIN:
        return _with_builtin_system(BUILTIN, get_builtin_file("vmlinux"))
    if image == DEBIAN:
        path = IMAGE / "debian.qcow2"
        if not path.is_file():
            raise ImageError(f"the Debian image is not built: {path} is missing", hint=HOW_TO_BUILD["debian"])
        return _from_disk(DEBIAN, path)
    path = Path(image).absolute()
    label = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-")[:20] or "image"
    if path.is_dir():
        kernel = path / KERNEL_IN_TREE
        if not kernel.is_file():
            raise ImageError(f"{path} is a directory, and no kernel was built in it", hint=f"make it: {KERNEL_IN_TREE}")
        return _with_builtin_system(label, kernel)
    if not path.exists() and "/" not in image:
        raise ImageError(
            f"there is no image {image[:80]!r}", hint="builtin, debian, or a file: a kernel, an ISO, a qcow2"
        )
    what = media.recognize(path)
    if what == "iso":
        return Bootable(label, IsoBoot(path), (path,), memory_bytes=LARGE_BYTES)
    if what == "kernel":
        return _with_builtin_system(label, path)
    return _from_disk(label, path)


def _with_builtin_system(label: str, kernel: Path) -> Bootable:
    initrd, manifest = get_builtin_file("initrd"), read_manifest()
    media.check_kernel(kernel)
    if label != BUILTIN:
        initrd = _give_modules(kernel, initrd, manifest["kernel_version"])
    return Bootable(label, DirectBoot(kernel, initrd, manifest["kernel_command_line"]), (kernel, initrd))


def _give_modules(kernel: Path, initrd: Path, has: str) -> Path:
    """An initrd with the modules of a kernel; the one there is when it has them, or nobody has."""
    from control.image.kernels import find_modules, provide_initrd, read_release

    release = read_release(kernel)
    modules = find_modules(kernel, release) if release not in ("", has) else None
    if modules is None:
        return initrd
    return provide_initrd(release, modules, initrd, cache_directory() / "kernels", run)


def _from_disk(label: str, path: Path) -> Bootable:
    form = media.check_disk(path, is_written=False, key="IMAGE")
    return Bootable(label, DiskBoot(), (path,), Disk(path, form), memory_bytes=LARGE_BYTES)
