"""A seat at a program on a PTY of this host: what `control.vm.attached` is for a machine, for tests without one."""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from control.errors import ConsoleError


class PtySeat:
    """A real program on a real terminal.

    Args:
        step: The most bytes that one read gives; 1 splits every character and escape sequence.
        disturb: Is given all that came, and returns it with whatever else has come in the middle of it.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        step: int = 1 << 16,
        disturb: Callable[[bytes], bytes] | None = None,
        size: tuple[int, int] = (24, 80),
        env: dict[str, str] | None = None,
    ) -> None:
        self.console = "test"
        self.how = ""
        self.typed = b""
        self.is_closed = False
        self._step = step
        self._disturb = disturb or (lambda data: data)
        self._pending = b""
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], list(argv), {**os.environ, "PS1": "$ ", "ENV": "", "TERM": "xterm", **(env or {})})
        self.resize(*size)

    def attend(self) -> None: ...

    def read(self, size: int = 1 << 16) -> bytes:
        if self.is_closed:
            raise ConsoleError("this seat was left", hint="attach again")
        while not self.how and select.select([self._master], [], [], 0)[0]:
            try:
                self._pending += self._disturb(os.read(self._master, 1 << 16))
            except OSError:
                self.how = "the program ended"
            if self._pending:
                break
        data, self._pending = self._pending[: min(size, self._step)], self._pending[min(size, self._step) :]
        return data

    def wait(self, within_s: float | None, *others: int) -> set[int]:
        if not self._pending:
            select.select([self._master], [], [], within_s)
        return set()

    @property
    def is_over(self) -> bool:
        return bool(self.how) and not self._pending

    def type(self, data: bytes) -> None:
        if self.is_closed:
            raise ConsoleError("this seat was left", hint="attach again")
        self.typed += data
        os.write(self._master, data)

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        os.close(self._master)
        deadline = time.monotonic() + 5
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)


def as_attached(seat: PtySeat) -> Any:
    """The seat, for whoever's types ask for the real one."""
    return seat
