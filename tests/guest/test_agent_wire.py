"""The guest's line decoder and JSON: whatever comes in, bounded memory and a clear answer come out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.agent import wire

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")), max_size=20), st.data())
def test_lines_do_not_depend_on_where_the_stream_was_cut(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = wire.LineDecoder(10)
    seen: list[bytes | None] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += decoder.feed(stream[begin:end])
    assert seen == [None if len(line) > 10 else line for line in lines if len(line) > 10 or line.strip()]


def test_an_endless_line_is_reported_once_and_takes_no_memory() -> None:
    decoder = wire.LineDecoder(100)
    seen = [line for _ in range(1000) for line in decoder.feed(b"x" * 60)]
    assert seen == [None]
    assert decoder.feed(b"end of it\nnext\n") == [b"next"]


def test_a_reset_forgets_the_half_line() -> None:
    decoder = wire.LineDecoder()
    decoder.feed(b'{"half')
    decoder.reset()
    assert decoder.feed(b"whole\n") == [b"whole"]


@given(JSON_VALUES)
def test_a_value_comes_back_as_it_went(value: Any) -> None:
    line = wire.encode(value)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert wire.decode(line) == json.loads(line) == value


@given(st.binary(max_size=200))
def test_garbage_is_decoded_as_json_does_or_refused(data: bytes) -> None:
    try:
        value = wire.decode(data)
    except wire.WireError as error:
        assert str(error)
    else:
        assert value == json.loads(data.decode().strip())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1,]", "not JSON"),
        (b'{"a":1}{', "after"),
        (b'"\xff"', "UTF-8"),
        (b"[" * 200_000, "nested"),
        (b"1" * 21, "digits"),
        (b"-" + b"9" * 1_000_000, "digits"),
        (b"NaN", "not JSON"),
        (b"[-Infinity]", "not JSON"),
        (b'"tab\there"', "not JSON"),
    ],
)
def test_what_is_not_one_json_value_is_refused_with_the_reason(line: bytes, reason: str) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.decode(line)


def test_a_lone_surrogate_never_leaves_as_broken_utf8() -> None:
    assert wire.encode({"a": wire.decode(b'"\\ud800"')}) == b'{"a":"?"}\n'


def test_a_value_without_a_form_in_json_is_refused() -> None:
    with pytest.raises(ValueError):
        wire.encode(float("inf"))
    with pytest.raises(TypeError):
        wire.encode({"a": b"bytes"})
