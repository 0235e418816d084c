"""Images of our own (floor 2): the small Debian, and the built-in guest. The doors of `iso/` make them."""

from __future__ import annotations

import sys
from pathlib import Path

from control.errors import ImageBuildError, WaitTimeout
from control.image.disk import grow_disk
from control.image.workshop import Workshop, show_lines
from control.paths import BUILD, ROOT
from control.spec.image import ImageDeclaration

TIMEOUT_S = 3600.0
"""It downloads and installs a system."""


def make_debian(image: ImageDeclaration, shop: Workshop, scratch: Path) -> Path:
    """Make a small Debian with our agent. Raises ImageBuildError, HostError, WaitTimeout."""
    _run_door(shop, "debian/build.py", ["disk", "--recipe", "debian", "--output", str(scratch)])
    made = scratch / "debian.qcow2"
    if image.img_size:
        grow_disk(made, image.img_size, shop)
    return made


def make_builtin(image: ImageDeclaration, shop: Workshop, *, force: bool) -> bool:
    """See to it that the built-in guest is there; tells whether it was made. Raises as `make_debian`."""
    if image.path.exists() and not force:
        return False
    _run_door(shop, "build.py", ["--output", str(image.path.parent), *(["--force"] if force else [])])
    return True


def _run_door(shop: Workshop, door: str, words: list[str]) -> None:
    program = ROOT / "iso" / door
    if not program.is_file():
        raise ImageBuildError(
            "it is made from a checkout, and this is none", hint="git clone the project, and run it there"
        )
    lines = _Lines(shop)
    argv = [sys.executable, str(program), *words, "--cache", str(BUILD / "cache")]
    done = shop.run(argv, timeout_s=TIMEOUT_S, on_stderr=lines.take)
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

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._rest = b""

    def take(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._shop.note(line.decode("utf-8", "replace"))
