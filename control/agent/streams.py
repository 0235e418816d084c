"""Bytes of any size between host and guest, many streams at once, none of them in another's way (floor 2).

Used by `client`; its callers get an `Incoming` or `Outgoing` at a time. Each stream has a credit, so that neither side
holds more than it has granted: see docs/protocol.md, "Streams". The guest is not trusted to keep to it.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable

from control.agent import frames
from control.agent.connection import ENDED, Outbox
from control.agent.frames import Frame, FrameDecoder, FrameError
from control.errors import AgentProtocolError

FIRST_CREDIT_BYTES = 262144
WIDE_BYTES = 4 * 1024 * 1024
"""What is granted ahead for a stream that carries files: more than a guest sends while this host looks elsewhere."""

OPEN_LIMIT = 1024
WRITTEN_AHEAD_BYTES = 1024 * 1024
"""How much `Outgoing.drain` leaves waiting in this process."""

_CREDIT = struct.Struct("<I")


class _End:
    """How a stream came to its end, if it has, and who waits for something to happen to it."""

    def __init__(self, streams: Streams, number: int) -> None:
        self.number = number
        self.error: AgentProtocolError | None = None
        self.ended = False
        self._streams = streams
        self._waiter: asyncio.Future[None] | None = None

    def fail(self, why: str) -> None:
        """Let who waits, and who comes later, know that the stream broke off."""
        if not self.ended:
            self.error = AgentProtocolError(why)
            self.ended = True
            self._wake()

    def give_up(self, why: str) -> None:
        """End the stream before its time, in both directions; the guest is told."""
        if not self.ended:
            self._streams.forget(self.number, why)
            self.fail(why)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._waiter is None or self._waiter.done():
            self._waiter = asyncio.get_running_loop().create_future()
        # Several may wait: the one that gives up must not take the others' word along.
        await asyncio.shield(self._waiter)


class Incoming(_End):
    """A stream from the guest. One reader at a time; what is not read holds the guest up, and takes bounded memory."""

    def __init__(self, streams: Streams, number: int) -> None:
        super().__init__(streams, number)
        self._window = FIRST_CREDIT_BYTES
        self._credit = FIRST_CREDIT_BYTES
        self._taken = 0
        self._buffer = bytearray()

    def widen(self, window: int = WIDE_BYTES) -> None:
        """Let the guest send so much ahead; call it once the guest has opened the stream."""
        if not self.ended and window > self._window:
            self._grant(window - self._window)
            self._window = window

    async def read(self) -> bytes | bytearray:
        """Return what came since the last call, waiting for something; empty when the stream is at its end.

        Raises:
            AgentProtocolError: The stream broke off; what came before that has been returned.
        """
        while not (self._buffer or self.ended):
            await self._wait()
        if not self._buffer:
            if self.error is not None:
                raise self.error
            return b""
        data, self._buffer = self._buffer, bytearray()
        self._taken += len(data)
        if not self.ended and self._taken * 2 >= self._window:
            taken, self._taken = self._taken, 0
            self._grant(taken)
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self.read():
            yield bytes(data)

    def take(self, payload: bytes | memoryview) -> None:
        """Take bytes of the guest. Raises FrameError when it sends more than it may."""
        self._credit -= len(payload)
        if self._credit < 0:
            raise FrameError(f"more than the credit of stream {self.number}")
        self._buffer += payload
        self._wake()

    def finish(self) -> None:
        self.ended = True
        self._wake()

    def _grant(self, size: int) -> None:
        self._credit += size
        self._streams.send(frames.CREDIT, self.number, _CREDIT.pack(size))


class Outgoing(_End):
    """A stream to the guest, which takes it as fast as it likes."""

    def __init__(self, streams: Streams, number: int) -> None:
        super().__init__(streams, number)
        self.waiting_bytes = 0
        self._credit = FIRST_CREDIT_BYTES
        self._opened = False
        self._waiting: deque[memoryview] = deque()
        self._closing = False

    def open(self) -> None:
        """Begin to send: the guest has opened the stream."""
        self._opened = True
        self._streams.pump(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, now or as soon as the guest takes it; it must not be changed meanwhile.

        Raises:
            AgentProtocolError: The stream broke off, or was closed before.
        """
        if self.error is not None:
            raise self.error
        if self._closing:
            raise AgentProtocolError("the stream was closed already")
        if data:
            self._waiting.append(memoryview(data))
            self.waiting_bytes += len(data)
            self._streams.pump(self)

    async def drain(self, left: int = WRITTEN_AHEAD_BYTES) -> None:
        """Wait until no more than `left` bytes wait here.

        Raises:
            AgentProtocolError: The stream broke off.
        """
        while self.waiting_bytes > left and not self.ended:
            await self._wait()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Let the guest see the end of the stream, behind all that was written; nothing happens a second time."""
        if not (self._closing or self.ended):
            self._closing = True
            self._streams.pump(self)

    def add_credit(self, size: int) -> None:
        self._credit += size
        self._streams.pump(self)

    @property
    def can_send(self) -> bool:
        if self.ended or not self._opened:
            return False
        return self._credit > 0 if self._waiting else self._closing

    def next_piece(self, limit: int) -> memoryview | None:
        """Take out what the next frame carries, at most `limit` bytes; None when it is the end."""
        if not self._waiting:
            self.ended = True
            return None
        first = self._waiting[0]
        piece = first[: min(limit, self._credit)]
        if len(piece) == len(first):
            self._waiting.popleft()
        else:
            self._waiting[0] = first[len(piece) :]
        self._credit -= len(piece)
        self.waiting_bytes -= len(piece)
        self._wake()
        return piece


class Streams:
    """All streams of one session over one connection.

    Args:
        as_lines: The connection carries JSON lines as well, so each frame is a line.
        frame_bytes: How much a frame carries; on a slow line a call must not wait behind much of it.
        on_broken: Told why, when the guest sent what is no frame; all streams have failed by then.
    """

    def __init__(
        self, outbox: Outbox, *, as_lines: bool, frame_bytes: int = 0, on_broken: Callable[[str], None]
    ) -> None:
        self.why_not = "the guest agent is not there yet"
        self._outbox = outbox
        self._as_lines = as_lines
        self._frame_bytes = frame_bytes or (frames.LINE_PAYLOAD_LIMIT_BYTES if as_lines else frames.PAYLOAD_LIMIT_BYTES)
        self._on_broken = on_broken
        self._open: dict[int, Incoming | Outgoing] = {}
        self._sending: deque[Outgoing] = deque()
        self._count = 0
        self._session = ""
        self._greeted = False  # the guest has sent the HELLO of this session
        self._decoder: FrameDecoder | None = None
        outbox.on_room = self._pump_all

    def begin(self, session: str) -> None:
        """Throw away what comes until the guest's `HELLO` of `session`; streams of the session before have failed."""
        self._session = session
        self._greeted = False
        self._decoder = FrameDecoder(session)
        self._count = 0
        if not self._as_lines:
            self._outbox.clear()

    def greet(self) -> None:
        """Send our `HELLO`: the guest has answered; streams can be opened from now on."""
        self.why_not = ""
        self.send(frames.HELLO, 0, self._session.encode("ascii"))

    def fail(self, why: str) -> None:
        """Fail every stream, and every one that is opened before the next session."""
        self.why_not = why
        self._decoder = None
        self._greeted = False
        streams = list(self._open.values())
        self._open.clear()
        self._sending.clear()
        for stream in streams:
            stream.fail(why)

    def open_incoming(self) -> Incoming:
        """Make a stream from the guest; name its number in a call. Raises AgentProtocolError when there is none."""
        stream = Incoming(self, self._choose_number())
        self._open[stream.number] = stream
        return stream

    def open_outgoing(self) -> Outgoing:
        """Make a stream to the guest; name its number in a call. Raises AgentProtocolError when there is none."""
        stream = Outgoing(self, self._choose_number())
        self._open[stream.number] = stream
        return stream

    def _choose_number(self) -> int:
        if self.why_not:
            raise AgentProtocolError(self.why_not)
        if len(self._open) >= OPEN_LIMIT:
            raise AgentProtocolError(
                f"{OPEN_LIMIT} streams are open already", hint="let some of what runs in the guest end first"
            )
        self._count += 1
        return self._count

    def forget(self, number: int, why: str) -> None:
        """Give up the stream `number` and tell the guest so."""
        if self._open.pop(number, None) is not None:
            self.send(frames.RESET, number, why.encode()[: frames.REASON_LIMIT_BYTES])

    # -- to the guest ----------------------------------------------------------------------------------------------

    def send(self, kind: int, number: int, payload: bytes | memoryview = b"") -> None:
        if self._outbox.ended:
            return  # the end of the connection fails every stream by itself
        if self._as_lines:
            record = frames.encode_line(kind, number, payload)
        else:
            record = b"".join((frames.build_header(kind, number, len(payload)), payload))
        try:
            self._outbox.send(record)
        except AgentProtocolError:
            self.fail(ENDED)

    def pump(self, stream: Outgoing) -> None:
        """Send what `stream` has and may send, in its turn."""
        if stream.can_send and stream not in self._sending:
            self._sending.append(stream)
            self._pump_all()

    def _pump_all(self) -> None:
        while self._sending and self._outbox.waiting_bytes < self._frame_bytes and not self._outbox.ended:
            stream = self._sending.popleft()
            if not stream.can_send:
                continue
            piece = stream.next_piece(self._frame_bytes)
            if piece is None:
                self._open.pop(stream.number, None)
                self.send(frames.END, stream.number)
            else:
                self.send(frames.DATA, stream.number, piece)
                if stream.can_send:
                    self._sending.append(stream)

    # -- from the guest --------------------------------------------------------------------------------------------

    def feed(self, data: memoryview) -> None:
        """Take bytes of a connection that carries frames only."""
        if self._decoder is None:
            return  # between two sessions: whatever comes is of the one before
        try:
            for frame in self._decoder.feed(data):
                self._take(frame)
        except FrameError as error:
            self._break(str(error))

    def take_line(self, line: bytes) -> None:
        """Take a line that begins with `frames.LINE_MARK`."""
        if self._decoder is None:
            return
        try:
            frame = frames.decode_line(line)
            if self._greeted:
                self._take(frame)
            elif frame.kind == frames.HELLO and frame.payload == self._session.encode("ascii"):
                self._greeted = True
        except FrameError as error:
            if self._greeted:  # before it, it is the rest of something from the session before
                self._break(str(error))

    def _break(self, why: str) -> None:
        self.fail(f"the guest's streams broke: {why}")
        self._on_broken(why)

    def _take(self, frame: Frame) -> None:
        stream = self._open.get(frame.stream)
        if frame.kind == frames.HELLO:
            raise FrameError("a second HELLO in a session")
        if stream is None:
            return  # given up a moment ago
        if frame.kind == frames.RESET:
            del self._open[frame.stream]
            why = "".join(
                character if character.isprintable() else "?"
                for character in bytes(frame.payload).decode("utf-8", "replace")[:300]
            )
            stream.fail(f"the guest gave a stream up: {why}")
        elif isinstance(stream, Outgoing):
            if frame.kind != frames.CREDIT:
                raise FrameError(f"bytes for stream {frame.stream}, which goes the other way")
            stream.add_credit(_CREDIT.unpack(frame.payload)[0])
        elif frame.kind == frames.DATA:
            stream.take(frame.payload)
        elif frame.kind == frames.END:
            del self._open[frame.stream]
            stream.finish()
        else:
            raise FrameError(f"credit for stream {frame.stream}, which goes the other way")
