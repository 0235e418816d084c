"""A recorded console is read back byte for byte, and as an asciinema recording that says the same."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.console.cast import Recording, build_cast, open_recording, read_untimed
from control.console.recorder import Recorder
from control.errors import ConfigError, ConsoleError
from control.process import punch
from control.process.punch import punch_log

BEGAN = 1_700_000_000.25


def record(directory: Path, data: bytes, cuts: list[int]) -> tuple[Path, Path]:
    """A log that came in pieces, one each second."""
    log, times = directory / "serial", directory / "serial.times"
    log.write_bytes(data)
    now = 0.0
    with Recorder(
        times, started_at=BEGAN, console="ttyS0", columns=100, rows=30, clock=lambda: now, wall=lambda: BEGAN
    ) as it:
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for number, (begin, end) in enumerate(itertools.pairwise(edges)):
            now = float(number)
            it.said(data[begin:end], end)
            if number % 3 == 0:
                it.mark(f"mark {number}")
    return log, times


def write_times(
    directory: Path, *entries: Any, data: bytes = b"0123456789", more: str = "", **header: Any
) -> Recording:
    (directory / "serial").write_bytes(data)
    head = {"version": 1, "started_at": BEGAN, "console": "ttyS0", "columns": 80, "rows": 24, **header}
    lines = [json.dumps(line) for line in (head, *entries)]
    (directory / "serial.times").write_text("\n".join(lines) + "\n" + more)
    return open_recording(directory / "serial", directory / "serial.times")


def read_cast(recording: Recording, mark: str = "") -> tuple[dict[str, Any], list[Any]]:
    header, *events = build_cast(recording, "title", recording.find_mark(mark) if mark else None)
    return json.loads(header), [json.loads(event) for event in events]


def join(events: list[Any]) -> str:
    return "".join(text for _, kind, text in events if kind == "o")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_a_replay_is_the_log_byte_for_byte(data: bytes, cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory, open_recording(*record(Path(directory), data, cuts)) as recording:
        pieces = list(recording.replay())
        assert b"".join(piece for _, piece in pieces) == data
        assert [at for at, _ in pieces] == sorted(at for at, _ in pieces)


@given(st.text(max_size=200), st.lists(st.integers(0, 600), max_size=40))
def test_a_cast_is_the_log_though_characters_came_in_pieces(text: str, cuts: list[int]) -> None:
    data = text.encode()
    with tempfile.TemporaryDirectory() as directory, open_recording(*record(Path(directory), data, cuts)) as recording:
        _, events = read_cast(recording)
    assert join(events).encode() == data
    assert all(text for _, kind, text in events if kind == "o")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=20))
def test_a_cast_of_what_is_no_utf8_is_what_a_decoder_makes_of_it(data: bytes, cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory, open_recording(*record(Path(directory), data, cuts)) as recording:
        _, events = read_cast(recording)
    assert join(events) == data.decode("utf-8", "replace")


def test_the_cast_is_what_asciinema_documents(tmp_path: Path) -> None:
    entries = ([1.5, "o", 4], [2, "i", "ls\r"], [2.5, "m", "agent"], [3, "r", "132x43"], [4, "o", 10])
    with write_times(tmp_path, *entries, columns=100, rows=30) as recording:
        header, events = read_cast(recording)
    assert header == {
        "version": 2, "width": 100, "height": 30, "timestamp": int(BEGAN), "title": "title",
        "env": {"TERM": "xterm-256color"},
    }  # fmt: skip
    assert events == [
        [1.5, "o", "0123"], [2.0, "i", "ls\r"], [2.5, "m", "agent"], [3.0, "r", "132x43"], [4.0, "o", "456789"],
    ]  # fmt: skip


def test_what_has_come_since_the_last_time_is_part_of_it(tmp_path: Path) -> None:
    with write_times(tmp_path, [1, "o", 4]) as recording:
        assert list(recording.replay()) == [(1.0, b"0123"), (1.0, b"456789")]
    with write_times(tmp_path) as recording:
        assert list(recording.replay()) == [(0.0, b"0123456789")]


def test_damage_is_passed_over(tmp_path: Path) -> None:
    """A half line, offsets beyond the log or backwards, entries of kinds nobody knows."""
    entries: tuple[Any, ...] = (
        [1, "o", 4],
        [1, "o", 2],
        [2, "x", "?"],
        [2, "o", "4"],
        {},
        [2, "o", 999],
        [3, "o", True],
    )
    with write_times(tmp_path, *entries, more='[4, "o", 1') as recording:
        assert list(recording.replay()) == [(1.0, b"0123"), (2.0, b"456789")]


@pytest.mark.parametrize("times", [b"", b"\xff\xfe", b'{"version": 9}\n', b"[" * 5000])
def test_what_is_no_recording_is_refused(tmp_path: Path, times: bytes) -> None:
    (tmp_path / "serial").write_bytes(b"x")
    (tmp_path / "serial.times").write_bytes(times)
    with pytest.raises(ConsoleError, match="no recording"):
        open_recording(tmp_path / "serial", tmp_path / "serial.times")


def test_markers(tmp_path: Path) -> None:
    entries = (
        [1, "m", "firmware"],
        [2, "o", 4],
        [3, "m", "message: done"],
        [3, "m", "kernel"],
        [4, "o", 8],
        [5, "m", "kern"],
    )
    with write_times(tmp_path, *entries) as recording:
        assert [label for label, _ in recording.marks()] == ["firmware", "message: done", "kernel", "kern"]
        header, events = read_cast(recording, "kernel")
        assert header["timestamp"] == int(BEGAN + 3)
        assert events == [[0.0, "m", "kernel"], [1.0, "o", "4567"], [2.0, "m", "kern"], [2.0, "o", "89"]]
        assert recording.find_mark("message").time == 3
        assert recording.find_mark("kern").time == 5, "the exact one goes before the one that begins so"
        with pytest.raises(ConfigError) as caught:
            recording.find_mark("nothing")
        assert "'firmware', 'message: done', 'kernel'" in caught.value.hint


def test_a_recording_whose_oldest_half_was_dropped_begins_where_it_begins(tmp_path: Path) -> None:
    with write_times(tmp_path, [5000, "o", 8], [5001, "o", 10], dropped_s=5000) as recording:
        header, events = read_cast(recording)
        assert header["timestamp"] == int(BEGAN + 5000)
        assert events == [[0.0, "o", "01234567"], [1.0, "o", "89"]]


@pytest.fixture
def small_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(punch, "KEPT_BYTES", 16 * 1024)
    monkeypatch.setattr(punch, "SLACK_BYTES", 0)
    yield


def test_a_log_whose_oldest_blocks_were_given_back_begins_where_data_begins(tmp_path: Path, small_logs: None) -> None:
    data = os.urandom(64 * 1024)
    log, times = record(tmp_path, data, [1000, 60_000])
    try:
        punch_log(str(log), 0)
    except OSError as error:
        pytest.skip(f"this file system cannot give blocks back: {error}")
    kept = b"".join(read_untimed(log))
    assert len(kept) == 16 * 1024 and data.endswith(kept)
    with open_recording(log, times) as recording:
        assert b"".join(piece for _, piece in recording.replay()) == kept
