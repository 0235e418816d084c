"""The user's terminal (floor 4): raw while the guest has it, line by line at our prompt, restored at every end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import termios
from collections.abc import Iterator

from control.console.escape import ESCAPE_KEY

_CC = 6
_IFLAG, _LFLAG = 0, 3
_INTERRUPT_KEY = 0x03


class Terminal:
    """The terminal on stdin; made by `open_terminal`, which also restores it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._original = termios.tcgetattr(descriptor)

    def enter_raw_mode(self) -> None:
        """Hand every key to the guest, Ctrl-C among them. Output stays processed, so that our own lines end well."""
        attributes = termios.tcgetattr(self._descriptor)
        attributes[_IFLAG] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
        attributes[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        attributes[_CC][termios.VMIN], attributes[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)

    def enter_line_mode(self) -> None:
        """Let the kernel edit a line for our prompt; the escape key and Ctrl-C also end it, and raise no signal."""
        attributes = [part if not isinstance(part, list) else list(part) for part in self._original]
        attributes[_LFLAG] = (self._original[_LFLAG] | termios.ECHO | termios.ICANON | termios.IEXTEN) & ~termios.ISIG
        attributes[_CC][termios.VEOL] = bytes([ESCAPE_KEY])
        attributes[_CC][termios.VEOL2] = bytes([_INTERRUPT_KEY])
        termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)

    def restore(self) -> None:
        """Put the terminal back as it was found; one that was hung up meanwhile has nothing to put back."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._original)

    async def read(self) -> bytes:
        """Wait for keys (raw mode) or a line (line mode); empty when the terminal is gone."""
        return await read_ready(self._descriptor)


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
    """Take the terminal for the body, raw, and restore it however the body is left."""
    terminal = Terminal(descriptor)
    terminal.enter_raw_mode()
    try:
        yield terminal
    finally:
        terminal.restore()
