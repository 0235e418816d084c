"""The user's terminal (floor 2): raw while a guest has it, line by line at our prompt, put back at every end.

Also when this process is killed outright: a small child of ours, the guardian, waits for that on a pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import termios
from collections.abc import Iterator, Sequence
from typing import Any

_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6
_ENDS_OF_LINE = (termios.VEOL, termios.VEOL2)

Modes = list[Any]
"""What tcgetattr(3) gives."""


class Terminal:
    """A terminal, for whoever has `taken` it.

    Args:
        line_ends: Up to two keys that end a line as Enter does, and stay in it, while our prompt has the terminal.
        raw_output: Whether what is written in raw mode goes to the terminal as it is, as a program needs that draws on
            all of it; otherwise a line feed begins a line, as people want it who look on.
    """

    def __init__(self, descriptor: int, line_ends: bytes = b"", *, raw_output: bool = False) -> None:
        self.descriptor = descriptor
        self.original: Modes = termios.tcgetattr(descriptor)
        self.raw = _build_raw(self.original, raw_output=raw_output)
        self.line = _build_line(self.original, line_ends)

    @contextlib.contextmanager
    def taken(self, *, tidy: bytes) -> Iterator[None]:
        """Have the terminal for the body, raw, and put it back however the body is left, also when we are killed.

        Args:
            tidy: Written to it when we are killed; at other ends whoever wrote to it does that.
        """
        with _guarded(self.descriptor, self.original, (self.raw, self.line), tidy):
            self.enter_raw_mode()
            try:
                yield
            finally:
                self.restore()

    def enter_raw_mode(self) -> None:
        """Hand every key on, Ctrl-C among them."""
        termios.tcsetattr(self.descriptor, termios.TCSANOW, self.raw)

    def enter_line_mode(self) -> None:
        """Let the kernel edit a line for our prompt; Ctrl-C raises no signal."""
        termios.tcsetattr(self.descriptor, termios.TCSANOW, self.line)

    def restore(self) -> None:
        """Put the terminal back as it was found; one that was hung up meanwhile has nothing to put back."""
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self.descriptor, termios.TCSANOW, self.original)


def _build_raw(original: Modes, *, raw_output: bool) -> Modes:
    modes = _copy(original)
    if raw_output:
        modes[_OFLAG] &= ~termios.OPOST
    modes[_IFLAG] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
    modes[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    modes[_CC][termios.VMIN], modes[_CC][termios.VTIME] = 1, 0
    return modes


def _build_line(original: Modes, line_ends: bytes) -> Modes:
    modes = _copy(original)
    modes[_LFLAG] = (modes[_LFLAG] | termios.ECHO | termios.ICANON | termios.IEXTEN) & ~termios.ISIG
    for place, key in zip(_ENDS_OF_LINE, line_ends, strict=False):
        modes[_CC][place] = bytes([key])
    return modes


def _copy(modes: Modes) -> Modes:
    return [list(part) if isinstance(part, list) else part for part in modes]


@contextlib.contextmanager
def _guarded(descriptor: int, original: Modes, ours: Sequence[Modes], tidy: bytes) -> Iterator[None]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _guard(descriptor, reading, original, ours, tidy)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the guardian
            os.write(writing, b".")
        os.close(writing)
        os.waitpid(child, 0)


def _guard(descriptor: int, reading: int, original: Modes, ours: Sequence[Modes], tidy: bytes) -> None:
    """Wait for a word of the process that forked us, or for its death; then put the terminal back.

    Only modes that it had set are undone: the shell that waits for it may be quicker, and have set its own.
    """
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    for place, kept in enumerate([fcntl.fcntl(each, fcntl.F_DUPFD, 16) for each in (descriptor, reading)]):
        os.dup2(kept, place)
    os.closerange(2, os.sysconf("SC_OPEN_MAX"))  # others may wait for the end of what else is open
    if os.read(1, 1) or not os.isatty(0):
        return
    if termios.tcgetattr(0) in [_as_read(modes) for modes in ours]:
        termios.tcsetattr(0, termios.TCSANOW, original)
        own = os.open(os.ttyname(0), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        os.write(own, tidy)


def _as_read(modes: Modes) -> Modes:
    """`modes` as tcgetattr gives them: VMIN and VTIME are numbers only where lines are not edited."""
    read = _copy(modes)
    if read[_LFLAG] & termios.ICANON:
        for place in (termios.VMIN, termios.VTIME):
            if isinstance(read[_CC][place], int):
                read[_CC][place] = bytes([read[_CC][place]])
    return read
