"""What a session needs of a place at a console (floor 4); `control.vm.attached.Attached` is one."""

from __future__ import annotations

from typing import Protocol


class Seat(Protocol):
    """A place from which one console is read and typed on. Not thread-safe.

    Attributes:
        console: Its name.
        how: How it ended; empty while it has not.
    """

    console: str
    how: str

    @property
    def is_closed(self) -> bool:
        """Whether it was left."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it has ended and all of it was read."""
        ...

    def attend(self) -> None:
        """Take in what there is to know beside what the console says."""
        ...

    def read(self, size: int = ...) -> bytes:
        """Return what it has said since; empty when that is nothing. Raises ConsoleError when the seat was left."""
        ...

    def wait(self, within_s: float | None, *others: int) -> set[int]:
        """Wait until there may be something to read or attend, or one of `others` is readable; return those."""
        ...

    def type(self, data: bytes) -> None:
        """Type `data`. Raises ConsoleError, WaitTimeout."""
        ...

    def resize(self, rows: int, columns: int) -> None:
        """Let the console have this size."""
        ...

    def close(self) -> None:
        """Leave; twice is once."""
        ...
