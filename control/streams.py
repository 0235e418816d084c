"""The shapes in which bytes and child processes are handed from floor to floor (floor 0).

The means of floor 2 do not import each other: a module that needs a stream or a child process takes one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Completed:
    """What a finished child process left behind.

    Attributes:
        return_code: As `subprocess` reports it: negative for a signal; None when it was killed at the deadline.
        stdout, stderr: What it wrote, cut to the runner's bound.
        seconds: Wall-clock time from start to end.
    """

    argv: tuple[str, ...]
    return_code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def timed_out(self) -> bool:
        return self.return_code is None


class Runner(Protocol):
    """Runs a child process to its end, or to its deadline; `control.process.run` is the real one."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed: ...


class PipedRunner(Protocol):
    """A `Runner` that also gives the child something to read, and tells what it writes as it comes.

    `on_stdout` says whether that is enough: the child is killed then.
    """

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], bool] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Completed: ...
