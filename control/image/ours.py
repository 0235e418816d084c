"""Images of our own (floor 2): the small Debian, and the built-in guest. The doors of `iso/` make them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from control.errors import ImageBuildError, WaitTimeout
from control.image.disk import grow_disk
from control.image.workshop import Workshop, show_lines
from control.log import LOG
from control.paths import BUILD, IMAGE, ROOT
from control.spec.image import ImageDeclaration
from control.streams import Completed, PipedRunner

TIMEOUT_S = 3600.0
"""It downloads and installs a system."""

_Run = Callable[[list[str], Callable[[bytes], None]], Completed]
"""Runs a command line to its end, and is told what it says on stderr as it comes."""

_CACHE = ("--cache", str(BUILD / "cache"))


def make_debian(image: ImageDeclaration, shop: Workshop, scratch: Path) -> Path:
    """Make a small Debian with our agent. Raises ImageBuildError, HostError, WaitTimeout."""
    _run_shops_door(shop, "debian/build.py", ["disk", "--recipe", "debian", "--output", str(scratch)])
    made = scratch / "debian.qcow2"
    if image.img_size:
        grow_disk(made, image.img_size, shop)
    return made


def make_builtin(image: ImageDeclaration, shop: Workshop, *, force: bool) -> bool:
    """See to it that the built-in guest is there; tells whether it was made. Raises as `make_debian`."""
    if image.path.exists() and not force:
        return False
    _run_shops_door(shop, "build.py", ["--output", str(image.path.parent), *(["--force"] if force else [])])
    return True


@dataclass(frozen=True)
class Ours:
    """An image that there is without any configuration: what makes it, and the file that VMs look for."""

    door: str
    words: tuple[str, ...]
    file: str


OURS = {"builtin": Ours("build.py", (), "unhinged.iso"), "debian": Ours("debian/build.py", ("disk",), "debian.qcow2")}


def make_ours(name: str, runner: PipedRunner, note: Callable[[str], None], *, force: bool = False) -> Path:
    """Bring one of `OURS` up to date where every VM looks for it, and return that.

    Args:
        note: Is told how far it is, a line at a time.

    Raises:
        ImageBuildError, WaitTimeout: It cannot be made; an older one is as it was.
    """
    ours = OURS[name]
    more = ["--force"] if force else []
    _run_door(_block(runner), note, ours.door, [*ours.words, "--output", str(IMAGE), *_CACHE, *more])
    return IMAGE / ours.file


def make_initrd(release: str, modules: Path, base: Path, output: Path, runner: PipedRunner) -> None:
    """Make the initrd `output` (and what it stands on, as `output` with `.json`) of `base` and a kernel's modules.

    Args:
        release: What `uname -r` says under that kernel.
        modules: A directory like `/lib/modules/RELEASE`, or the sources that the kernel was built in.

    Raises:
        ImageBuildError, WaitTimeout: It cannot be made; an older one is as it was.
    """
    _run_door(
        _block(runner),
        LOG.debug,
        "moduleinitrd.py",
        [release, str(modules), "--initrd", str(base), "--output", str(output)],
    )


def _block(runner: PipedRunner) -> _Run:
    return lambda argv, take: asyncio.run(runner(argv, timeout_s=TIMEOUT_S, on_stderr=take))


def _run_shops_door(shop: Workshop, door: str, words: list[str]) -> None:
    def run(argv: list[str], take: Callable[[bytes], None]) -> Completed:
        return shop.run(argv, timeout_s=TIMEOUT_S, on_stderr=take)

    _run_door(run, shop.note, door, [*words, *_CACHE])


def _run_door(
    run: _Run,
    note: Callable[[str], None],
    door: str,
    words: list[str],
) -> None:
    lines = _Lines(note)
    done = run([sys.executable, str(ROOT / "iso" / door), *words], lines.take)
    seen = show_lines(done.stderr[-4000:])
    if done.timed_out:
        raise WaitTimeout(f"iso/{door} to end", TIMEOUT_S, last_seen=seen)
    if done.return_code != 0:
        # The doors end with `image: what is wrong` and, below it, `hint: what helps`.
        said = {line.split(": ")[0].strip(): line.partition(": ")[2] for line in seen}
        failure = said.get("image", f"iso/{door} ended with exit code {done.return_code}")
        raise ImageBuildError(failure, seen=seen, hint=said.get("hint", ""))


class _Lines:
    """Passes on what comes in pieces, a line at a time."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._rest = b""

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._note(line.decode("utf-8", "replace"))
