"""Disks as qemu-img makes, reads and grows them (floor 2); the builder `raw` is one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from control.errors import ImageBuildError
from control.image.workshop import Workshop
from control.spec.image import ImageDeclaration
from control.units import format_size, parse_size_bytes

CREATE_TIMEOUT_S = 60.0
CONVERT_TIMEOUT_S = 3600.0
"""Gigabytes on a slow disk; it is no wait for an event."""


def make_raw(image: ImageDeclaration, shop: Workshop, scratch: Path) -> Path:
    """Make an empty disk of `img_size`, which takes no room until it is written to."""
    made = scratch / image.path.name
    size = str(read_size_bytes(image.img_size))
    shop.run_well(
        [shop.qemu_img, "create", "-q", "-f", "raw", str(made), size], "make the disk", timeout_s=CREATE_TIMEOUT_S
    )
    return made


def read_size_bytes(text: str) -> int:
    """An image's size; without a unit it counts bytes, as qemu-img's does."""
    return int(text) if text.isdecimal() else parse_size_bytes(text, key="img_size")


def copy_disk(source: Path, target: Path, shop: Workshop, *, is_trusted: bool) -> None:
    """Make `target` a qcow2 of its own that holds what `source` does.

    Args:
        is_trusted: The user made it: it may lie over other files of this host.

    Raises:
        ImageBuildError: It is no disk image, or names other files and is not trusted.
    """
    about = look_at(source, shop)
    data_file = about.get("format-specific", {}).get("data", {}).get("data-file")
    if not is_trusted and (about["format"] not in ("qcow2", "raw") or about.get("backing-filename") or data_file):
        raise ImageBuildError(
            f"what was downloaded is a {about['format']} that may name files of this host, and is not opened",
            hint="use a qcow2 or raw image without a backing file",
        )
    argv = [shop.qemu_img, "convert", "-f", about["format"], "-O", "qcow2", str(source), str(target)]
    shop.run_well(argv, "copy the base image", timeout_s=CONVERT_TIMEOUT_S, hint="make room, or name another image")


def grow_disk(disk: Path, size: str, shop: Workshop) -> None:
    """Give a qcow2 the size an image is to have. Raises ImageBuildError when it is larger already."""
    wanted, present = read_size_bytes(size), look_at(disk, shop)["virtual-size"]
    if wanted < present:
        raise ImageBuildError(
            f"img_size is {format_size(wanted)}, and what it is made from has {format_size(present)}",
            hint=f'ask for no less: img_size = "{-(-present // 1024**3)}G"',
        )
    argv = [shop.qemu_img, "resize", "-q", "-f", "qcow2", str(disk), str(wanted)]
    shop.run_well(argv, "grow the disk", timeout_s=CREATE_TIMEOUT_S)


def look_at(disk: Path, shop: Workshop) -> dict[str, Any]:
    """What qemu-img says of a disk image. Raises ImageBuildError when it is none."""
    argv = [shop.qemu_img, "info", "-U", "--output=json", str(disk)]
    about: dict[str, Any] = json.loads(shop.run_well(argv, f"read {disk}", timeout_s=CREATE_TIMEOUT_S).stdout)
    return about
