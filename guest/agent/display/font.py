"""The kernel's own console font (guest floor), so that none has to be shipped; used by `screen`.

Source: Linux, include/uapi/linux/kd.h: KDFONTOP, GIO_UNIMAP; ioctl_console(2).
"""

import fcntl
import os
import struct
from array import array

_KDFONTOP = 0x4B72
_GIO_UNIMAP = 0x4B66
_OP_GET = 1
_MAX_GLYPHS = 512
_BYTES_PER_GLYPH = 32 * 4


class Font:
    """Glyphs as rows of bits, and which character has which glyph.

    Raises:
        OSError: No virtual terminal gives its font.
    """

    def __init__(self) -> None:
        fd = self._open()
        try:
            data = array("B", bytes(_MAX_GLYPHS * _BYTES_PER_GLYPH))
            # console_font_op: op, flags, width, height, charcount, data
            operation = bytearray(struct.pack("@5IP", _OP_GET, 0, 32, 32, _MAX_GLYPHS, data.buffer_info()[0]))
            fcntl.ioctl(fd, _KDFONTOP, operation)
            self.width, self.height, self._count = struct.unpack_from("@3I", operation, 8)
            self._data = data.tobytes()
            self._map = self._read_map(fd)
        finally:
            os.close(fd)

    def get_rows(self, character: str) -> "list[int]":
        """The rows of the character's picture, top first, as `width` bits; a question mark for what the font lacks."""
        glyph = self._map.get(ord(character))
        if glyph is None:
            glyph = self._map.get(ord("?"), ord("?"))
        if glyph >= self._count:
            return [0] * self.height
        bytes_per_row = (self.width + 7) // 8
        at = glyph * 32 * bytes_per_row  # every glyph has room for 32 rows, whatever its height
        rows = []
        for row in range(self.height):
            part = self._data[at + row * bytes_per_row : at + (row + 1) * bytes_per_row]
            rows.append(int.from_bytes(part, "big") >> (bytes_per_row * 8 - self.width))
        return rows

    @staticmethod
    def _open() -> int:
        # tty0 is the terminal in front; one of the others may be in graphics mode, which gives no font.
        return os.open("/dev/tty0", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)

    @staticmethod
    def _read_map(fd: int) -> "dict[int, int]":
        pairs = array("H", bytes(65535 * 4))
        request = bytearray(struct.pack("@HxxxxxxP", 65535, pairs.buffer_info()[0]))
        fcntl.ioctl(fd, _GIO_UNIMAP, request)
        count = struct.unpack_from("@H", request)[0]
        # Read backwards, so that the first of several glyphs for a character wins.
        return {pairs[at]: pairs[at + 1] for at in range(2 * count - 2, -1, -2)}
