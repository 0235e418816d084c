"""Starts a program that is to outlive us (floor 2); `control.vm.reach` starts supervisors with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from control.errors import HostError

LOG_LIMIT_BYTES = 1024 * 1024
"""A log of a program that is started again and again begins anew beyond it."""


class Detached:
    """A program that was let go of, but for its stdin, which it may still wait for. Use it as a context manager."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        self._child.wait()

    def give(self, stdin: bytes) -> None:
        """Give it what it is to read, to the end; a program that has ended is told nothing."""
        with contextlib.suppress(BrokenPipeError):
            self._child.communicate(stdin)


def start_detached(argv: Sequence[str], *, log: Path, cwd: Path, keep: Sequence[int]) -> Detached:
    """Start `argv` in a session of its own, with its output at the end of `log`.

    The program forks at once, and its first half ends, so that it is nobody's child.

    Args:
        keep: Descriptors it inherits.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    try:
        mode = "ab" if not log.exists() or log.stat().st_size < LOG_LIMIT_BYTES else "wb"
        with log.open(mode) as sink:
            os.fchmod(sink.fileno(), 0o600)
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                pass_fds=keep,
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror or error}", hint="make doctor") from error
    return Detached(child)
