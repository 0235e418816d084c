"""Timelines: written whatever comes, read whatever is there, and drawn so that a guest's words stay words."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from control.errors import ConfigError
from control.timeline.chrome import build_trace
from control.timeline.compare import compare
from control.timeline.picture import draw_page, draw_svg
from control.timeline.reader import Entry, Timeline, from_plain, read_timeline
from control.timeline.text import draw_comparison, draw_text
from control.timeline.writer import LIMIT_BYTES, Lane, Writer, begin_timeline


def make(*entries: tuple[float, Lane, str] | tuple[float, Lane, str, float], name: str = "one") -> Timeline:
    about = {"what": "a boot", "accelerator": "tcg", "started_at": 1796056862.0}
    return Timeline(name, about, tuple(Entry(*entry) for entry in entries))


BOOT = make(
    (0.0, "step", "QEMU sets itself up", 0.1),
    (0.1, "phase", "firmware"),
    (0.2, "qmp", 'RESUME {"a": 1}'),
    (0.5, "phase", "kernel"),
    (0.5, "console", "[    0.000000] Linux version 6.1.0"),
    (0.6, "console", "[    0.100000] x: found 3 cpus at 0x7f00"),
    (1.6, "console", "[    1.100000] y"),
    (2.0, "phase", "agent"),
    (2.5, "agent", "boot finished"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    begin_timeline(tmp_path / "timeline.jsonl", tmp_path / "before.jsonl", {"what": "a boot", "accelerator": "tcg"})
    return tmp_path / "timeline.jsonl"


def test_what_is_written_is_read(path: Path) -> None:
    writer = Writer(path)
    writer.note_start("QEMU sets itself up")
    writer.note("phase", "kernel")
    writer.said("first li")
    writer.said("ne\r\nsecond\n\n   \nlast")
    with writer.step("work"):
        time.sleep(0.02)
    writer.close()
    writer.close()
    timeline = read_timeline(path, "one")
    assert [entry.text for entry in timeline.of_lane("console")] == ["first line", "second", "last"]
    (work,) = [entry for entry in timeline.entries if entry.text == "work"]
    assert work.duration is not None and 0.02 <= work.duration < 5
    assert timeline.entries[0] == Entry(0.0, "step", "QEMU sets itself up", timeline.entries[0].duration)
    assert timeline.about["what"] == "a boot" and path.stat().st_mode & 0o777 == 0o600


def test_a_line_counts_from_its_first_character(path: Path) -> None:
    writer = Writer(path)
    writer.said("pass")
    time.sleep(0.05)
    writer.note("agent", "meanwhile")
    writer.said("word:\n")
    writer.close()
    assert [entry.text for entry in read_timeline(path, "one").entries] == ["password:", "meanwhile"]


def test_another_goes_on_with_it(path: Path) -> None:
    """As after the death of a supervisor, in the middle of a line."""
    Writer(path).note("step", "before")
    with path.open("ab") as file:
        file.write(b'[1.0, "ste')
    writer = Writer(path)
    writer.note("step", "lost with the half line")
    writer.note("step", "after")
    writer.close()
    assert [entry.text for entry in read_timeline(path, "one").entries] == ["before", "after"]


def test_the_run_before_is_kept(path: Path) -> None:
    Writer(path).note("step", "of the first run")
    before = path.with_name("before.jsonl")
    begin_timeline(path, before, {"what": "a boot"})
    assert [entry.text for entry in read_timeline(before, "one").entries] == ["of the first run"]
    assert read_timeline(path, "one").entries == ()


def test_it_is_bounded(path: Path) -> None:
    said: list[str] = []
    writer = Writer(path, said.append)
    for _ in range(200):
        writer.said(("x" * 200 + "\n") * 200)
    assert not writer.is_open and said == []
    writer.note("step", "late")
    assert path.stat().st_size < LIMIT_BYTES + 1024
    assert read_timeline(path, "one").entries[-1].text == "no more is written here"


def test_what_cannot_be_written_is_said_once(path: Path) -> None:
    said: list[str] = []
    path.write_text("nonsense\n")
    writer = Writer(path, said.append)
    writer.note("step", "x")
    assert len(said) == 1 and not writer.is_open
    assert Writer(path.with_name("missing")).is_open is False
    with pytest.raises(ConfigError, match="is no timeline"):
        read_timeline(path, "one")


def test_nonsense_in_it_is_passed_over(path: Path) -> None:
    with path.open("ab") as file:
        for line in ("[]", "{}", '[1, "nolane", "x"]', '["a", "step", "x"]', "[1]", "\x00", '[1, "step", "good", 2]'):
            file.write(line.encode() + b"\n")
    assert read_timeline(path, "one").entries == (Entry(1.0, "step", "good", 2.0),)


def test_phases_last_until_the_next() -> None:
    assert [(phase.text, phase.duration) for phase in BOOT.phases] == [
        ("firmware", 0.4),
        ("kernel", 1.5),
        ("agent", None),
    ]
    assert [(gap.seconds, gap.after) for gap in BOOT.gaps] == [
        (1.0, "[    1.100000] y"),
        (pytest.approx(0.1), "[    0.100000] x: found 3 cpus at 0x7f00"),
    ]


def test_a_start_ends_where_the_guest_is_up() -> None:
    later = make(*((e.time, e.lane, e.text) for e in BOOT.entries), (3600.0, "step", "snapshot x", 0.1))
    assert later.boot.entries[-1].text == "boot finished"
    assert later.seconds == 3600.1


def test_text() -> None:
    text = draw_text(BOOT)
    assert "one: a boot under tcg on 2026-11-30" in text and "2.500 s, 3 lines" in text
    assert "kernel      0.500 s    1.500 s" in text and "  1.000 s  [    0.100000] x: found" in text
    assert draw_text(BOOT, every=True).count("\n") == len(BOOT.entries) + 2
    assert draw_text(make()) == "one: a boot under tcg on " + draw_text(make()).split(" on ")[1]


def test_a_comparison_finds_where_one_falls_behind() -> None:
    other = make(
        (0.1, "phase", "firmware"),
        (0.5, "phase", "kernel"),
        (0.5, "console", "[    0.000000] Linux version 6.1.0"),
        (0.6, "console", "[    0.100400] x: found 4 cpus at 0x8000"),
        (3.6, "console", "[    3.100000] y"),
        (3.7, "console", "new"),
        (4.0, "phase", "agent"),
    )
    comparison = compare(BOOT, other)
    assert [(jump.seconds, jump.text) for jump in comparison.jumps] == [(2.0, "[    1.100000] y")]
    assert comparison.only_right == ("new",) and comparison.only_left == ()
    rows = {row.text: (row.left, row.right) for row in comparison.rows}
    assert rows["kernel"] == (1.5, 3.5) and rows["QEMU sets itself up"] == (0.1, None)
    text = draw_comparison(comparison)
    assert "kernel                 1.500 s    3.500 s    +2.000 s" in text and "ONLY THE SECOND SAID\n  new" in text


def test_what_a_guest_says_is_text_in_pictures_and_pages() -> None:
    evil = "</text><script>alert(1)</script>\"'&"
    timeline = make((0.0, "agent", evil), (0.1, "console", evil), (0.2, "phase", evil), (0.3, "step", evil, 0.1))
    for drawn in (draw_svg([timeline]), draw_page([timeline], compare(timeline, timeline))):
        assert "<script" not in drawn and "onload" not in drawn
    words = [text.text or "" for text in ET.fromstring(draw_svg([timeline])).iter("{http://www.w3.org/2000/svg}text")]
    assert any(evil in each for each in words)


def test_what_no_terminal_should_see_is_taken_out(path: Path) -> None:
    with path.open("ab") as file:
        file.write(json.dumps([1.0, "agent", "a\x1b]0;title\x07\tb\x00"]).encode() + b"\n")
    assert read_timeline(path, "one").entries[0].text == "a?]0;title? b?"


@pytest.mark.parametrize("count", [0, 1, 500])
def test_pictures_of_little_and_of_much(count: int) -> None:
    entries: list[tuple[float, Lane, str]] = [(index / 10, "agent", f"message {index}") for index in range(count)]
    svg = draw_svg([make(*entries), BOOT])
    picture = ET.fromstring(svg)
    width, height = (float(picture.attrib[key]) for key in ("width", "height"))
    assert height < 1200
    for box in picture.iter("{http://www.w3.org/2000/svg}rect"):
        assert 0 <= float(box.attrib["x"]) <= width and 0 <= float(box.attrib["y"]) <= height


def test_chrome_has_a_thread_for_each_lane() -> None:
    trace = build_trace([BOOT, BOOT])
    spans = {(each["pid"], each["name"]): each["dur"] for each in trace["traceEvents"] if each["ph"] == "X"}
    assert spans[1, "kernel"] == pytest.approx(1.5e6) and spans[2, "QEMU sets itself up"] == pytest.approx(0.1e6)
    assert {each["args"]["name"] for each in trace["traceEvents"] if each["name"] == "thread_name"} == {
        "phase", "step", "agent", "qmp", "console",
    }  # fmt: skip


def test_plain_data_and_back(tmp_path: Path) -> None:
    assert from_plain(json.loads(json.dumps(BOOT.describe())), tmp_path).entries == BOOT.entries
    nonsense: list[object] = [[], {}, {"name": "x", "entries": [{}]}, {"name": "x", "entries": [{"time": "a"}]}]
    for wrong in nonsense:
        with pytest.raises(ConfigError, match="is no timeline"):
            from_plain(wrong, tmp_path)
