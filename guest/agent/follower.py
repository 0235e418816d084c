"""Reads a file as it grows (guest floor), as `tail -F` does: across rotation and truncation; made by `log_follow`.

The file's place is held, not its path, and it is found there anew after each rotation by the rules of the
configuration. A host that reads slowly is waited for: nothing is left out, and no more than a piece is in memory.
"""

import os

from .pathpolicy import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Timer
    from .main import Agent
    from .streams import Writer

_PIECE_BYTES = 65536
_PIECES_PER_TURN = 8
# How far back the beginning of the wanted lines is looked for.
_MAX_BACK_BYTES = 16 * 1024 * 1024
# A file may lie where no event is to be had (a share, /proc), so it is looked at: one fstat and one stat each time.
_LOOK_S = 0.2


class Follower:
    """Sends the last lines of a file and then what is added to it.

    Args:
        done: Called with an exception or None when there is no more to send.

    Raises:
        OSError: The file is not there, is no regular file, or may not be read.
    """

    def __init__(
        self, agent: "Agent", path: bytes, lines: int, follow: bool, writer: "Writer", done: "Callable[..., Any]"
    ) -> None:
        self.sent_bytes = 0
        self.rotations = 0
        self._agent = agent
        self._path = path
        self._follow = follow
        self._writer = writer
        self._done = done
        self._timer: "Timer | None" = None
        self._ended = False
        self._fd = self._open()
        try:
            self._at = _find_start(self._fd, lines)
        except OSError:
            os.close(self._fd)
            raise
        agent.loop.soon(self._pump)

    def close(self) -> None:
        """Lets go of the file; what was read is still sent."""
        if not self._ended:
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
            os.close(self._fd)
            self._writer.end()

    def _open(self) -> int:
        guard = self._agent.guard
        with guard.as_user(), guard.paths.find(self._path, READ) as place:
            return place.open_file(os.O_RDONLY)

    def _pump(self) -> None:
        if self._ended:
            return
        try:
            for _ in range(_PIECES_PER_TURN):
                data = os.pread(self._fd, _PIECE_BYTES, self._at)
                if not data:
                    self._rest()
                    return
                self._at += len(data)
                self.sent_bytes += len(data)
                if not self._writer.write(data):
                    self._writer.when_ready(self._pump)
                    return
        except OSError as error:
            self._finish(error)
            return
        self._agent.loop.soon(self._pump)

    def _rest(self) -> None:
        """There is nothing more to read now."""
        if not self._follow:
            self._finish(None)
            return
        now = os.fstat(self._fd)
        if now.st_size < self._at:
            self._at = 0  # it was truncated and is written anew
        if self._is_replaced(now):
            # The old one has been read to its end. Whoever still writes into it is late: a rotation waits for them.
            os.close(self._fd)
            self._fd = self._next
            self._at = 0
            self.rotations += 1
        self._timer = self._agent.loop.later(_LOOK_S, self._pump)

    def _is_replaced(self, now: "os.stat_result") -> bool:
        """Whether the name stands for another file; it is then open as `_next`."""
        try:
            fd = self._open()
        except OSError:
            return False  # between two files, or no longer to be read: the one that is open stays
        seen = os.fstat(fd)
        if (seen.st_dev, seen.st_ino) == (now.st_dev, now.st_ino):
            os.close(fd)
            return False
        self._next = fd
        return True

    _next = -1

    def _finish(self, error: "OSError | None") -> None:
        self.close()
        self._done(error)


def _find_start(fd: int, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    at = size = os.fstat(fd).st_size
    if not lines:
        return size
    wanted = lines
    lowest = max(0, size - _MAX_BACK_BYTES)
    while at > lowest:
        begin = max(lowest, at - _PIECE_BYTES)
        data = os.pread(fd, at - begin, begin)
        end = len(data)
        if at == size and data.endswith(b"\n"):
            end -= 1  # it ends the last line and begins none
        while True:
            end = data.rfind(b"\n", 0, end)
            if end < 0:
                break
            wanted -= 1
            if not wanted:
                return begin + end + 1
        at = begin
    return lowest
