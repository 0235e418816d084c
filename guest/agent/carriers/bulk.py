"""The second virtio-serial port, which carries nothing but frames (guest floor); made by `sessions`.

It behaves as `carriers.port` describes. A write takes at most 32 KiB and a read gives at most 4 KiB of it, so reads are
gathered in one buffer before anything looks at them. Source: Linux, drivers/char/virtio_console.c, port_fops_write,
fill_readbuf, and PAGE_SIZE in add_port.
"""

import os

from ..loop import EDGE, HANGUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..loop import Loop
    from ..streams import Streams

_READ_BYTES = 131072
_READS_PER_TURN = 2
_FRAMES_PER_TURN = 4
# A payload up to this is copied behind its header: one write more costs more than that.
_JOIN_BYTES = 16384


class BulkCarrier:
    """The bulk port, open.

    Args:
        on_lost: Called with a reason when the descriptor is of no more use; it is closed by then.
        on_host: Called with whether a host is there, when that changes.
    """

    frame_bytes = 262144

    def __init__(
        self,
        loop: "Loop",
        fd: int,
        streams: "Streams",
        on_lost: "Callable[[str], Any]",
        on_host: "Callable[[bool], Any]",
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._streams = streams
        self._on_lost = on_lost
        self._on_host = on_host
        self._connected = True
        self._closed = False
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._rest: "list[bytes | memoryview]" = []
        self._goes_on = False

    def start(self) -> None:
        """Begins to listen."""
        self._loop.add(self._fd, IN | OUT | HANGUP | EDGE, self._on_event)

    def wake(self) -> None:
        """Sends what there is to send."""
        if not self._goes_on:
            self._flush()

    def begin_again(self) -> None:
        """Gives up the frame that was begun: a new session starts with a whole one."""
        self._rest = []

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove(self._fd)
            os.close(self._fd)

    def _on_event(self, events: int) -> None:
        connected = not events & HANGUP
        if connected != self._connected:
            self._connected = connected
            self._on_host(connected)
        self.wake()
        self._read()

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            filled = self._fill()
            if filled:
                self._streams.receive(self._buffer[:filled])
            if filled < _READ_BYTES:
                return
        self._loop.soon(self._read)

    def _fill(self) -> int:
        """Reads until there is no more, or the buffer is full."""
        filled = 0
        while filled < _READ_BYTES and not self._closed:
            try:
                count = os.readv(self._fd, [self._buffer[filled:]])
            except BlockingIOError:
                break
            except OSError as error:
                self._lose("reading failed: %s" % error.strerror)
                break
            if not count:
                break  # no host is there
            filled += count
        return filled

    def _flush(self) -> None:
        self._goes_on = False
        for _ in range(_FRAMES_PER_TURN):
            if not self._rest and not self._take_frame():
                return
            if not self._write():
                return
        # Others have their turn before the next frames.
        self._goes_on = True
        self._loop.soon(self._flush)

    def _take_frame(self) -> bool:
        frame = self._streams.take_frame()
        if frame is None:
            return False
        header, payload = frame
        if len(payload) <= _JOIN_BYTES:
            self._rest = [header + bytes(payload)]
        else:
            self._rest = [header, memoryview(payload)]
        return True

    def _write(self) -> bool:
        """Writes the rest of a frame; False when not all of it went."""
        while self._rest and not self._closed:
            try:
                count = os.writev(self._fd, self._rest)
            except BlockingIOError:
                return False
            except OSError as error:
                self._lose("writing failed: %s" % error.strerror)
                return False
            if not count:
                return False
            while self._rest and count >= len(self._rest[0]):
                count -= len(self._rest.pop(0))
            if count:
                self._rest[0] = memoryview(self._rest[0])[count:]
        return not self._closed

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_lost("the bulk port was lost: " + reason)
