"""The user's terminal in an event loop (floor 6): keys while the guest has it, lines at our prompt."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

from control.console.escape import ESCAPE_KEY
from control.console.sink import TIDY_UP
from control.process import terminal

_LINE_ENDS = bytes([ESCAPE_KEY, 0x03])
"""Beside Enter, at our prompt: the escape key and Ctrl-C."""


class Terminal(terminal.Terminal):
    """The terminal on stdin; made by `open_terminal`, which also restores it."""

    async def read(self) -> bytes:
        """Wait for keys (raw mode) or a line (line mode); empty when the terminal is gone."""
        return await read_ready(self.descriptor)


async def read_ready(descriptor: int, size: int = 65536) -> bytes:
    """Wait until `descriptor` can be read and read what is there; empty at its end.

    Its flags, shared with other processes, are left alone. Regular files, which the event loop cannot wait for, never
    block.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return os.read(descriptor, size)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
    try:
        return os.read(descriptor, size)
    except OSError:
        return b""  # EIO: the terminal was hung up


@contextlib.contextmanager
def open_terminal(descriptor: int) -> Iterator[Terminal]:
    """Take the terminal for the body, raw, and restore it however the body is left, also when we are killed."""
    taken = Terminal(descriptor, _LINE_ENDS)
    with taken.taken(tidy=TIDY_UP):
        yield taken
