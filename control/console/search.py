"""Looks for a pattern in what a console says (floor 2), however fast it comes and wherever it is split."""

from __future__ import annotations

import codecs
import re

from control.console.plain import PlainStream

WINDOW = 64 * 1024
"""Characters before a piece in which a match may have begun: a longer one is not found."""


class PlainText:
    """Turns a console's bytes into text without escape sequences, also of characters that are split between pieces."""

    def __init__(self) -> None:
        self._plain = PlainStream()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Return what of the stream so far is text and was not returned before.

        >>> text = PlainText()
        >>> text.feed("ä".encode()[:1]), text.feed("ä\\x1b[1m".encode()[1:])
        ('', 'ä')
        """
        return self._decoder.decode(self._plain.feed(data))


class StreamSearch:
    """Feed it a console's text as it comes. Line ends may be `\\r\\n` or `\\n` in the pattern.

    Attributes:
        is_found: Whether the pattern has come; what is fed after that is not looked at.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.is_found = False
        self._pattern = pattern
        self._recent = ""

    def feed(self, text: str) -> bool:
        """Whether the pattern has come; the last, unfinished line counts too: a prompt has no end.

        >>> search = StreamSearch(re.compile("a b"))
        >>> search.feed("..a "), search.feed("b" + "." * 1000000), search.is_found
        (False, True, True)
        """
        if not self.is_found and text:
            self._recent = self._recent[-WINDOW:] + text
            lines = self._recent.replace("\r\n", "\n")
            self.is_found = any(self._pattern.search(each) is not None for each in (self._recent, lines))
        return self.is_found
