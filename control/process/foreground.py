"""Starts a program that has our terminal, and stays its parent (floor 2); `unhinged gdb` uses it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from control.errors import HostError


class Foreground:
    """A program that has our terminal; made by `start_foreground`."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def wait(self) -> int:
        """Wait for its end and return its exit code, as a shell gives it: 128 + the signal that killed it."""
        code = self._child.wait()
        return code if code >= 0 else 128 - code


@contextlib.contextmanager
def start_foreground(argv: Sequence[str], *, cwd: Path) -> Iterator[Foreground]:
    """Start `argv` with our standard streams, and wait for its end on leaving.

    What is typed on the terminal means the program: meanwhile Ctrl-C ends it, or not, as it likes, and never us.

    Raises:
        HostError: It cannot be started.
    """
    before = signal.signal(signal.SIGINT, _ignore)
    try:
        try:
            child = subprocess.Popen(argv, cwd=cwd, umask=0o077)
        except OSError as error:
            raise HostError(f"{argv[0]} cannot be started: {error.strerror}") from error
        with child:
            yield Foreground(child)
    finally:
        signal.signal(signal.SIGINT, before)


def _ignore(_number: int, _frame: object) -> None:
    """Not SIG_IGN: that would be handed down to the program."""
