"""Makes what a VM needs on disk before it starts (floor 3); every preparation of a VM uses it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from control.errors import HostError, ImageError
from control.paths import IMAGE, IS_CHECKOUT, InstanceFiles
from control.process.run import run
from control.spec.vm_spec import DiskFormat
from control.units import MIB, format_size, parse_size_bytes

DATA_DISK_SIZE = "8G"
DATA_DISK_SERIAL = "unhinged-data"
"""The guest formats a blank disk with this serial number, and no other (docs/architecture.md)."""

QEMU_IMG_TIMEOUT_S = 30.0
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""Debian package ovmf 2022.11."""


HOW_TO_BUILD = (
    {"builtin": "make image", "debian": "make image-debian"}
    if IS_CHECKOUT
    else {name: f"unhinged img build {name}" for name in ("builtin", "debian")}
)
"""By the name of one of our own images."""


def build_command_line(append: str) -> str:
    """The command line for a kernel of the user's: with our console, unless they name one."""
    return append if "console=" in append else f"console=ttyS0 {append}".strip()


def read_manifest() -> dict[str, Any]:
    """Read what the built-in image says of itself. Raises ImageError when it is not built, or damaged."""
    path = get_builtin_file("image.json")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise ImageError(f"{path} is damaged: {error}", hint=f"remove it, and: {HOW_TO_BUILD['builtin']}") from error
    return manifest


def get_builtin_file(name: str) -> Path:
    """Return a file of the built-in image. Raises ImageError when it is not built."""
    path = IMAGE / name
    if not path.is_file():
        raise ImageError(f"the built-in guest image is not built: {path} is missing", hint=HOW_TO_BUILD["builtin"])
    return path


async def make_data_disk(path: Path) -> None:
    """Make a fresh, sparse data disk. Raises HostError, as `make_disk` does."""
    await make_disk(path, parse_size_bytes(DATA_DISK_SIZE, key="DATA_DISK_SIZE"))


async def make_disk(
    path: Path,
    size_bytes: int | None,
    *,
    form: DiskFormat = "qcow2",
    base: Path | None = None,
    base_format: DiskFormat | None = None,
    qemu_img: str = "qemu-img",
) -> None:
    """Make a fresh, sparse disk; a half-made one never gets the final name.

    Args:
        size_bytes: None for that of `base`.
        base: What it shows where it has not been written to; it is not changed.

    Raises:
        HostError: qemu-img is missing, or refused (its own words); there is no new file.
    """
    partial = path.with_name(f"{path.name}.partial")
    backing = ["-b", str(base), "-F", str(base_format)] if base is not None else []
    size = [str(size_bytes)] if size_bytes is not None else []
    argv = [qemu_img, "create", "-q", "-f", form, *backing, str(partial), *size]
    made = await run(argv, timeout_s=QEMU_IMG_TIMEOUT_S)
    if made.return_code != 0:
        partial.unlink(missing_ok=True)
        words = made.stderr.decode("utf-8", "replace").strip()
        raise HostError(f"the disk {path} cannot be made: {words}", hint="make room on that disk")
    partial.replace(path)


async def make_overlay(path: Path, base: Path, base_format: DiskFormat, *, qemu_img: str = "qemu-img") -> None:
    """See to it that `path` is a disk over `base`, which takes what the guest writes; one that is there is kept.

    Raises:
        ImageError: The one that is there lies over another image.
        HostError: It cannot be made or looked at.
    """
    if not path.exists():
        await make_disk(path, None, base=base, base_format=base_format, qemu_img=qemu_img)
        return
    looked = await run([qemu_img, "info", "-U", "--output=json", str(path)], timeout_s=QEMU_IMG_TIMEOUT_S)
    try:
        below = json.loads(looked.stdout)["backing-filename"]
    except (ValueError, KeyError, TypeError):
        below = ""
    if below != str(base):
        raise ImageError(
            f"{path} holds what the guest wrote over {below or 'another image'}, not over {base}",
            hint="keep the image it was made of, or remove that file to begin anew",
        )


async def list_chain(path: Path, *, qemu_img: str = "qemu-img") -> list[Path]:
    """A disk and the images it lies over, from the top to the bottom. Raises HostError with qemu-img's words."""
    argv = [qemu_img, "info", "-U", "--backing-chain", "--output=json", str(path)]
    looked = await run(argv, timeout_s=QEMU_IMG_TIMEOUT_S)
    try:
        return [Path(each["filename"]) for each in json.loads(looked.stdout)]
    except (ValueError, KeyError, TypeError) as error:
        words = looked.stderr.decode("utf-8", "replace").strip()
        raise HostError(f"what {path} lies over is not known: {words}", hint="is an image below it gone?") from error


def takes_attributes(directory: Path) -> bool:
    """Whether the file system keeps user attributes, in which 9p then stores the guest's owners and modes."""
    try:
        os.setxattr(directory, "user.unhinged.test", b"")
        os.removexattr(directory, "user.unhinged.test")
    except OSError:
        return False
    return True


async def copy_firmware_variables(files: InstanceFiles) -> None:
    """Give the instance a store for its UEFI firmware, unless it has one. Raises HostError without OVMF."""
    if not (OVMF_CODE.exists() and OVMF_VARIABLES.exists()):
        raise HostError("the UEFI firmware OVMF is not installed", hint="apt-get install ovmf")
    if not files.firmware_variables.exists():
        shutil.copyfile(OVMF_VARIABLES, files.firmware_variables)


def check_memory(memory_bytes: int) -> None:
    """See to it that this host has so much memory at all. Raises HostError."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory_bytes > total:
        raise HostError(
            f"the guest is to have {format_size(memory_bytes)} of memory, this host has {format_size(total)}",
            hint=f"ask for less: MEMORY={max(256, total // MIB // 4)}M",
        )
