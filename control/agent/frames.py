"""The frames of the bulk port, written and read in both of their forms (floor 2); see docs/protocol.md.

Used by `streams`. What the guest sends is held to the letter: the first frame that is none ends the session's streams.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass

MAGIC = b"\xf5ub1"
HELLO, DATA, END, RESET, CREDIT = 1, 2, 3, 4, 5
PAYLOAD_LIMIT_BYTES = 262144
LINE_PAYLOAD_LIMIT_BYTES = 65536
"""What a frame holds where it is a line of its own."""

LINE_MARK = 0xF5
"""The first byte of a line that is a frame; never part of UTF-8, so no JSON begins with it."""

REASON_LIMIT_BYTES = 1024
SESSION_DIGITS = 32
_HEADER = struct.Struct("<4sB3sII")
HEADER_BYTES = _HEADER.size
_ZERO = b"\0\0\0"
_SIZES = {
    HELLO: range(SESSION_DIGITS, SESSION_DIGITS + 1),
    DATA: range(PAYLOAD_LIMIT_BYTES + 1),
    END: range(1),
    RESET: range(REASON_LIMIT_BYTES + 1),
    CREDIT: range(4, 5),
}
"""How long the payload of each kind may be."""

_ESCAPES = ((b"\xf6", b"\xf6\x01"), (b"\n", b"\xf6\x02"), (b"\x11", b"\xf6\x03"), (b"\x13", b"\xf6\x04"))


class FrameError(Exception):
    """What came is no frame; the text says why."""


@dataclass(frozen=True)
class Frame:
    """One frame, or a part of a `DATA` frame: its bytes are handed on as they come."""

    kind: int
    stream: int
    payload: bytes | memoryview


def build_header(kind: int, stream: int, size: int) -> bytes:
    """Return the 16 bytes before a payload of `size` bytes."""
    return _HEADER.pack(MAGIC, kind, _ZERO, stream, size)


def build_hello(session: str) -> bytes:
    """Return the frame a session begins with."""
    return build_header(HELLO, 0, SESSION_DIGITS) + session.encode("ascii")


def _read_header(header: bytes | memoryview, limit: int) -> tuple[int, int, int]:
    """Return kind, stream and size. Raises FrameError when this is no header."""
    magic, kind, zero, stream, size = _HEADER.unpack(header)
    if magic != MAGIC or zero != _ZERO:
        raise FrameError("what came is not a frame")
    if size not in _SIZES.get(kind, ()) or size > limit:
        raise FrameError(f"a frame of kind {kind} with {size} bytes")
    return kind, stream, size


class FrameDecoder:
    """Reads frames out of a byte stream, from the `HELLO` of its session on; what comes before that is thrown away.

    Holds a header and at most `REASON_LIMIT_BYTES` beside it: the bytes of `DATA` are passed on as they come.
    """

    def __init__(self, session: str) -> None:
        self._hello = build_hello(session)
        self._in_session = False
        self._held = bytearray()
        self._frame = (0, 0, 0)  # kind, stream, and how much of its payload is still to come
        self._in_payload = False

    def feed(self, data: memoryview) -> Iterator[Frame]:
        """Yield what `data` completes; a payload is valid until the next call only.

        Raises:
            FrameError: Something in it is no frame; nothing after it is looked at, this decoder is of no more use.
        """
        if not self._in_session:
            data = self._find_hello(data)
        while data or self._is_whole():
            if self._in_payload:
                taken = yield from self._take_payload(data)
            else:
                taken = self._take_header(data)
            data = data[taken:]

    def _is_whole(self) -> bool:
        """Whether the frame under way needs no more bytes."""
        return self._in_payload and not self._frame[2]

    def _find_hello(self, data: memoryview) -> memoryview:
        self._held += data
        found = self._held.find(self._hello)
        if found < 0:
            del self._held[: -(len(self._hello) - 1)]
            return memoryview(b"")
        self._in_session = True
        rest = bytes(self._held[found + len(self._hello) :])
        self._held.clear()
        return memoryview(rest)

    def _take_header(self, data: memoryview) -> int:
        wanted = HEADER_BYTES - len(self._held)
        if wanted < HEADER_BYTES or len(data) < HEADER_BYTES:
            self._held += data[:wanted]
            if len(self._held) < HEADER_BYTES:
                return min(wanted, len(data))
            self._frame = _read_header(bytes(self._held), PAYLOAD_LIMIT_BYTES)
            self._held.clear()
        else:
            self._frame = _read_header(data[:HEADER_BYTES], PAYLOAD_LIMIT_BYTES)
        self._in_payload = True
        return wanted

    def _take_payload(self, data: memoryview) -> Generator[Frame, None, int]:
        kind, stream, left = self._frame
        piece = data[:left]
        left -= len(piece)
        self._frame = (kind, stream, left)
        if kind == DATA:
            if piece:
                yield Frame(kind, stream, piece)
        else:
            self._held += piece
            if not left:
                payload = bytes(self._held)
                self._held.clear()
                yield Frame(kind, stream, payload)
        if not left:
            self._in_payload = False
        return len(piece)


def encode_line(kind: int, stream: int, payload: bytes | memoryview) -> bytes:
    """Return the frame as a line of its own, for a connection that carries JSON lines as well."""
    body = build_header(kind, stream, len(payload)) + bytes(payload)
    for plain, escaped in _ESCAPES:
        body = body.replace(plain, escaped)
    return b"".join((bytes((LINE_MARK,)), body, b"\n"))


def decode_line(line: bytes) -> Frame:
    """Read a line that begins with `LINE_MARK`, without its line end.

    Raises:
        FrameError: It is no frame.
    """
    body = line[1:]
    if body.count(b"\xf6") != sum(body.count(escaped) for _, escaped in _ESCAPES):
        raise FrameError("a frame with an escape that is none")
    for plain, escaped in reversed(_ESCAPES):  # F6 itself last: the bytes it gives begin no escape
        body = body.replace(escaped, plain)
    if len(body) < HEADER_BYTES:
        raise FrameError("a frame without a header")
    kind, stream, size = _read_header(body[:HEADER_BYTES], LINE_PAYLOAD_LIMIT_BYTES)
    if len(body) != HEADER_BYTES + size:
        raise FrameError(f"a frame of {len(body) - HEADER_BYTES} bytes that claims to have {size}")
    return Frame(kind, stream, body[HEADER_BYTES:])
