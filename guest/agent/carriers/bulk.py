"""The second virtio-serial port, which carries nothing but frames (guest floor); made by `sessions`.

It behaves as `carriers.port` describes. One write takes at most 32 KiB and one read gives at most 4 KiB, but a vector
of pieces of that size is read or written whole with one system call. Source: Linux, drivers/char/virtio_console.c,
port_fops_write, fill_readbuf and add_port; fs/read_write.c, do_loop_readv_writev.
"""

import os

from ..loop import EDGE, HANGUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..loop import Loop
    from ..streams import Streams

_READ_PIECE_BYTES = 4096
_WRITE_PIECE_BYTES = 32768
_READ_BYTES = 131072
_READS_PER_TURN = 4
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
        self._pieces = _cut(self._buffer, _READ_PIECE_BYTES)
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
            if self._closed:
                return
            try:
                count = os.readv(self._fd, self._pieces)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose("reading failed: %s" % error.strerror)
                return
            if not count:
                return  # no host is there
            self._streams.receive(self._buffer[:count])
        self._loop.soon(self._read)

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
            self._rest = [header, *_cut(memoryview(payload), _WRITE_PIECE_BYTES)]
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


def _cut(view: memoryview, size: int) -> "list[memoryview]":
    return [view[at : at + size] for at in range(0, len(view), size)]
