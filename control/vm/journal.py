"""The message journal of an instance, `messages.jsonl` (floor 3): every message that crossed, in order, bounded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from control.descriptors import write_all
from control.errors import HostError
from control.wire import Message, encode_message

LIMIT_BYTES = 16 * 1024 * 1024
"""At this size the journal becomes `messages.jsonl.1`, replacing the one before: a guest cannot fill the disk."""

WAITING_BYTES = 64 * 1024
"""So much is written without a `flush`."""


class Journal:
    """Appends messages; made by `open_journal`. Written through at `flush`, which the caller does when it is idle.

    Lines are written whole, for others read the journal meanwhile: a buffer of the file's own would be written when it
    is full, in the middle of one. Each of its methods raises HostError when the disk is full or gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FileIO(path, "a+")
        self._waiting = bytearray()
        self._size = path.stat().st_size
        if self._size and os.pread(self._file.fileno(), 1, self._size - 1) != b"\n":
            # The disk was full, or whoever wrote was killed in the middle.
            self._waiting += b"\n"

    def append(self, message: Message) -> None:
        if self._size >= LIMIT_BYTES:
            self._rotate()
        line = encode_message(message)
        self._waiting += line
        self._size += len(line)
        if len(self._waiting) >= WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what was appended to the kernel, for others to read."""
        lines, self._waiting = self._waiting, bytearray()
        with self._naming_errors():
            write_all(self._file.fileno(), lines)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()

    def _rotate(self) -> None:
        self.close()
        with self._naming_errors():
            self._path.replace(_rotated(self._path))
            self._file = FileIO(self._path, "a+")
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
