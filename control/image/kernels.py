"""Finds the modules of a kernel of the user's, and gives them to the built-in guest (floor 2). Blocking.

Source: Linux, Documentation/arch/x86/boot.rst (`kernel_version`), Makefile (`include/config/kernel.release`).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
from pathlib import Path

from control.image.ours import make_initrd
from control.streams import PipedRunner

KEPT = 8
"""Initrds, of some 30 MB; those used last stay."""

_MAGIC, _MAGIC_OFFSET = b"HdrS", 0x202
_VERSION_OFFSET, _VERSION_BASE = 0x20E, 0x200
_BANNER = re.compile(rb"Linux version (\d[!-~]*) \(")
_RELEASE = re.compile(r"\d[A-Za-z0-9.+~_-]{0,99}")
_IN_TREE = Path("include/config/kernel.release")
_INSTALLED = (Path("/lib/modules"), Path("/usr/lib/modules"))


def read_release(kernel: Path) -> str:
    """What `uname -r` says under a kernel, a bzImage or an ELF file; empty when its file does not tell.

    Raises:
        OSError: It cannot be read.
    """
    with kernel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] == _MAGIC:
            start = int.from_bytes(data[_VERSION_OFFSET : _VERSION_OFFSET + 2], "little") + _VERSION_BASE
            words = data[start : start + 200].split(b" ")
        else:
            found = _BANNER.search(data)
            words = [found[1]] if found else [b""]
    release = words[0].decode("ascii", "replace")
    return release if _RELEASE.fullmatch(release) else ""


def find_modules(kernel: Path, release: str) -> Path | None:
    """Where the modules of a kernel are: in the sources that it was built in, beside it, or installed on this host."""
    for sources in kernel.resolve().parents:
        told = sources / _IN_TREE
        if told.is_file() and told.read_text(errors="replace").strip() == release:
            return sources
    here = kernel.absolute().parent
    places = [here] if here.name == release else []
    places += [top / release for top in (here / "lib/modules", here.parent / "lib/modules", *_INSTALLED)]
    return next((place for place in places if place.is_dir()), None)


def provide_initrd(release: str, modules: Path, base: Path, home: Path, runner: PipedRunner) -> Path:
    """The initrd `base` with a kernel's modules; it is made when there is none yet, or its parts have changed.

    Args:
        home: Where such initrds are kept.

    Raises:
        ImageBuildError, WaitTimeout, HostError: It cannot be made; an older one is as it was.
    """
    name = hashlib.sha256(json.dumps([release, str(modules), str(base)]).encode()).hexdigest()[:16]
    initrd = home / name / "initrd"
    if not _is_current(initrd):
        make_initrd(release, modules, base, initrd, runner)
    os.utime(initrd.with_suffix(".json"))  # when it was used last
    used = sorted(home.glob("*/initrd.json"), key=lambda note: note.stat().st_mtime, reverse=True)
    for old in used[KEPT:]:
        shutil.rmtree(old.parent, ignore_errors=True)
    return initrd


def _is_current(initrd: Path) -> bool:
    """Whether it is there, and made of what there is now."""
    try:
        parts = json.loads(initrd.with_suffix(".json").read_bytes())
        return initrd.exists() and all(_tell(path) == told for path, told in parts.items())
    except (OSError, ValueError, AttributeError):
        return False


def _tell(path: str) -> list[int]:
    """As `iso/moduleinitrd.py` does."""
    told = Path(path).stat()
    return [told.st_size, told.st_mtime_ns]
