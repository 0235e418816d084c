"""Reads files that somebody else writes, for any number of readers (floor 5): consoles and journals.

Each reader has a position of its own and the file is never held in memory: one that reads slowly costs nothing, and
nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from control.console.changes import Changes
from control.errors import HostError
from control.process.punch import KEPT_BYTES

LOOK_S = 2.0
"""Some file systems tell of no change; and a file that was put in place of another tells nothing of it."""


class LogReader:
    """One reader of one file.

    Attributes:
        position: Where it reads next.
    """

    def __init__(self, descriptor: int, changes: Changes, position: int) -> None:
        self.position = position
        self._descriptor = descriptor
        self._changes = changes

    @property
    def inode(self) -> int:
        return os.fstat(self._descriptor).st_ino

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    @property
    def backlog(self) -> int:
        """Bytes that are there and have not been read."""
        return self.size - self.position

    def read(self, limit: int) -> bytes:
        """Return the next bytes; none when all is read."""
        if self.backlog > KEPT_BYTES:
            with contextlib.suppress(OSError):  # the file system knows of no holes
                self.position = max(self.position, os.lseek(self._descriptor, self.position, os.SEEK_DATA))
        chunk = os.pread(self._descriptor, limit, self.position)
        self.position += len(chunk)
        return chunk

    async def wait_for_more(self) -> None:
        """Return when there may be more, or after a while."""
        await self._changes.wait(LOOK_S)

    def close(self) -> None:
        self._changes.close()
        os.close(self._descriptor)


@contextlib.contextmanager
def open_log(path: Path, position: int) -> Iterator[LogReader]:
    """Open a log for reading from `position`, or, negative, from so many bytes before its end.

    Raises:
        HostError: It is not there, or cannot be watched.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}") from error
    try:
        changes = Changes(descriptor)
    except HostError:
        os.close(descriptor)
        raise
    size = os.fstat(descriptor).st_size
    reader = LogReader(descriptor, changes, max(0, size + position) if position < 0 else min(position, size))
    try:
        yield reader
    finally:
        reader.close()


async def follow_lines(path: Path, tail_bytes: int, line_max: int) -> AsyncIterator[bytes]:
    """Yield the last lines of a file that is appended to, then each as it comes; it may be put aside for a new one."""
    begin = -tail_bytes
    while True:
        if not path.exists():
            await asyncio.sleep(LOOK_S)  # nothing tells of a file that is not there yet
            begin = 0
            continue
        with open_log(path, begin) as reader:
            rest, is_cut = b"", reader.position > 0
            while True:
                chunk = reader.read(65536)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines[1:] if is_cut and lines else lines:
                    if line:
                        yield line
                is_cut = is_cut and not lines
                if len(rest) > line_max:
                    rest, is_cut = b"", True
                if not chunk:
                    if not path.exists() or path.stat().st_ino != reader.inode:
                        break
                    await reader.wait_for_more()
        begin = 0
