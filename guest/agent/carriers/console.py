"""The console as a carrier towards the host: one message, one line, one write (guest floor); made by `main`.

Whoever reads the console may have stopped: then a bounded number of lines waits, the oldest are dropped and counted,
and the agent goes on.
"""

import os

from ..loop import OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..loop import Loop

_MAX_LINES = 64


class ConsoleCarrier:
    """Writes message lines to the terminal or file at `path`; None says nothing to anybody."""

    def __init__(self, loop: "Loop", path: "str | None", counters: "dict[str, Any]") -> None:
        self._loop = loop
        self._path = path
        self._counters = counters
        self._fd = -1
        self._lines: "list[bytes]" = []
        self._rest = b""
        self._waiting = False

    @property
    def works(self) -> bool:
        return self._path is not None and (self._fd >= 0 or self._open())

    def send(self, line: bytes) -> None:
        """Queues one line. A line feed goes before it, because a prompt may be standing on the console's last line."""
        if self._path is None:
            return
        self._lines.append(b"\n" + line)
        if len(self._lines) > _MAX_LINES:
            self._lines.pop(0)
            self._counters["console_dropped"] += 1
        if not self._waiting:
            self._flush()

    def _open(self) -> bool:
        if self._path is None:
            return False
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_APPEND)
        except OSError:
            return False
        return True

    def _flush(self, _events: int = 0) -> None:
        while self._rest or self._lines:
            if self._fd < 0 and not self._open():
                # No console is no reason to stop, nor to remember for ever.
                self._counters["console_dropped"] += len(self._lines)
                self._lines.clear()
                self._rest = b""
                return
            if not self._rest:
                self._rest = self._lines.pop(0)
            try:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
            except BlockingIOError:
                if not self._waiting:
                    self._waiting = True
                    self._loop.add(self._fd, OUT, self._flush)
                return
            except OSError:
                # A getty that starts hangs the terminal up for everybody (EIO): open it anew for the next line.
                self._close()
                self._counters["console_dropped"] += 1
                self._rest = b""
        if self._waiting:
            self._waiting = False
            self._loop.remove(self._fd)

    def _close(self) -> None:
        if self._waiting:
            self._waiting = False
            self._loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
