"""Waits for a pattern in a console (floor 6): the `--until` of the launchers."""

from __future__ import annotations

import re

LINE_LIMIT_BYTES = 64 * 1024


class UntilMatcher:
    """Feed it console bytes; a match may span chunks, not lines longer than `LINE_LIMIT_BYTES`."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._partial = b""

    def feed(self, chunk: bytes) -> bool:
        """Whether the pattern occurs in what has come; the last, unfinished line counts too (prompts have no end)."""
        text = (self._partial + chunk).replace(b"\r\n", b"\n")
        if self._pattern.search(text):
            return True
        # A carriage return at the very end may be half of a line end.
        self._partial = text[text.rfind(b"\n") + 1 :][-LINE_LIMIT_BYTES:]
        return False

    def matches_line(self, line: bytes) -> bool:
        """Whether the pattern occurs in a line that is not of the console; what that has begun with stays as it is."""
        return self._pattern.search(line) is not None
