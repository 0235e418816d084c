"""Messages: what fits the schema is read, what does not is a sentence, and two libraries agree on which is which."""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.errors import MessageError
from control.paths import ROOT, SCHEMAS
from control.wire import build_message, encode_message, parse_message
from control.wire.message import read_envelope
from control.wire.schema import explain, get_validator

GOLDEN = sorted((ROOT / "tests" / "guest" / "golden").rglob("*.json*"))


@functools.cache
def get_reference() -> jsonschema.Draft202012Validator:
    """The reference implementation, on the same schema."""
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / "message.json").read_text()))


def envelope(**changes: Any) -> dict[str, Any]:
    whole = {
        "timestamp": "2026-01-01T00:00:00Z",
        "direction": "vm-to-host",
        "type": "status",
        "data": {"message": "alive", "details": {}},
        **changes,
    }
    return {key: value for key, value in whole.items() if value is not ...}


GOOD: list[Any] = [
    envelope(),
    envelope(id="a" * 64, in_reply_to="x.y:z_-9"),
    envelope(timestamp="2026-12-31T23:59:60.123456789Z"),
    envelope(data={"message": "m" * 1024, "details": {"k": [1, None, {"x": "ü"}]}}),
    *(envelope(type=kind) for kind in ("command", "graphics", "error", "heartbeat")),
]
BAD: list[Any] = [
    None, [], "x", 1, {},
    *(envelope(**{key: ...}) for key in ("timestamp", "direction", "type", "data")),
    envelope(extra=1),
    envelope(data={"message": "m"}),
    envelope(data={"details": {}}),
    envelope(data={"message": "m", "details": {}, "more": 1}),
    envelope(data={"message": "", "details": {}}),
    envelope(data={"message": "m" * 1025, "details": {}}),
    envelope(data={"message": "m", "details": []}),
    envelope(data={"message": "m", "details": {"k" * 129: 1}}),
    envelope(data={"message": "m", "details": {str(n): n for n in range(257)}}),
    envelope(direction="host"), envelope(type="Status"), envelope(type=["status"]),
    envelope(id=""), envelope(id="a" * 65), envelope(id="a b"), envelope(id="a\n"), envelope(id=7), envelope(id=None),
    envelope(in_reply_to="ä"),
    *(envelope(timestamp=stamp) for stamp in (
        "2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "2026-13-01T00:00:00Z", "2026-01-32T00:00:00Z",
        "2026-01-01T24:00:00Z", "2026-01-01 00:00:00Z", "2026-01-01T00:00:00Z\n", "2026-01-01T00:00:00.Z", "now",
        "٢026-01-01T00:00:00Z", 0, None)),
]  # fmt: skip


@pytest.mark.parametrize("value", GOOD)
def test_a_good_envelope_is_read_and_written_back(value: dict[str, Any]) -> None:
    message = read_envelope(value)
    assert message.envelope == value
    line = encode_message(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_message(line) == message
    assert get_reference().is_valid(value)
    assert explain("message", value) == ""


@pytest.mark.parametrize("value", BAD, ids=lambda value: json.dumps(value)[:60])
def test_a_bad_envelope_is_a_sentence_of_bounded_length(value: object) -> None:
    assert not get_reference().is_valid(value)
    with pytest.raises(MessageError) as caught:
        read_envelope(value)
    assert len(str(caught.value)) < 500
    assert caught.value.hint


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "timestamp": st.one_of(
            st.from_regex(r"202[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{0,10})?Z?\n?"), JSON
        ),
        "direction": st.one_of(st.sampled_from(["vm-to-host", "host-to-vm"]), JSON),
        "type": st.one_of(st.sampled_from(["status", "command", "graphics", "error", "heartbeat"]), JSON),
        "data": st.one_of(
            st.fixed_dictionaries(
                {"message": st.text(max_size=20), "details": st.dictionaries(st.text(max_size=140), JSON, max_size=3)}
            ),
            JSON,
        ),
        "id": st.one_of(st.from_regex(r"[A-Za-z0-9._:\-]{0,66}\n?"), JSON),
        "in_reply_to": st.one_of(st.just("a"), JSON),
        "other": JSON,
    },
)


@given(st.one_of(FIELDS, JSON))
def test_both_libraries_agree(value: object) -> None:
    assert get_validator("message").is_valid(value) == get_reference().is_valid(value)


@pytest.mark.skipif(not GOLDEN, reason="the golden messages of the guest are not there: tests/guest/golden")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_both_libraries_agree_on_the_golden_messages(path: Any) -> None:
    text = path.read_text()
    for value in [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]:
        assert get_validator("message").is_valid(value) == get_reference().is_valid(value)


LINE = (
    '{"timestamp":"2026-01-01T00:00:00Z","direction":"vm-to-host","type":"status","data":{"message":%s,"details":%s}}'
)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_any_line_is_a_message_or_a_message_error(line: bytes | str) -> None:
    with pytest.raises(MessageError):
        parse_message(line)


@pytest.mark.parametrize(
    ("message", "details"),
    [
        ('"m"', '{"x":NaN}'),
        ('"m"', '{"x":-Infinity}'),
        ('"m"', '{"x":1e400}'),
        ('"m"', '{"x":' + "9" * 400 + "}"),
        ('"m"', '{"x":' + "9" * 5000 + "}"),
        ('"\\ud800"', "{}"),
        ('"m"', '{"\\udfff":1}'),
        ('"m"', '{"x":["\\ud800"]}'),
        ('"m"', '{"x":' + "[" * 300 + "]" * 300 + "}"),
        ('"m"', '{"x":' + "[" * 900 + "]" * 900 + "}"),
        ('"m"', '{"x":' + "[" * 100_000),
        ('"m"', '{"x":1,"x":2}'),
        ('"\\u0000"', "{}"),
    ],
)
def test_what_json_allows_and_nobody_means_ends_in_a_message_or_an_error(message: str, details: str) -> None:
    """Whatever is accepted must also survive being written down and sent on as the UTF-8 it then becomes."""
    try:
        read = parse_message(LINE % (message, details))
    except MessageError:
        return
    assert parse_message(encode_message(read)) == read
    read.text.encode()
    json.dumps(read.envelope, ensure_ascii=False, allow_nan=False).encode()


def test_built_messages_are_stamped_in_utc() -> None:
    now = datetime(2026, 1, 1, 1, 0, 0, 5000, tzinfo=timezone(timedelta(hours=1)))
    message = build_message("host-to-vm", "command", "diagnostics", now=now, id_="x")
    assert message.timestamp == "2026-01-01T00:00:00.005Z"
    assert (message.id, message.in_reply_to, dict(message.details)) == ("x", "", {})
    with pytest.raises(MessageError):
        build_message("host-to-vm", "command", "", now=datetime.now(UTC))
