"""A pattern is found in a console's stream however it is split, and however much comes with it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from control.console.search import PlainText, StreamSearch


@given(st.integers(0, 80_000), st.integers(0, 80_000), st.lists(st.integers(1, 40_000), max_size=8))
def test_it_is_found_wherever_it_is(before: int, after: int, sizes: list[int]) -> None:
    said = b"." * before + "\x1b[1mWört\x1b[0m eins\r\nzwei".encode() + b"." * after
    text, search = PlainText(), StreamSearch(re.compile("Wört eins\nzwei"))
    for size in sizes:
        search.feed(text.feed(said[:size]))
        said = said[size:]
    assert search.feed(text.feed(said))


def test_what_was_not_said_is_not_found() -> None:
    search = StreamSearch(re.compile("ab"))
    assert not search.feed("a" * 100_000)
    assert not search.feed("")
    assert search.feed("b")
    assert StreamSearch(re.compile("end\r\n")).feed("end\r\n")
