"""Tells messages from text in a console stream (floor 2), without losing, changing or delaying a byte of text.

A message is one line of JSON, possibly after a prompt that stands on the same line. What looks like the beginning of one is held
back until its line ends; everything else passes at once. Memory is bounded by `LINE_LIMIT_BYTES` whatever the guest sends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE_LIMIT_BYTES = 64 * 1024
"""A longer line is text, whatever it looks like; the agent's own messages are far below."""

_KEYS = (b"timestamp", b"direction", b"type", b"data", b"id", b"in_reply_to")
_OPENINGS = tuple(b'{"' + key + b'"' for key in _KEYS)
_OPENING = re.compile(rb'\{\s{0,8}"(?:' + b"|".join(_KEYS) + rb')"')
_LONGEST_OPENING = max(len(opening) for opening in _OPENINGS) + 8


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
            brace = data.find(b"{", position)
            if brace < 0:
                yield Text(data[position:])
                return
            if _OPENING.match(data, brace):
                if brace > position:
                    yield Text(data[position:brace])
                end = data.find(b"\n", brace, brace + LINE_LIMIT_BYTES) + 1
                if end:
                    yield Candidate(data[brace:end])
                    position = end
                elif len(data) - brace >= LINE_LIMIT_BYTES:
                    yield Text(data[brace : brace + LINE_LIMIT_BYTES])
                    position = brace + LINE_LIMIT_BYTES
                else:
                    self._held += data[brace:]
                    return
            elif len(data) - brace < _LONGEST_OPENING and _could_open(data[brace:]):
                if brace > position:
                    yield Text(data[position:brace])
                self._held += data[brace:]
                return
            else:
                yield Text(data[position : brace + 1])
                position = brace + 1

    def release(self) -> bytes:
        """Give up waiting: return what is held back, to be passed on as text (empty when nothing is)."""
        held = bytes(self._held)
        self._held.clear()
        return held


def _could_open(beginning: bytes) -> bool:
    """Whether more bytes could turn `beginning`, a chunk's last few, into the opening of a message."""
    rest = beginning[1:].lstrip()
    return any((b'"' + key + b'"').startswith(rest) for key in _KEYS)
