"""Somebody at an interpreter's terminal (floor 5): what they type is read and run, as `lua -i` does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import time
from typing import TYPE_CHECKING

from control.errors import ConsoleError, WaitTimeout

if TYPE_CHECKING:
    from control.lua.machine import LuaVM

INTERRUPT = b"\x03"
LEAVE = b"\x15\x04"
"""Ctrl-U and Ctrl-D: forget what stands on the line, and end."""

LEAVE_WAITS_S = (0.2, 1.0, 1.0)
"""Where it waits for us it goes at once; what runs is interrupted after the first of them."""

TYPE_WAIT_S = 30.0


class LuaSeat:
    """A `control.session.seat.Seat` at the terminal of a `LuaVM`, which can execute nothing else meanwhile."""

    how = ""

    def __init__(self, vm: LuaVM) -> None:
        self.console = vm.name
        self._vm = vm
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_over(self) -> bool:
        return bool(self.how) and not _is_readable(self._vm.terminal)

    def attend(self) -> None:
        if not self.how:
            self.how = self._vm.poll_talk()

    def read(self, size: int = 65536) -> bytes:
        if self._is_closed:
            raise ConsoleError("this seat was left", hint="attach again")
        try:
            return os.read(self._vm.terminal, size)
        except (BlockingIOError, OSError):
            return b""

    def wait(self, within_s: float | None, *others: int) -> set[int]:
        poller = select.poll()
        ours = [self._vm.terminal] if not self.how else []
        for descriptor in (*ours, self._vm.answers, *others):
            poller.register(descriptor, select.POLLIN)
        found = {descriptor for descriptor, _ in poller.poll(None if within_s is None else max(0.0, within_s) * 1000)}
        return found & set(others)

    def type(self, data: bytes, within_s: float = TYPE_WAIT_S) -> None:
        if self.how:
            raise ConsoleError(f"nothing can be typed: {self.how}", hint="attach again")
        for index, piece in enumerate(data.split(INTERRUPT)):
            if index:
                self._vm.interrupt_talk()
            self._write(piece, time.monotonic() + within_s)

    def resize(self, rows: int, columns: int) -> None:
        if rows > 0 and columns > 0:
            fcntl.ioctl(self._vm.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Leave; what was typed and not ended is forgotten, what runs is interrupted. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            self._leave()
        finally:
            self._vm.end_talk()

    def _leave(self) -> None:
        for attempt, wait_s in enumerate(LEAVE_WAITS_S):
            deadline = time.monotonic() + wait_s
            if attempt:
                self._vm.interrupt_talk()
            with contextlib.suppress(ConsoleError, WaitTimeout):
                self.type(LEAVE, wait_s)
            while not self.how and time.monotonic() < deadline:
                self.wait(deadline - time.monotonic())
                with contextlib.suppress(OSError):
                    os.read(self._vm.terminal, 65536)
                self.attend()
            if self.how:
                return
        self._vm.kill()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._vm.terminal, view) :]
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise WaitTimeout("the code to read what is typed", TYPE_WAIT_S) from None
                select.select([], [self._vm.terminal], [], 0.1)
            except OSError as error:
                raise ConsoleError("the terminal is gone", hint="create another") from error


def _is_readable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return any(events & select.POLLIN for _, events in poller.poll(0))
