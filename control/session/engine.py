"""pexpect's engine over a seat at a console (floor 4): the only module that knows pexpect.

pexpect brings what its users know: pattern lists, `before`, `after` and `match`, EOF and TIMEOUT. What comes and what
is typed goes through a `Seat`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pexpect.exceptions import EOF as EOF  # whoever uses this engine names them
from pexpect.exceptions import TIMEOUT as TIMEOUT
from pexpect.spawnbase import SpawnBase

from control.console.plain import PlainStream
from control.console.tail import ConsoleTail
from control.errors import ConsoleError, WaitTimeout

if TYPE_CHECKING:
    from control.session.seat import Seat

    Base = SpawnBase[Any]
else:
    Base = SpawnBase

READ_BYTES = 64 * 1024
WINDOW = 256 * 1024
"""Characters a pattern is looked for in: a match that is longer, or further behind, is not found."""

KEPT = 4 * WINDOW
"""Characters that are kept while nothing matches; of more, the older are dropped."""

LAST_LINES = 8


class ExpectTimeout(WaitTimeout, TIMEOUT):
    """A pattern did not come in time; holds what was seen last. Is pexpect's TIMEOUT, too."""


class SessionEnded(ConsoleError, EOF):
    """The console has ended, and a pattern had not come; holds what was seen last. Is pexpect's EOF, too."""


class Engine(Base):
    """A pexpect spawn whose child is a console. Not thread-safe.

    Attributes:
        tail: The last of what came, for errors.
        dropped: Characters that no pattern matched and that were dropped because there were too many.
    """

    # What the published types of pexpect leave out, or have wrong.
    _before: Any
    _buffer: Any
    _decoder: Any
    _log: Any
    buffer_type: Any

    def __init__(self, attached: Seat, *, timeout: float, plain: bool) -> None:
        # Invalid UTF-8 becomes U+FFFD; the decoder is an incremental one, so split characters are none.
        super().__init__(
            timeout=timeout, maxread=READ_BYTES, searchwindowsize=WINDOW, encoding="utf-8", codec_errors="replace"
        )
        self.attached = attached
        self.tail = ConsoleTail()
        self.dropped = 0
        self.closed = False
        self.name = f"<console {attached.console}>"
        # pexpect sleeps before it types and after it reads, for programs on a PTY of its own.
        self.delaybeforesend = None
        self.delayafterread = None
        self._plain = PlainStream() if plain else None

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> str:
        """Return what comes next, waiting for it at most `timeout` seconds. Raises EOF, TIMEOUT, ConsoleError."""
        deadline = time.monotonic() + float(self.timeout or 0.0 if timeout is None or timeout == -1 else timeout)
        while True:
            self.attached.attend()
            if data := self.attached.read(size):
                if text := self._take(data):
                    return text
                continue
            if self.attached.is_over:
                self.flag_eof = True
                raise EOF(self.attached.how)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TIMEOUT("Timeout exceeded.")
            self.attached.wait(left)

    def send(self, text: str | bytes) -> int:
        """Type `text`; returns the bytes typed. Raises ConsoleError, WaitTimeout as `Seat.type`."""
        data = text.encode() if isinstance(text, str) else text
        self._log(data.decode("utf-8", "replace"), "send")
        self.attached.type(data)
        return len(data)

    def last_line(self) -> str:
        """Return the line the console is at, whoever has read it already: a prompt, perhaps."""
        with contextlib.suppress(TIMEOUT, EOF):
            self._before.write(self.read_nonblocking(READ_BYTES, 0.0))
        return self.tail.text_end(1)

    def take_rest(self) -> str:
        """Return, and take away, what was read and matched by nothing yet."""
        text: str = self._before.getvalue()
        self._buffer = self.buffer_type()
        self._before = self.buffer_type()
        return text

    def put_back(self, text: str) -> None:
        """Let the next pattern find `text` first."""
        self._buffer = self.buffer_type()
        self._buffer.write(text)
        self._before = self.buffer_type()
        self._before.write(text)

    @contextlib.contextmanager
    def unlogged(self) -> Iterator[None]:
        """Show whoever looks on nothing of what is read in the body."""
        log, self.logfile_read = self.logfile_read, None
        try:
            yield
        finally:
            self.logfile_read = log

    def remember(self, text: str) -> None:
        """Let `text` be what was seen last."""
        self.tail = ConsoleTail()
        self.tail.feed(text.encode())

    def seen(self) -> tuple[str, ...]:
        """Return the last lines that came, or, when none did, those that were there before."""
        return self.tail.lines(LAST_LINES)

    def build_end(self, error: EOF) -> SessionEnded:
        """Return what to raise for pexpect's EOF."""
        return SessionEnded(f"the console has ended: {error.args[0]}", seen=self.seen())

    def _take(self, data: bytes) -> str:
        self.tail.feed(data)
        plain = self._plain.feed(data) if self._plain is not None else data
        text: str = self._decoder.decode(plain, final=False)
        if text:
            self._log(text, "read")
            self._bound()
        return text

    def _bound(self) -> None:
        if self._before.tell() > KEPT:
            kept = self._before.getvalue()[-WINDOW:]
            self.dropped += self._before.tell() - len(kept)
            self._before = self.buffer_type()
            self._before.write(kept)
