"""The virtio-serial port as a carrier of lines: reads, queues, reconnects (guest floor); made by `main`.

A port outlives its peer: while no host is connected it hangs up for ever, `read` gives 0 at once and `write` would
block. So it is then watched edge-triggered, and a hang-up means "the host has gone", never "the end". With a host there
it is watched for what is waited for and for nothing else: a port is woken each time the host has taken something, and
each wake-up would cost as much as a ping.
Source: Linux, drivers/char/virtio_console.c, port_fops_read, port_fops_write, port_fops_poll, out_intr.
"""

import os

from .. import wire
from ..loop import EDGE, HANGUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..loop import Loop

ANSWER = 0
STATUS = 1
HEARTBEAT = 2

_READ_BYTES = 65536
_READS_PER_TURN = 16
# One read gives at most this much of a virtio-serial port: less, and there is most likely no more.
_FULL_READ_BYTES = 4096
_PAUSE_ABOVE_BYTES = 2 * wire.MAX_ANSWER_BYTES
_MAX_WAITING_BYTES = 256 * 1024
_FRAME_BYTES = 65536
# A third of a second at 115200 baud.
_TERMINAL_FRAME_BYTES = 4096


class PortCarrier:
    """One connection to the host over one file descriptor.

    Args:
        stays: Whether the descriptor outlives its peer, as a virtio-serial port does. Otherwise its end is the end.
        on_line: Called with each line, None for one that was too long.
        on_lost: Called with a reason when the descriptor is of no more use; it is closed by then.
        on_host: Called with whether a host is there, when that changes on a descriptor that stays.
        counters: Where what was dropped is counted.
    """

    def __init__(
        self,
        loop: "Loop",
        fd: int,
        stays: bool,
        on_line: "Callable[..., Any]",
        on_lost: "Callable[..., Any]",
        on_host: "Callable[[bool], Any]",
        counters: "dict[str, Any]",
    ) -> None:
        self.connected = not stays
        self.stays = stays
        # What waits behind a frame waits for all of it, which a slow line takes its time for.
        self.frame_bytes = _TERMINAL_FRAME_BYTES if os.isatty(fd) else _FRAME_BYTES
        self._loop = loop
        self._fd = fd
        self._on_line = on_line
        self._on_lost = on_lost
        self._on_host = on_host
        self._counters = counters
        self._decoder = wire.LineDecoder()
        self._queue: "list[tuple[int, bytes]]" = []
        self._queued_bytes = 0
        self._unasked_bytes = 0
        self._rest: "bytes | memoryview" = b""
        self._cut = False
        self._paused = False
        self._blocked = False
        self._watched = 0
        self._closed = False
        self._flushed: "list[Any]" = []
        self._take_frame: "Callable[[], bytes | None] | None" = None

    def start(self) -> None:
        """Begins to listen; what has already arrived is handled before this returns."""
        self._watched = self._choose_events()
        self._loop.add(self._fd, self._watched, self._on_event)
        self._read()

    def send(self, line: bytes, kind: int) -> None:
        """Queues one line, and sends it if the host takes it.

        What may wait is bounded: of what nobody asked for, the oldest heartbeats go first, then the oldest status
        messages; of the answers the oldest, but only while no host is there.
        """
        if self._closed or (kind == HEARTBEAT and not self.connected):
            self._drop(kind)
            return
        self._queue.append((kind, line))
        self._count(kind, len(line))
        self._flush()
        if self._queue:
            self._bound()

    def when_flushed(self, callback: "Callable[..., Any]") -> None:
        """Calls `callback()` once the kernel has taken all that is queued now, or nobody is there to take it."""
        self._flushed.append(callback)
        self._flush()

    def carry(self, take_frame: "Callable[[], bytes | None]") -> None:
        """Sends frames as lines too, whenever no other line waits; `take_frame` gives the next line or None."""
        self._take_frame = take_frame

    def wake(self) -> None:
        """Sends what there is to send."""
        self._flush()

    def close(self) -> None:
        """Lets go of the descriptor; what was queued is dropped."""
        if not self._closed:
            self._closed = True
            self.connected = False
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._run_flushed()

    def take_status(self) -> "list[bytes]":
        """Gives the status lines that were never sent, for the carrier that comes after this one."""
        return [line for kind, line in self._queue if kind == STATUS]

    # Events

    def _choose_events(self) -> int:
        if not self.connected:
            return IN | OUT | HANGUP | EDGE
        return (0 if self._paused else IN) | (OUT if self._blocked else 0) | HANGUP

    def _watch(self) -> None:
        events = self._choose_events()
        # Before `start` nothing is watched yet, though lines may wait already.
        if self._watched and events != self._watched and not self._closed:
            self._watched = events
            self._loop.change(self._fd, events)

    def _on_event(self, events: int) -> None:
        gone = bool(events & HANGUP)
        if self.stays and gone == self.connected:
            self.connected = not gone
            self._watch()
            if gone:
                self._forget_host()
            else:
                self._counters["host_connections"] += 1
            self._on_host(not gone)
            self._flush()
        elif events & OUT:
            self._flush()
        if not self._closed and not self._paused:
            self._read()

    # Reading

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._closed:
                return
            if self._queued_bytes > _PAUSE_ABOVE_BYTES:
                # A host that asks and does not listen is not read from: its own writes stop, our memory does not grow.
                self._paused = True
                self._watch()
                return
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose("reading failed: %s" % error.strerror)
                return
            if not data:
                if not self.stays:
                    self._lose("the host closed the connection")
                return
            for line in self._decoder.feed(data):
                self._on_line(line)
            if len(data) < _FULL_READ_BYTES:
                return

    # Writing

    def _write(self, data: "bytes | memoryview") -> int:
        """Writes as much as goes; loses the port when it is broken."""
        written = 0
        view = memoryview(data)
        while written < len(data):
            try:
                count = os.write(self._fd, view[written:])
            except BlockingIOError:
                break
            except OSError as error:
                self._lose("writing failed: %s" % error.strerror)
                break
            if count == 0:
                break
            written += count
        return written

    def _flush(self) -> None:
        while self.connected and not self._closed:
            if self._rest:
                self._rest = self._rest[self._write(self._rest) :]
                if self._rest:
                    break
            elif not (self._begin_line() if self._queue else self._begin_frame()):
                break
        blocked = bool(self._rest or self._queue)
        paused = self._paused and self._queued_bytes > _PAUSE_ABOVE_BYTES // 2
        if blocked != self._blocked or paused != self._paused:
            self._blocked, self._paused = blocked, paused
            self._watch()
        if self._flushed and (self._closed or not self.connected or not (self._rest or self._queue)):
            self._run_flushed()

    def _begin_line(self) -> bool:
        """Begins to write the next line; False when not a byte of it went, and it waits on."""
        kind, line = self._queue[0]
        # After a line that was cut short, a line feed makes the next one whole for whoever reads it.
        data = b"\n" + line if self._cut else line
        written = self._write(data)
        if not written or self._closed:
            return False
        self._queue.pop(0)
        self._count(kind, -len(line))
        self._cut = False
        self._rest = data[written:]
        return True

    def _begin_frame(self) -> bool:
        line = self._take_frame() if self._take_frame is not None else None
        self._rest = memoryview(line or b"")
        return line is not None

    def _run_flushed(self) -> None:
        callbacks, self._flushed = self._flushed, []
        for callback in callbacks:
            self._loop.soon(callback)

    def _bound(self) -> None:
        for kind in (HEARTBEAT, STATUS) if self.connected else (HEARTBEAT, ANSWER, STATUS):
            at = 0
            while at < len(self._queue) and self._bounded_bytes() > _MAX_WAITING_BYTES:
                if self._queue[at][0] == kind:
                    self._count(kind, -len(self._queue.pop(at)[1]))
                    self._drop(kind)
                else:
                    at += 1

    def _bounded_bytes(self) -> int:
        # A host that is there and asks too much is held up by not being read from; nothing of its answers is dropped.
        return self._unasked_bytes if self.connected else self._queued_bytes

    def _count(self, kind: int, size: int) -> None:
        self._queued_bytes += size
        if kind != ANSWER:
            self._unasked_bytes += size

    def _forget_host(self) -> None:
        """Gives up the line that the host which has gone had begun to receive.

        Whole answers wait on: the notice that a host is there comes later than its first request, so they may be for
        the next one already. A host drops answers to requests that are not its own.
        """
        if self._rest:
            self._rest = b""
            self._cut = True
            self._drop(ANSWER)
        self._bound()

    def _drop(self, kind: int) -> None:
        self._counters[("answers_dropped", "status_dropped", "heartbeats_dropped")[kind]] += 1

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_lost(reason)
