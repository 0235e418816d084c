"""Tells messages from text in a console stream (floor 2), without losing, changing or delaying a byte of text.

A message is one line of JSON, possibly after a prompt that stands on the same line. What looks like the beginning of
one is held
back until its line ends; everything else passes at once. Memory is bounded by `LINE_LIMIT_BYTES` whatever the guest
sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_LIMIT_BYTES = 64 * 1024
"""A longer line is text, whatever it looks like; the agent's own messages are far below."""

_KEYS = rb"(?:timestamp|direction|type|data|id|in_reply_to)"
_OPENING = re.compile(rb'\{[ \t]{0,4}"' + _KEYS + rb'"')
_LONGEST_OPENING_BYTES = len(b'{    "in_reply_to"')
# The beginning of an opening, cut off by the end of a chunk: every prefix of a key, in one pattern.
_BEGINNING = re.compile(rb'\{(?:[ \t]{0,4}(?:"[a-z_]{0,11})?)?\Z')


@dataclass(frozen=True)
class Text:
    """Bytes to pass on as they are."""

    data: bytes


@dataclass(frozen=True)
class Candidate:
    """A complete line that begins like a message; `data` holds it with its line end, exactly as it came."""

    data: bytes


Piece = Text | Candidate


class MessageScanner:
    """Feed it chunks; it yields pieces whose bytes, put together, are the bytes fed."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def holds_back(self) -> bool:
        """Whether the beginning of a possible message waits for the rest of its line."""
        return bool(self._held)

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """Yield the pieces that are complete with `chunk`."""
        data = bytes(self._held) + chunk if self._held else chunk
        self._held.clear()
        position = 0
        while position < len(data):
            opening = _OPENING.search(data, position)
            start = opening.start() if opening else _find_beginning(data, position)
            if start > position:
                yield Text(data[position:start])
            end = data.find(b"\n", start, start + LINE_LIMIT_BYTES) + 1
            if opening and end:
                yield Candidate(data[start:end])
            elif len(data) - start < LINE_LIMIT_BYTES:
                self._held += data[start:]
                return
            else:
                end = start + LINE_LIMIT_BYTES
                yield Text(data[start:end])
            position = end

    def release(self) -> bytes:
        """Give up waiting: return what is held back, to be passed on as text (empty when nothing is)."""
        held = bytes(self._held)
        self._held.clear()
        return held


def _find_beginning(data: bytes, position: int) -> int:
    """Find where, in the last few bytes of `data`, a message may be beginning; the end of `data` when nowhere."""
    match = _BEGINNING.search(data, max(position, len(data) - _LONGEST_OPENING_BYTES))
    return match.start() if match else len(data)
