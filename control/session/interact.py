"""A console handed from a script to whoever sits at the terminal (floor 4)."""

from __future__ import annotations

import contextlib
import os

from control.console.sink import TIDY_UP
from control.descriptors import write_all
from control.process.terminal import Terminal
from control.session.seat import Seat

PIECE_BYTES = 32 * 1024


def interact(attached: Seat, unread: str, escape: bytes) -> None:
    """Carry bytes both ways until `escape` is typed or the console ends. Raises ConsoleError when typing is refused."""
    write_all(1, unread.encode())
    if not (os.isatty(0) and os.isatty(1)):
        _carry(attached, b"", reads=False)
        return
    with Terminal(0, raw_output=True).taken(tidy=TIDY_UP):
        try:
            with contextlib.suppress(OSError):
                size = os.get_terminal_size(1)
                attached.resize(size.lines, size.columns)
            _carry(attached, escape, reads=True)
        finally:
            write_all(1, TIDY_UP + b"\r\n")


def _carry(attached: Seat, escape: bytes, *, reads: bool) -> None:
    while not attached.is_over:
        attached.attend()
        if data := attached.read():
            write_all(1, data)
        ready = attached.wait(None, *((0,) if reads else ()))
        if 0 in ready:
            typed = os.read(0, PIECE_BYTES)
            keys, found, _ = typed.partition(escape)
            if keys:
                attached.type(keys)
            if found or not typed:
                return
