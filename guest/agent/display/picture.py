"""Decodes pictures (guest floor): PPM (P6) and PNG of 8 bits a channel, not interlaced; used by `screen`.

Both decoders are generators that stop between rows, so that the loop can serve others meanwhile; their
value is a `Picture`.
Source: the PNG specification (W3C, third edition), sections 5, 9 and 11; Netpbm, ppm(5).
"""

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

MAX_PIXELS = 16 * 1024 * 1024
_MAX_SIDE = 16384
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


class PictureError(Exception):
    """The data are not a picture that can be shown; the text says why."""


class Picture:
    """Rows of 4-byte pixels as the screen has them: blue, green, red, unused."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.rows: "list[bytes]" = []

    def add(self, red: "bytes | bytearray", green: "bytes | bytearray", blue: "bytes | bytearray") -> None:
        row = bytearray(self.width * 4)
        row[0::4], row[1::4], row[2::4] = blue, green, red
        self.rows.append(bytes(row))


def decode(kind: str, data: bytes) -> "Generator[None, None, Picture]":
    """A generator that decodes `data` (`kind` is `ppm` or `png`) and returns a Picture.

    Raises:
        PictureError: While it runs: it is not such a picture, is damaged, or is too large.
    """
    return _decode_ppm(data) if kind == "ppm" else _decode_png(data)


def _make_picture(width: int, height: int) -> Picture:
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE and width * height <= MAX_PIXELS):
        raise PictureError("a picture of %d by %d pixels is too large or empty" % (width, height))
    return Picture(width, height)


def _decode_ppm(data: bytes) -> "Generator[None, None, Picture]":
    if data[:2] != b"P6":
        raise PictureError("it is not a binary PPM: it does not begin with P6")
    (width, height, maximum), at = _read_ppm_header(data)
    picture = _make_picture(width, height)
    if not 1 <= maximum <= 65535:
        raise PictureError("the largest value of a PPM is 1 to 65535, not %d" % maximum)
    size = 1 if maximum < 256 else 2
    stride = width * 3 * size
    if len(data) - at < stride * height:
        raise PictureError("the PPM is cut short")
    if size == 2 and maximum != 65535:
        raise PictureError("of PPMs with two bytes a channel only those up to 65535 can be shown")
    scale = None
    if size == 1 and maximum != 255:
        scale = bytes(min(255, value * 255 // maximum) for value in range(256))
    for _ in range(height):
        row = data[at : at + stride : size]  # of two bytes the first is the larger one
        if scale is not None:
            row = row.translate(scale)
        picture.add(row[0::3], row[1::3], row[2::3])
        at += stride
        yield
    return picture


def _read_ppm_header(data: bytes) -> "tuple[list[int], int]":
    numbers: "list[int]" = []
    at = 2
    while len(numbers) < 3:
        if data[at : at + 1] == b"#":
            end = data.find(b"\n", at)
            at = len(data) if end < 0 else end
        elif data[at : at + 1].isdigit():
            end = at
            while data[end : end + 1].isdigit() and end - at < 10:
                end += 1
            numbers.append(int(data[at:end]))
            at = end
        elif data[at : at + 1].isspace():
            at += 1
        else:
            raise PictureError("the header of the PPM is damaged")
    return numbers, at + 1


def _decode_png(data: bytes) -> "Generator[None, None, Picture]":
    import zlib

    width, height, kind, palette, packed = _read_chunks(data, zlib.crc32)
    picture = _make_picture(width, height)
    channels = _CHANNELS[kind]
    stride = width * channels
    inflate = zlib.decompressobj()
    pending = b""
    previous = bytearray(stride)
    try:
        for _ in range(height):
            while len(pending) < stride + 1:
                # Only as much as is needed: a small file can hold a very large picture.
                part = inflate.decompress(packed, stride + 1)
                packed = inflate.unconsumed_tail
                if not part:
                    raise PictureError("the PNG is cut short")
                pending += part
            row = bytearray(pending[1 : stride + 1])
            _unfilter(pending[0], row, previous, channels)
            pending = pending[stride + 1 :]
            previous = row
            _add_row(picture, row, kind, palette)
            yield
    except zlib.error as error:
        raise PictureError("the PNG is damaged: %s" % error) from None
    return picture


def _read_chunks(data: bytes, crc32: "Callable[..., Any]") -> "tuple[int, int, int, bytes, bytes]":
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        raise PictureError("it is not a PNG")
    at = 8
    header = palette = b""
    packed = []
    while True:
        if len(data) - at < 12:
            raise PictureError("the PNG is cut short")
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        check = data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            raise PictureError("the PNG is cut short")
        if crc32(data[at + 4 : at + 8 + length]) != struct.unpack(">I", check)[0]:
            raise PictureError("the PNG is damaged: a checksum is wrong")
        at += 12 + length
        if name == b"IHDR":
            header = body
        elif name == b"PLTE":
            palette = body
        elif name == b"IDAT":
            packed.append(body)
        elif name == b"IEND":
            break
    if len(header) != 13:
        raise PictureError("the PNG has no header")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or kind not in _CHANNELS or interlaced:
        raise PictureError("of PNGs only those of 8 bits a channel that are not interlaced can be shown")
    if kind == 3 and (len(palette) % 3 or not 3 <= len(palette) <= 768):
        raise PictureError("the PNG has no palette")
    return width, height, kind, palette, b"".join(packed)


def _unfilter(kind: int, row: bytearray, above: bytearray, step: int) -> None:
    """Undoes a row's filter in place. Source: PNG specification, section 9.2."""
    if kind == 0:
        return
    if kind == 1:
        for at in range(step, len(row)):
            row[at] = (row[at] + row[at - step]) & 255
    elif kind == 2:
        row[:] = bytes([(value + up) & 255 for value, up in zip(row, above)])  # noqa: B905 - strict= needs Python 3.10
    elif kind == 3:
        for at in range(len(row)):
            left = row[at - step] if at >= step else 0
            row[at] = (row[at] + (left + above[at]) // 2) & 255
    elif kind == 4:
        _unfilter_paeth(row, above, step)
    else:
        raise PictureError("the PNG is damaged: there is no filter %d" % kind)


def _unfilter_paeth(row: bytearray, above: bytearray, step: int) -> None:
    for at in range(len(row)):
        up = above[at]
        left, corner = (row[at - step], above[at - step]) if at >= step else (0, 0)
        by_left, by_up, by_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
        if by_left <= by_up and by_left <= by_corner:
            up = left
        elif by_up > by_corner:
            up = corner
        row[at] = (row[at] + up) & 255


def _add_row(picture: Picture, row: bytearray, kind: int, palette: bytes) -> None:
    if kind == 3:
        full = palette.ljust(768, b"\0")
        picture.add(*(row.translate(full[channel::3]) for channel in range(3)))
    elif kind in (2, 6):
        step = _CHANNELS[kind]
        channels = [row[channel::step] for channel in range(3)]
        picture.add(*(_over_black(channel, row[3::4]) if kind == 6 else channel for channel in channels))
    else:
        grey = _over_black(row[0::2], row[1::2]) if kind == 4 else row
        picture.add(grey, grey, grey)


def _over_black(channel: bytearray, alpha: bytearray) -> "bytes | bytearray":
    """What is transparent shows the black behind it."""
    if alpha.count(255) == len(alpha):
        return channel
    return bytes([value * opacity // 255 for value, opacity in zip(channel, alpha)])  # noqa: B905 - as above
