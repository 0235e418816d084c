"""The bytes of a console burst, the same on both sides of the border: the host imports this, the guest runs its text.

Standard library only, and no syntax newer than Python 3.9. No two blocks are alike, so one that is lost, doubled or
out of place changes the digest.
"""

import sys

BLOCK_BYTES = 64 * 1024
LINE_BYTES = 80

MESSAGE = (
    '{"timestamp":"2026-01-01T00:00:00.000Z","direction":"vm-to-host","type":"status","data":{"message":'
    '"service network started","details":{"service":"network","state":"started"}},"id":"bench-%d-%d"}\n'
)


def build_text() -> bytes:
    """Lines of printable characters that no compression and no search finds easy: a block, less its first line."""
    state, out = 1, bytearray()
    while len(out) < BLOCK_BYTES:
        for _ in range(LINE_BYTES - 1):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF  # C standard, 7.22.2: the example generator
            out.append(32 + (state >> 16) % 95)
        out += b"\n"
    return bytes(out)


def build_block(number: int, text: bytes, messages: int) -> bytes:
    """Block `number`: a line that names it, text, and `messages` messages spread among the lines of the text."""
    parts = [b"block %010d\n" % number]
    inserted = [(MESSAGE % (number, index)).encode() for index in range(messages)]
    room = BLOCK_BYTES - len(parts[0]) - sum(map(len, inserted))
    step = room // (messages + 1) // LINE_BYTES * LINE_BYTES
    for index, message in enumerate(inserted):
        parts += [text[index * step : (index + 1) * step], message]
    used = sum(map(len, parts))
    rest = text[messages * step : messages * step + BLOCK_BYTES - used]
    parts.append(rest[:-1] + b"\n")
    return b"".join(parts)


def main(arguments: list[str]) -> None:
    path, blocks, messages = arguments[0], int(arguments[1]), int(arguments[2])
    text = build_text()
    with open(path, "wb") as file:  # noqa: PTH123 - the guest's Python has no pathlib
        for number in range(blocks):
            file.write(build_block(number, text, messages))


if __name__ == "__main__":
    main(sys.argv[1:])
