"""Cuts a byte stream from the guest into bounded lines (floor 2)."""

from __future__ import annotations

from collections.abc import Iterator

LINE_LIMIT_BYTES = 1024 * 1024
"""A longer line from the guest is dropped to its end (docs/protocol.md)."""


class LineDecoder:
    """Feed it chunks; it yields whole lines. Holds at most one line of `LINE_LIMIT_BYTES`.

    Attributes:
        dropped_lines: How many lines were too long.
    """

    def __init__(self) -> None:
        self._partial = bytearray()
        self._dropping = False
        self.dropped_lines = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield each line that is complete with `chunk`, without its line end."""
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            line = self._finish(piece)
            if line is not None:
                yield line
        self._keep(rest)

    def _finish(self, piece: bytes) -> bytes | None:
        self._keep(piece)
        if self._dropping:
            self._dropping = False
            return None
        line = bytes(self._partial)
        self._partial.clear()
        return line

    def _keep(self, piece: bytes) -> None:
        if self._dropping:
            return
        if len(self._partial) + len(piece) > LINE_LIMIT_BYTES:
            self._partial.clear()
            self._dropping = True
            self.dropped_lines += 1
        else:
            self._partial += piece
