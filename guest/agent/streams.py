"""Streams: bytes of any size in and out, many at once, each with its own credit (guest floor).

Made by `main` when a session begins; used by whatever handler moves bytes: exec, files, logs, packages. How to use it:

    reader = call.agent.streams.open_reader(number, on_data, on_end, on_reset)
    writer = call.agent.streams.open_writer(number, on_reset)

Both are opened before the call is answered, with a number that the host chose (`check_number` is the check for the
table of parameters). Both raise the `CallError` that the call is to be answered with when there is no session, no
bulk port, or the number is taken. If the call then fails for another reason, `close()` forgets the stream without a
word.

*Reader* (host to guest). `on_data(piece)` gets a memoryview that is valid during the call only: use it or copy it. The
host may send 262144 bytes at first. `reader.grant(count)` allows `count` bytes more, so call it with what was got rid
of; whoever does not grant is sent nothing more and holds up nobody else. Granting beyond that (up to 16 MiB) makes
for speed where a byte that came is gone at once. `on_end()` is called once after the last byte; `on_reset(reason)`
instead when the host gives up, the session ends, or the wire broke. After either the reader is of no more use.
`reader.reset(reason)` gives up from this side: nothing is called any more.

*Writer* (guest to host). `writer.write(data)` always takes `data` (bytes, or a memoryview that nobody changes any
more) and gives True while there is room for more. On False stop, and call `writer.when_ready(callback)`: `callback()`
is called once when there is room again. `writer.end()` ends the stream after what was written; it needs no waiting,
the rest goes out by itself. `writer.reset(reason)` gives up and drops the rest. `on_reset(reason)` is called when the
host no longer wants the bytes, the session ends, or the wire broke; what is written afterwards is dropped, and who
waits for room is told that there is some.

None of these functions calls a callback before it returns.
"""

from . import dispatch, frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from .loop import Loop

    class Transport(Protocol):
        """Takes frames from `Streams.take_frame` as the wire takes them."""

        frame_bytes: int

        def wake(self) -> None: ...


MAX_OPEN = 1024
FIRST_CREDIT_BYTES = 262144
MAX_AHEAD_BYTES = 16 * 1024 * 1024
# A writer that holds this much is full; a stream that the host does not read costs no more than this and one piece.
FULL_BYTES = 65536
# Credit is told in portions of this, so that a small piece does not cost a frame of its own.
_CREDIT_STEP_BYTES = 65536


def check_number(value: object) -> "str | None":
    """The check of a parameter that is the number of a stream."""
    if type(value) is int and 1 <= value <= 0xFFFFFFFF:
        return None
    return "is not the number of a stream, an integer from 1 to 4294967295"


def raise_later(loop: "Loop", error: Exception) -> None:
    """Has the loop report `error`, as it reports whatever a callback lets escape."""

    def fail() -> None:
        raise error

    loop.soon(fail)


class Reader:
    """A stream from the host. See the module."""

    def __init__(
        self,
        streams: "Streams",
        number: int,
        on_data: "Callable[[memoryview], Any]",
        on_end: "Callable[[], Any]",
        on_reset: "Callable[[str], Any]",
    ) -> None:
        self.number = number
        self.on_data = on_data
        self.on_end = on_end
        self.on_reset = on_reset
        self.credit = FIRST_CREDIT_BYTES
        self._granted = 0
        self._streams = streams

    def grant(self, count: int) -> None:
        """Lets the host send `count` bytes more."""
        self._granted += count
        if self._granted >= _CREDIT_STEP_BYTES and self._streams.is_open(self):
            self.credit += self._granted
            self._streams.send(frames.build_credit(self.number, self._granted))
            self._granted = 0

    def reset(self, reason: str) -> None:
        """Gives the stream up and tells the host why."""
        self._streams.reset(self, reason)

    def close(self) -> None:
        """Forgets the stream without a word."""
        self._streams.forget(self)


class Writer:
    """A stream to the host. See the module."""

    def __init__(self, streams: "Streams", number: int, on_reset: "Callable[[str], Any] | None") -> None:
        self.number = number
        self.on_reset = on_reset
        self.credit = FIRST_CREDIT_BYTES
        self.queued_bytes = 0
        self.ended = False
        self.waits_for_turn = False
        self._pieces: "list[bytes | memoryview]" = []
        self._ready: "Callable[[], Any] | None" = None
        self._streams = streams

    def write(self, data: "bytes | memoryview") -> bool:
        """Sends `data`, sooner or later; gives whether there is room for more."""
        if data and self._streams.is_open(self) and not self.ended:
            self._pieces.append(data)
            self.queued_bytes += len(data)
            self._streams.give_turn(self)
        return self.queued_bytes < FULL_BYTES

    def when_ready(self, callback: "Callable[[], Any]") -> None:
        """Calls `callback()` once, in a later turn, when there is room."""
        self._ready = callback
        self.tell_ready()

    def end(self) -> None:
        """Ends the stream after what was written."""
        if not self.ended and self._streams.is_open(self):
            self.ended = True
            self._streams.give_turn(self)

    def reset(self, reason: str) -> None:
        """Gives the stream up, with what still waits, and tells the host why."""
        self._streams.reset(self, reason)

    def close(self) -> None:
        """Forgets the stream without a word."""
        self._streams.forget(self)

    # For Streams only

    def can_send(self) -> bool:
        return (self.queued_bytes > 0 and self.credit > 0) or (self.ended and not self.queued_bytes)

    def tell_ready(self) -> None:
        if self._ready is not None and self.queued_bytes < FULL_BYTES:
            callback, self._ready = self._ready, None
            self._streams.loop.soon(callback)

    def take(self, limit: int) -> "bytes | memoryview":
        """The next bytes to send, at most `limit` and what the credit allows."""
        limit = min(limit, self.credit)
        taken: "list[bytes | memoryview]" = []
        count = 0
        while self._pieces and count < limit:
            piece = self._pieces[0]
            room = limit - count
            if len(piece) > room:
                self._pieces[0] = memoryview(piece)[room:]
                piece = memoryview(piece)[:room]
            else:
                self._pieces.pop(0)
            taken.append(piece)
            count += len(piece)
        self.credit -= count
        self.queued_bytes -= count
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def drop(self) -> None:
        self._pieces.clear()
        self.queued_bytes = 0


class Streams:
    """All streams of the session, and the frames they become.

    Args:
        on_broken: Called with a reason when the wire can no longer be understood; all streams have been reset by then.
    """

    def __init__(self, loop: "Loop", on_broken: "Callable[[str], Any]") -> None:
        self.loop = loop
        self._on_broken = on_broken
        self._transport: "Transport | None" = None
        self._session = ""
        self._fault = ""
        self._heard_hello = False
        self._open: "dict[int, Reader | Writer]" = {}
        self._decoder = frames.FrameDecoder(self._take_data, self._take_frame)
        self._control: "list[bytes]" = []
        self._turns: "list[Writer]" = []

    # What handlers use

    @property
    def available(self) -> bool:
        """Whether there is a wire to carry streams."""
        return self._transport is not None

    def open_reader(
        self,
        number: int,
        on_data: "Callable[[memoryview], Any]",
        on_end: "Callable[[], Any]",
        on_reset: "Callable[[str], Any]",
    ) -> Reader:
        """Opens a stream from the host.

        Raises:
            CallError: There is no session, no wire, or no room, or the number is taken.
        """
        self._check(number)
        reader = self._open[number] = Reader(self, number, on_data, on_end, on_reset)
        return reader

    def open_writer(self, number: int, on_reset: "Callable[[str], Any] | None" = None) -> Writer:
        """Opens a stream to the host.

        Raises:
            CallError: There is no session, no wire, or no room, or the number is taken.
        """
        self._check(number)
        writer = self._open[number] = Writer(self, number, on_reset)
        return writer

    # What the session uses

    def attach(self, transport: "Transport | None") -> None:
        """Takes a wire into use, None when there is none any more."""
        self._transport = transport

    def begin(self, session: str) -> None:
        """Begins a session on the wire; what the one before had open is reset. `say_hello` belongs after the answer."""
        self._reset_all("the session ended")
        self._session = session
        self._fault = ""
        self._heard_hello = False
        self._decoder.expect(session)

    def say_hello(self) -> None:
        self.send(frames.build_hello(self._session))

    def resume(self) -> None:
        """Begins the session anew on a wire that came after it."""
        self.begin(self._session)
        self.say_hello()

    def end(self, reason: str) -> None:
        """Ends the session on the wire."""
        self._session = ""
        self._decoder.stop()
        self._reset_all(reason)

    def fail(self, reason: str) -> None:
        """The wire can no longer be trusted: ends its use until the next session, and says so."""
        if self._session and not self._fault:
            self._fault = reason
            self._decoder.stop()
            self._reset_all(reason)
            self._on_broken(reason)

    # What the wire uses

    def receive(self, data: memoryview) -> None:
        """Takes bytes of the bulk port."""
        try:
            self._decoder.feed(data)
        except frames.FrameError as error:
            self.fail(str(error))

    def receive_line(self, line: bytes) -> None:
        """Takes a line that begins with F5."""
        try:
            kind, stream, payload = frames.decode_line(line)
            if kind == frames.HELLO:
                if self._heard_hello:
                    raise frames.FrameError("a second HELLO came")
                self._heard_hello = payload == self._session.encode("ascii")
            elif self._heard_hello and not self._fault:
                if kind == frames.DATA:
                    self._take_data(stream, memoryview(payload))
                else:
                    self._take_frame(kind, stream, payload)
        except frames.FrameError as error:
            # Before its HELLO a session has nothing on this wire: what came is left over from an earlier one.
            if self._heard_hello:
                self.fail(str(error))

    def take_frame(self) -> "tuple[bytes, bytes | memoryview] | None":
        """The next frame to send, as a header and a payload; None when there is none. Writers take turns."""
        if self._control:
            return self._control.pop(0), b""
        transport = self._transport
        if not self._turns or transport is None:
            return None
        writer = self._turns.pop(0)
        writer.waits_for_turn = False
        if not writer.queued_bytes:
            self.forget(writer)
            return frames.build_header(frames.END, writer.number, 0), b""
        payload = writer.take(transport.frame_bytes)
        if writer.can_send():
            writer.waits_for_turn = True
            self._turns.append(writer)
        writer.tell_ready()
        return frames.build_header(frames.DATA, writer.number, len(payload)), payload

    def take_line(self) -> "bytes | None":
        """The next frame to send, as a line; None when there is none."""
        frame = self.take_frame()
        return None if frame is None else frames.encode_line(frame[0] + bytes(frame[1]))

    # What readers and writers use

    def is_open(self, stream: "Reader | Writer") -> bool:
        return self._open.get(stream.number) is stream

    def send(self, frame: bytes) -> None:
        """Sends a frame without content before all content that waits."""
        if self._transport is not None:
            self._control.append(frame)
            self._transport.wake()

    def give_turn(self, writer: Writer) -> None:
        if not writer.waits_for_turn and writer.can_send() and self._transport is not None:
            writer.waits_for_turn = True
            self._turns.append(writer)
            self._transport.wake()

    def reset(self, stream: "Reader | Writer", reason: str) -> None:
        if self.is_open(stream):
            self.forget(stream)
            self.send(frames.build_reset(stream.number, reason))

    def forget(self, stream: "Reader | Writer") -> None:
        if self.is_open(stream):
            del self._open[stream.number]
            if isinstance(stream, Writer):
                stream.drop()
                if stream.waits_for_turn:
                    stream.waits_for_turn = False
                    self._turns.remove(stream)

    def _check(self, number: int) -> None:
        if not self._session:
            raise dispatch.CallError(dispatch.INVALID_REQUEST, "there is no session: begin with hello")
        if self._transport is None:
            raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no port for streams")
        if self._fault:
            raise dispatch.CallError(dispatch.FAILED, "the streams of this session are broken: " + self._fault)
        if number in self._open:
            text = "stream %d is open already" % number
            raise dispatch.CallError(dispatch.INVALID_PARAMS, text, {"stream": number})
        if len(self._open) >= MAX_OPEN:
            raise dispatch.CallError(dispatch.BUSY, "%d streams are open already" % len(self._open))

    def _reset_all(self, reason: str) -> None:
        streams = list(self._open.values())
        self._control.clear()
        for stream in streams:
            self.forget(stream)
        for stream in streams:
            self._tell_reset(stream, reason)

    def _tell_reset(self, stream: "Reader | Writer", reason: str) -> None:
        on_reset = stream.on_reset
        if on_reset is not None:
            self.loop.soon(lambda: on_reset(reason))
        if isinstance(stream, Writer):
            stream.tell_ready()  # whoever waits for room goes on: what it writes from now on is dropped

    def _take_data(self, number: int, piece: memoryview) -> None:
        stream = self._open.get(number)
        if stream is None:
            return  # given up a moment ago
        if not isinstance(stream, Reader):
            raise frames.FrameError("data came for stream %d, which goes to the host" % number)
        stream.credit -= len(piece)
        if stream.credit < 0:
            raise frames.FrameError("more came for stream %d than it had credit" % number)
        try:
            stream.on_data(piece)
        except Exception as error:
            # The bytes after these are other streams': one that cannot be handled must not take them along.
            self.reset(stream, "%s: %s" % (type(error).__name__, error))
            self._tell_reset(stream, "its bytes could not be handled")
            raise_later(self.loop, error)

    def _take_frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == frames.HELLO:
            raise frames.FrameError("a second HELLO came")
        stream = self._open.get(number)
        if stream is None:
            return
        if kind == frames.RESET:
            self.forget(stream)
            self._tell_reset(stream, payload.decode("utf-8", "replace"))
        elif kind == frames.CREDIT:
            if not isinstance(stream, Writer):
                raise frames.FrameError("credit came for stream %d, which comes from the host" % number)
            stream.credit += frames.read_credit(payload)
            self.give_turn(stream)
        else:
            if not isinstance(stream, Reader):
                raise frames.FrameError("an end came for stream %d, which goes to the host" % number)
            self.forget(stream)
            self.loop.soon(stream.on_end)
