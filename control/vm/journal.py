"""The message journal of an instance, `messages.jsonl` (floor 3): every message that crossed, in order, bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from control.errors import HostError
from control.wire import Message, encode_message

LIMIT_BYTES = 16 * 1024 * 1024
"""At this size the journal becomes `messages.jsonl.1`, replacing the one before: a guest cannot fill the disk."""


class Journal:
    """Appends messages; made by `open_journal`. Written through at `flush`, which the caller does when it is idle.

    Each of its methods raises HostError when the disk is full or gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("ab")
        self._size = path.stat().st_size

    def append(self, message: Message) -> None:
        if self._size >= LIMIT_BYTES:
            self._rotate()
        line = encode_message(message)
        with self._naming_errors():
            self._file.write(line)
        self._size += len(line)

    def flush(self) -> None:
        """Hand what was appended to the kernel, for others to read."""
        with self._naming_errors():
            self._file.flush()

    def close(self) -> None:
        with self._naming_errors():
            self._file.close()

    def _rotate(self) -> None:
        with self._naming_errors():
            self._file.close()
            self._path.replace(_rotated(self._path))
            self._file = self._path.open("ab")
        self._size = 0

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HostError(
                f"the journal {self._path} cannot be written: {error.strerror}", hint="make room on that disk"
            ) from error


def _rotated(path: Path) -> Path:
    return path.with_name(path.name + ".1")


@contextlib.contextmanager
def open_journal(path: Path, *, fresh: bool) -> Iterator[Journal]:
    """Open the journal at `path` for the body, and close it after; a `fresh` one begins empty."""
    if fresh:
        path.unlink(missing_ok=True)
        _rotated(path).unlink(missing_ok=True)
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()
