"""Takes escape sequences out of a console's stream (floor 2), however they are split between two pieces of it."""

from __future__ import annotations

import re

HELD_MAX_BYTES = 4096
"""A sequence that is longer is no sequence: what was held back of it is passed on."""

ESCAPES = re.compile(
    rb"\x1b(?:"
    rb"\[[0-?]*[ -/]*[@-~]"  # CSI
    rb"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # strings: OSC, DCS, SOS, PM, APC
    rb"|[ -/]+[0-~]"  # nF: character sets
    rb"|[0-OQ-WYZ`-~\\])"  # two characters
)
"""Escape sequences as ECMA-48 (and xterm, which ends strings with BEL too) has them."""

_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)?\Z")


class PlainStream:
    """Passes a stream on without its escape sequences. Other control characters stay."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what of the stream so far is text and was not returned before.

        >>> stream = PlainStream()
        >>> stream.feed(b"a\\x1b[3"), stream.feed(b"1mred\\x1b[?2004l\\r")
        (b'a', b'red\\r')
        """
        data = self._held + data
        self._held = b""
        if b"\x1b" not in data:
            return data
        text = ESCAPES.sub(b"", data)
        begun = _BEGUN.search(text, max(0, len(text) - HELD_MAX_BYTES))
        if begun is None:
            return text
        self._held = text[begun.start() :]
        return text[: begun.start()]

    def end(self) -> bytes:
        """Return what was held back, once nothing more comes."""
        held, self._held = self._held, b""
        return held
