"""What a VNC client may say (floor 5): finds where its messages end, to leave out those that change things.

A viewer's browser is not believed when it says that it only looks: what it sends is read here, and keys, the pointer,
the clipboard and everything unknown stay behind.

Source: RFC 6143, sections 7.1 and 7.5; the rfbproto community specification for the messages of QEMU (255),
SetDesktopSize (251), EnableContinuousUpdates (150) and Fence (248).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

BUFFER_MAX_BYTES = 1 << 20
_PASSES = {0: 20, 3: 10, 150: 10}
"""Messages of one length that only say what one would like to see: pixel format, request, continuous updates."""

_STAYS = {4: 8, 5: 6, 250: 4}
"""Keys, the pointer, power."""


class NotRfb(ValueError):
    """What came is no VNC."""


class LookingOnly:
    """Takes what a client sends and gives what of it may reach the server."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greetings = [12, 1, 1]
        """ProtocolVersion, the security type (None is the only one QEMU offers here), ClientInit."""

    def pass_on(self, data: bytes) -> bytes:
        """Return what of `data`, and of what came before, goes on.

        Raises:
            NotRfb: It is none, or a message that is not known; the connection is then of no use.
        """
        self._buffer += data
        if len(self._buffer) > BUFFER_MAX_BYTES:
            raise NotRfb("a message of more than a megabyte")
        return b"".join(self._take())

    def _take(self) -> Iterator[bytes]:
        while self._buffer:
            if self._greetings:
                size, passes = self._greetings[0], True
            else:
                found = self._measure()
                if found is None:
                    return
                size, passes = found
            if len(self._buffer) < size:
                return
            if self._greetings:
                self._check_greeting(bytes(self._buffer[:size]))
                del self._greetings[0]
            if passes:
                yield bytes(self._buffer[:size])
            del self._buffer[:size]

    def _check_greeting(self, greeting: bytes) -> None:
        if len(self._greetings) == 3 and not greeting.startswith(b"RFB 003."):
            raise NotRfb("it does not begin as VNC does")
        if len(self._greetings) == 2 and greeting != b"\1":
            raise NotRfb("a security type that was not offered")

    def _measure(self) -> tuple[int, bool] | None:
        """The length of the first message, and whether it goes on; None when too little of it is there."""
        kind = self._buffer[0]
        if kind in _PASSES:
            return _PASSES[kind], True
        if kind in _STAYS:
            return _STAYS[kind], False
        if kind == 2:  # SetEncodings
            count = self._read(">xxH")
            return None if count is None else (4 + 4 * count, True)
        if kind == 6:  # ClientCutText; a negative length is that of the extended clipboard
            length = self._read(">xxxxi")
            return None if length is None else (8 + abs(length), False)
        if kind == 251:  # SetDesktopSize
            screens = self._read(">xxxxxxB")
            return None if screens is None else (8 + 16 * screens, False)
        if kind == 248:  # ClientFence
            length = self._read(">xxxxxxxxB")
            return None if length is None else (9 + length, True)
        if kind == 255:  # QEMU: 0 is a key, 1 is about sound
            return self._measure_qemu()
        raise NotRfb(f"a message of the unknown kind {kind}")

    def _measure_qemu(self) -> tuple[int, bool] | None:
        kind = self._read(">xB")
        if kind == 0:
            return 12, False
        if kind == 1:
            operation = self._read(">xxH")
            return None if operation is None else (10 if operation == 2 else 4, True)
        if kind is None:
            return None
        raise NotRfb(f"a message of QEMU's of the unknown kind {kind}")

    def _read(self, form: str) -> int | None:
        if len(self._buffer) < struct.calcsize(form):
            return None
        value: int = struct.unpack_from(form, self._buffer)[0]
        return value
