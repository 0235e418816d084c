"""The last lines of a console as readable text (floor 2): the evidence that errors carry."""

from __future__ import annotations

import re

KEPT_BYTES = 16 * 1024

# Compiled when something is first shown: it takes longer than to load all else here, and most consoles show nothing.
# CSI, OSC and two-character escape sequences (ECMA-48); what remains of control characters is shown as a dot.
_ESCAPES = rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
# Beside control characters: line ends of Unicode, and what turns the direction of the letters behind it (UAX #9).
_UNPRINTABLE = r"[^\t\x20-\x7e\xa0-\U0010ffff]|[\u2028-\u202e\u2066-\u2069]"


class ConsoleTail:
    """Keeps the last few kilobytes; constant memory, next to no time for each chunk."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, chunk: bytes) -> None:
        self._kept += chunk[-KEPT_BYTES:]
        if len(self._kept) > 2 * KEPT_BYTES:
            del self._kept[:-KEPT_BYTES]

    def lines(self, count: int) -> tuple[str, ...]:
        """Return the last `count` lines that are not blank, oldest first, at most 200 characters each."""
        text = to_plain_text(bytes(self._kept))
        lines = [line.rstrip() for line in text.splitlines()]
        return tuple(line[:200] for line in lines if line)[-count:]

    def text_end(self, line_count: int) -> str:
        """Return the end of the console as plain text, its last line whole and unstripped."""
        return "\n".join(to_plain_text(bytes(self._kept)).split("\n")[-line_count:])


def to_plain_text(data: bytes) -> str:
    """Turn console bytes into text that is safe to print anywhere: no escape sequences, no control characters.

    >>> to_plain_text(b"\\x1b[31mred\\x1b[0m \\x07 na\\xc3\\xafve \\xff\\r\\n")
    'red . naïve \ufffd\\n'
    """
    text = re.sub(_ESCAPES, b"", data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").decode("utf-8", "replace")
    return re.sub(_UNPRINTABLE, lambda match: match[0] if match[0] == "\n" else ".", text)
