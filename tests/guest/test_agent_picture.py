"""Pictures: decoded right, and refused with a reason when they are damaged, lie about their size or are too large."""

from __future__ import annotations

import struct
import zlib
from itertools import product

import pytest

from guest.agent.display import picture


def decode(kind: str, data: bytes) -> picture.Picture:
    steps = picture.decode(kind, data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: picture.Picture = end.value
            return result


def build_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def build_png(
    width: int, height: int, kind: int, raw: bytes, *, depth: int = 8, interlaced: int = 0, palette: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    chunks = build_chunk(b"IHDR", header) + (build_chunk(b"PLTE", palette) if palette else b"")
    packed = zlib.compress(raw)
    # Two parts, as encoders make them of a larger picture.
    chunks += build_chunk(b"IDAT", packed[:5]) + build_chunk(b"IDAT", packed[5:]) + build_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def filter_row(kind: int, row: bytes, above: bytes, step: int) -> bytes:
    """Filters as an encoder does, written from the specification and not from our decoder."""
    out = bytearray([kind])
    for at, value in enumerate(row):
        a = row[at - step] if at >= step else 0
        b = above[at]
        c = above[at - step] if at >= step else 0
        nearest = min((abs(a + b - c - near), order, near) for order, near in enumerate((a, b, c)))[2]
        out.append((value - (0, a, b, (a + b) // 2, nearest)[kind]) & 255)
    return bytes(out)


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6), (1, 0), (2, 4)])
def test_png_of_every_filter_and_colour_type(channels: int, kind: int) -> None:
    width = 9
    rows = [bytes((x * 37 + y * 11 + x * y) & 255 for x in range(width * channels)) for y in range(10)]
    raw, above = b"", bytes(width * channels)
    for y, row in enumerate(rows):
        raw += filter_row(y % 5, row, above, channels)
        above = row
    seen = decode("png", build_png(width, 10, kind, raw))
    for x, y in product(range(width), range(10)):
        pixel = rows[y][x * channels : (x + 1) * channels]
        colours = pixel[:3] if channels > 2 else bytes([pixel[0]] * 3)
        if channels in (2, 4):
            colours = bytes(colour * pixel[-1] // 255 for colour in colours)
        assert seen.rows[y][x * 4 : x * 4 + 3] == colours[::-1]


def test_png_with_a_palette() -> None:
    seen = decode("png", build_png(2, 1, 3, b"\x00\x01\x00", palette=b"\x01\x02\x03\x0a\x0b\x0c"))
    assert seen.rows == [b"\x0c\x0b\x0a\x00\x03\x02\x01\x00"]


@pytest.mark.parametrize(
    ("header", "body", "pixel"),
    [
        (b"P6\n# a comment\n1 1\n255\n", b"\x01\x02\x03", b"\x03\x02\x01"),
        (b"P6 1 1 15 ", b"\x0f\x00\x05", b"\x55\x00\xff"),
        (b"P6 1 1 65535 ", b"\x01\xff\x02\xff\x03\xff", b"\x03\x02\x01"),
    ],
)
def test_ppm(header: bytes, body: bytes, pixel: bytes) -> None:
    assert decode("ppm", header + body).rows == [pixel + b"\x00"]


GOOD = build_png(2, 2, 2, b"\x00" * 14)


@pytest.mark.parametrize(
    ("kind", "data", "reason"),
    [
        ("ppm", b"P5 1 1 255 \x00", "P6"),
        ("ppm", b"P6 2 2 255 \x00", "cut short"),
        ("ppm", b"P6 0 1 255 ", "empty"),
        ("ppm", b"P6 9999999999 1 255 ", "too large"),
        ("ppm", b"P6 -1 1 255 ", "damaged"),
        ("ppm", b"P6", "damaged"),
        ("ppm", b"P6 1 1 0 \x00\x00\x00", "largest value"),
        ("png", b"", "not a PNG"),
        ("png", GOOD[:-12], "cut short"),
        ("png", GOOD[:20] + b"\xff" + GOOD[21:], "checksum"),
        ("png", build_png(2, 2, 2, b"\x00" * 13), "cut short"),
        ("png", build_png(2, 2, 2, b"\x09" + b"\x00" * 13), "no filter 9"),
        ("png", build_png(2, 2, 2, b"\x00" * 14, interlaced=1), "not interlaced"),
        ("png", build_png(2, 2, 2, b"\x00" * 14, depth=16), "8 bits"),
        ("png", build_png(16384, 16384, 2, b""), "too large"),
        ("png", build_png(2, 2, 3, b"\x00" * 6), "palette"),
    ],
)
def test_a_damaged_picture_is_refused_with_the_reason(kind: str, data: bytes, reason: str) -> None:
    with pytest.raises(picture.PictureError, match=reason):
        decode(kind, data)
