"""The virtio-serial port as a carrier of lines: reads, queues, reconnects (guest floor); made by `main`.

A port outlives its peer: while no host is connected it hangs up for ever, `read` gives 0 at once and `write` would
block. So it is watched edge-triggered, and a hang-up means "the host has gone", never "the end".
Source: Linux, drivers/char/virtio_console.c, port_fops_read, port_fops_write, port_fops_poll.
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
_PAUSE_ABOVE_BYTES = 2 * wire.MAX_ANSWER_BYTES
_MAX_UNASKED_BYTES = 256 * 1024


class PortCarrier:
    """One connection to the host over one file descriptor.

    Args:
        stays: Whether the descriptor outlives its peer, as a virtio-serial port does. Otherwise its end is the end.
        on_line: Called with each line, None for one that was too long.
        on_lost: Called with a reason when the descriptor is of no more use; it is closed by then.
        counters: Where what was dropped is counted.
    """

    def __init__(
        self,
        loop: "Loop",
        fd: int,
        stays: bool,
        on_line: "Callable[..., Any]",
        on_lost: "Callable[..., Any]",
        counters: "dict[str, Any]",
    ) -> None:
        self.connected = not stays
        self._loop = loop
        self._fd = fd
        self._stays = stays
        self._on_line = on_line
        self._on_lost = on_lost
        self._counters = counters
        self._decoder = wire.LineDecoder()
        self._queue: "list[tuple[int, bytes]]" = []
        self._queued_bytes = 0
        self._unasked_bytes = 0
        self._rest = b""
        self._cut = False
        self._paused = False
        self._closed = False
        self._flushed: "list[Any]" = []

    def start(self) -> None:
        """Begins to listen; what has already arrived is handled before this returns."""
        self._loop.add(self._fd, IN | OUT | HANGUP | EDGE, self._on_event)
        self._read()

    def send(self, line: bytes, kind: int) -> None:
        """Queues one line. An answer to a host that has gone is dropped, and so is a heartbeat that nobody hears.

        What nobody asked for is bounded: the oldest heartbeats are dropped first, then the oldest status messages.
        """
        if self._closed:
            return
        if not self.connected and kind != STATUS:
            self._drop(kind)
            return
        if not self._queue and not self._rest and not self._cut and self.connected:
            line = line[self._write(line) :]
            if line and not self._closed:
                self._rest = line
            return
        self._queue.append((kind, line))
        self._queued_bytes += len(line)
        if kind != ANSWER:
            self._unasked_bytes += len(line)
            self._bound()
        self._flush()

    def when_flushed(self, callback: "Callable[..., Any]") -> None:
        """Calls `callback()` once the kernel has taken all that is queued now, or nobody is there to take it."""
        self._flushed.append(callback)
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

    # Reading

    def _on_event(self, events: int) -> None:
        gone = bool(events & HANGUP)
        if self._stays and gone == self.connected:
            self.connected = not gone
            if gone:
                self._forget_host()
            else:
                self._counters["host_connections"] += 1
        if not self._closed:
            self._flush()
        if not self._closed and not self._paused:
            self._read()
        if gone and self._stays:
            self._decoder.reset()

    def _read(self) -> None:
        self._paused = False
        for _ in range(_READS_PER_TURN):
            if self._closed:
                return
            if self._queued_bytes > _PAUSE_ABOVE_BYTES:
                # A host that asks and does not listen is not read from: its own writes stop, our memory does not grow.
                self._paused = True
                return
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose("reading failed: %s" % error.strerror)
                return
            if not data:
                if not self._stays:
                    self._lose("the host closed the connection")
                return
            if self._stays and not self.connected:
                self._see_connected()
            for line in self._decoder.feed(data):
                self._on_line(line)
        self._loop.soon(self._read_again)

    def _read_again(self) -> None:
        if not self._closed and not self._paused:
            self._read()

    def _see_connected(self) -> None:
        """Finds out whether the bytes just read come from a host that is there, or were left by one that has gone."""
        import select

        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        if not any(events & select.POLLHUP for _, events in poller.poll(0)):
            self.connected = True
            self._counters["host_connections"] += 1

    # Writing

    def _write(self, data: bytes) -> int:
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
        while self.connected and not self._closed and (self._rest or self._queue):
            if not self._rest:
                kind, line = self._queue.pop(0)
                self._queued_bytes -= len(line)
                if kind != ANSWER:
                    self._unasked_bytes -= len(line)
                # After a line that was cut short, a line feed makes the next one whole for whoever reads it.
                self._rest = b"\n" + line if self._cut else line
                self._cut = False
            self._rest = self._rest[self._write(self._rest) :]
            if self._rest:
                break
        if self._paused and self._queued_bytes <= _PAUSE_ABOVE_BYTES // 2:
            self._paused = False
            self._loop.soon(self._read_again)
        if self._flushed and (self._closed or not self.connected or not (self._rest or self._queue)):
            self._run_flushed()

    def _run_flushed(self) -> None:
        callbacks, self._flushed = self._flushed, []
        for callback in callbacks:
            self._loop.soon(callback)

    def _bound(self) -> None:
        for kind in (HEARTBEAT, STATUS):
            at = 0
            while self._unasked_bytes > _MAX_UNASKED_BYTES and at < len(self._queue):
                if self._queue[at][0] == kind:
                    line = self._queue.pop(at)[1]
                    self._queued_bytes -= len(line)
                    self._unasked_bytes -= len(line)
                    self._drop(kind)
                else:
                    at += 1

    def _forget_host(self) -> None:
        """Drops what only the host that has gone was waiting for."""
        if self._rest:
            self._rest = b""
            self._cut = True
        kept = [(kind, line) for kind, line in self._queue if kind == STATUS]
        for kind, _ in self._queue:
            if kind != STATUS:
                self._drop(kind)
        self._queue = kept
        self._queued_bytes = self._unasked_bytes = sum(len(line) for _, line in kept)
        self._paused = False

    def _drop(self, kind: int) -> None:
        self._counters[("answers_dropped", "status_dropped", "heartbeats_dropped")[kind]] += 1

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_lost(reason)
