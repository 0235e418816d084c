"""Frames: how the bytes of streams are cut up on the wire, in the bulk form and in the line form (guest floor).

Used by `streams`, and by nothing else. The contract is `docs/protocol.md`, section Streams; integers are
little-endian.
"""

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAGIC = b"\xf5ub1"
HELLO = 1
DATA = 2
END = 3
RESET = 4
CREDIT = 5

HEADER_BYTES = 16
MAX_PAYLOAD_BYTES = 262144
MAX_LINE_PAYLOAD_BYTES = 65536
MAX_REASON_BYTES = 1024
SESSION_DIGITS = 32

_HEADER = Struct("<4sB3sII")
_NUMBER = Struct("<I")
_ZERO = b"\0\0\0"
# kind: the least and the greatest length of its payload
_LENGTHS = {
    HELLO: (SESSION_DIGITS, SESSION_DIGITS),
    DATA: (0, MAX_PAYLOAD_BYTES),
    END: (0, 0),
    RESET: (0, MAX_REASON_BYTES),
    CREDIT: (4, 4),
}

# What stands for a byte that may not be in a line, or that a terminal takes for flow control; F6 itself comes first.
_ESCAPES = ((b"\xf6", b"\xf6\x01"), (b"\n", b"\xf6\x02"), (b"\x11", b"\xf6\x03"), (b"\x13", b"\xf6\x04"))


class FrameError(Exception):
    """What arrived is no frame, or one that may not come; the text says why in one sentence."""


def build_header(kind: int, stream: int, length: int) -> bytes:
    return _HEADER.pack(MAGIC, kind, _ZERO, stream, length)


def build_hello(session: str) -> bytes:
    return build_header(HELLO, 0, SESSION_DIGITS) + session.encode("ascii")


def build_reset(stream: int, reason: str) -> bytes:
    payload = reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore").encode("utf-8")
    return build_header(RESET, stream, len(payload)) + payload


def build_credit(stream: int, count: int) -> bytes:
    return build_header(CREDIT, stream, 4) + _NUMBER.pack(count)


def read_credit(payload: bytes) -> int:
    return int(_NUMBER.unpack(payload)[0])


def read_header(header: "bytes | bytearray | memoryview") -> "tuple[int, int, int]":
    """Gives kind, stream and length of a header of 16 bytes.

    Raises:
        FrameError: It is none.
    """
    magic, kind, zero, stream, length = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError("a frame does not begin with its magic number")
    if kind not in _LENGTHS or zero != _ZERO:
        raise FrameError("a frame has the unknown kind %d" % kind)
    least, greatest = _LENGTHS[kind]
    if not least <= length <= greatest:
        raise FrameError("a frame of kind %d has a payload of %d bytes" % (kind, length))
    if (kind == HELLO) != (stream == 0):
        raise FrameError("a frame of kind %d is for stream %d" % (kind, stream))
    return kind, stream, length


class FrameDecoder:
    """Cuts the bytes of the bulk port into frames, and holds at most a header and a short payload of them.

    Args:
        on_data: Called with a stream and a piece of its bytes, as they come; the piece is valid during the call only.
        on_frame: Called with kind, stream and payload of any other frame.

    It is deaf until `expect` has told it which session's HELLO to wait for, and again after an error.
    """

    def __init__(
        self, on_data: "Callable[[int, memoryview], Any]", on_frame: "Callable[[int, int, bytes], Any]"
    ) -> None:
        self._on_data = on_data
        self._on_frame = on_frame
        self._hello = b""
        self._deaf = True
        self._partial = bytearray()  # of a HELLO that is waited for, of a header, or of a short payload
        self._kind = 0
        self._stream = 0
        self._left = 0

    def expect(self, session: str) -> None:
        """Throws away whatever comes before the HELLO of this session."""
        self._hello = build_hello(session)
        self._deaf = False
        self._partial.clear()
        self._kind = 0
        self._left = 0

    def stop(self) -> None:
        """Throws away whatever comes from now on."""
        self._deaf = True
        self._partial.clear()

    def feed(self, data: "bytes | bytearray | memoryview") -> None:
        """Takes the next bytes.

        Raises:
            FrameError: They are no frames; the decoder is deaf then. What `on_data` and `on_frame` raise goes through.
        """
        view = memoryview(data)
        try:
            while len(view) and not self._deaf:
                if self._hello:
                    view = self._find_hello(view)
                elif self._kind == DATA:
                    view = self._pass_on(view)
                else:
                    view = self._gather(view)
        except FrameError:
            self.stop()
            raise

    def _find_hello(self, view: memoryview) -> memoryview:
        held = len(self._partial)
        joined = bytes(self._partial) + bytes(view)
        at = joined.find(self._hello)
        if at < 0:
            self._partial[:] = joined[-(len(self._hello) - 1) :]
            return view[:0]
        end = at + len(self._hello)
        self._hello = b""
        self._partial.clear()
        return view[end - held :]

    def _pass_on(self, view: memoryview) -> memoryview:
        piece = view[: self._left]
        self._left -= len(piece)
        if not self._left:
            self._kind = 0
        self._on_data(self._stream, piece)
        return view[len(piece) :]

    def _gather(self, view: memoryview) -> memoryview:
        """Completes a header, or the short payload that follows one."""
        wanted = self._left if self._kind else HEADER_BYTES
        missing = wanted - len(self._partial)
        self._partial += view[:missing]
        view = view[missing:]
        if len(self._partial) == wanted:
            gathered = bytes(self._partial)
            self._partial.clear()
            if self._kind:
                self._end_frame(gathered)
            else:
                self._kind, self._stream, self._left = read_header(gathered)
                if not self._left:
                    self._end_frame(b"")
        return view

    def _end_frame(self, payload: bytes) -> None:
        kind, self._kind, self._left = self._kind, 0, 0
        if kind != DATA:
            self._on_frame(kind, self._stream, payload)


def encode_line(frame: bytes) -> bytes:
    """Gives a whole frame, header and payload, as a line."""
    for byte, escape in _ESCAPES:
        frame = frame.replace(byte, escape)
    return b"\xf5" + frame + b"\n"


def decode_line(line: bytes) -> "tuple[int, int, bytes]":
    """Gives kind, stream and payload of the frame in `line`, which begins with F5 and has no line feed any more.

    Raises:
        FrameError: There is none in it.
    """
    escapes = line.count(b"\xf6")
    if escapes != sum(line.count(escape) for _, escape in _ESCAPES) or b"\x11" in line or b"\x13" in line:
        raise FrameError("the line of a frame holds a byte that has to be escaped")
    frame = line[1:]
    if escapes:
        for byte, escape in reversed(_ESCAPES):
            frame = frame.replace(escape, byte)
    if len(frame) < HEADER_BYTES:
        raise FrameError("a line of %d bytes is too short for a frame" % len(line))
    kind, stream, length = read_header(frame[:HEADER_BYTES])
    if length != len(frame) - HEADER_BYTES or length > MAX_LINE_PAYLOAD_BYTES:
        raise FrameError("a frame of %d bytes says that it has %d" % (len(frame) - HEADER_BYTES, length))
    return kind, stream, frame[HEADER_BYTES:]
