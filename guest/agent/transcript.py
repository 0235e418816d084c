"""What the programs of one job say, one after another, into one stream to the host (guest floor); used by `steps`.

A host that does not read holds up the program, not the agent. Without a stream the output is read and thrown away, but
for its end, which explains a failure.
"""

import os

from .loop import HANGUP, IN
from .process import LINGER_S, Child, Result, open_null, open_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop
    from .streams import Writer

_TAIL_BYTES = 4096
_READ_BYTES = 16384


class Transcript:
    """Takes output; `writer` is the stream it goes into, None for none. It outlives each single program."""

    def __init__(self, writer: "Writer | None") -> None:
        self._writer = writer
        self.tail = b""
        self.size = 0

    def write(self, data: bytes) -> bool:
        self.size += len(data)
        self.tail = (self.tail + data)[-_TAIL_BYTES:]
        return True if self._writer is None else self._writer.write(data)

    def when_ready(self, callback: "Callable[[], Any]") -> None:
        if self._writer is not None:
            self._writer.when_ready(callback)

    def close(self) -> None:
        """No program follows: ends the stream."""
        if self._writer is not None:
            self._writer.end()


class Spoken(Child):
    """A running program that writes both outputs into a transcript. `done(Result)` is called once, at its end.

    Args:
        start: What the program is to be started with, as `Child` takes it.
    """

    def __init__(
        self, loop: "Loop", done: "Callable[[Result], Any]", transcript: Transcript, start: "dict[str, Any]"
    ) -> None:
        Child.__init__(self, loop, **start)
        self._done = done
        self._transcript = transcript
        self._fd = -1
        self._watched = False
        transcript.tail = b""
        ours: "list[int]" = []
        theirs: "list[int]" = []
        try:
            theirs.append(open_null(os.O_RDONLY))
            theirs.append(open_pipe(ours, 0))
            self.start([theirs[0], theirs[1], theirs[1]])
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._fd = ours[0]
        self._watch()

    def end(self) -> None:
        if self._fd < 0:
            self._finish()
        else:
            # Somebody else may hold the output open; as everywhere, that is not waited for.
            self._loop.later(LINGER_S, self._stop_listening)

    def _watch(self) -> None:
        if self._fd >= 0:
            self._loop.add(self._fd, IN | HANGUP, self._read)
            self._watched = True

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close()
            if self.status is not None:
                self._finish()
        elif not self._transcript.write(data):
            self._pause()
            self._transcript.when_ready(self._watch)

    def _pause(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove(self._fd)

    def _close(self) -> None:
        self._pause()
        os.close(self._fd)
        self._fd = -1

    def _stop_listening(self) -> None:
        # While the host is slow there is more to come; what a program left behind goes on to say has no end.
        if self._fd >= 0 and not self._watched:
            self._loop.later(LINGER_S, self._stop_listening)
        elif self._fd >= 0:
            self._close()
            self._finish()

    def _finish(self) -> None:
        self._done(Result(self.status or 0, b"", self._transcript.tail, False, self.timed_out, self.seconds))
