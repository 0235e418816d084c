"""What an image was made from and what it holds: `image.json` (room: image; called by `iso/build.py`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iso.packages import Package

NAME = "image.json"

# Part of the hash: raised when the same inputs give another image, because a tool is called differently for example.
BUILDER_VERSION = 1

# What makes packages and disk images for other guests; a change there leaves the built-in guest as it is.
_OTHER_TARGETS = ("iso/agent/", "iso/debian/", "iso/publish.py")

# Chosen by measurement; docs/image.md has the figures and says what each one is for. The last console is /dev/console.
KERNEL_COMMAND_LINE = (
    "console=tty1 console=ttyS0,115200 loglevel=6 random.trust_cpu=on cryptomgr.notests no_timer_check init_on_alloc=0 "
    "lsm=landlock,lockdown,yama"
)


def hash_inputs(directories: Iterable[Path], packages: Mapping[str, Package], options: Mapping[str, str]) -> str:
    """Sum up everything an image depends on: our sources, the exact packages, the builder's version and options."""
    total = hashlib.sha256()
    _add(total, json.dumps([BUILDER_VERSION, KERNEL_COMMAND_LINE, sorted(options.items())]).encode())
    for name, package in sorted(packages.items()):
        _add(total, f"{name} {package.version} {package.sha256}".encode())
    for directory in directories:
        for path in _sources(directory):
            executable = "x" if path.stat().st_mode & 0o100 else "-"
            _add(total, f"{path.relative_to(directory.parent).as_posix()} {executable}".encode())
            _add(total, path.read_bytes())
    return total.hexdigest()


def _sources(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not path.relative_to(directory.parent).as_posix().startswith(_OTHER_TARGETS)
    )


def _add(total: Any, data: bytes) -> None:
    # Each part with its length, so that two different lists of parts never sum up to the same.
    total.update(len(data).to_bytes(8, "little") + data)


def describe(
    *,
    input_hash: str,
    title: str,
    kernel: str,
    python: str,
    packages: Mapping[str, Package],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """Return the manifest as a JSON value; the same image always has the same manifest."""
    return {
        "format": 1,
        "input_hash": input_hash,
        "distribution": title,
        "kernel_version": kernel,
        "python": python,
        "kernel_command_line": KERNEL_COMMAND_LINE,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        },
        "packages": {name: asdict(package) for name, package in sorted(packages.items())},
    }


def read(directory: Path) -> dict[str, Any] | None:
    """Return the manifest of the image in `directory`, or None when there is no image or not all of it.

    Only sizes are compared with the manifest: reading 100 MB back would cost more than it tells.
    """
    try:
        manifest: dict[str, Any] = json.loads((directory / NAME).read_text(encoding="utf-8"))
        whole = all((directory / name).stat().st_size == about["bytes"] for name, about in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def as_text(manifest: Mapping[str, Any]) -> str:
    """Write a manifest as the text of its file."""
    return json.dumps(manifest, indent=1) + "\n"
