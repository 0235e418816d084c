"""Timelines as text: where the time of a boot went, and where that of two differs."""

from __future__ import annotations

import re
from datetime import datetime

from control.timeline.compare import Comparison
from control.timeline.reader import Entry, Timeline

BAR = 40
WORDS = 88
EVENTS_MAX = 40


def draw_text(timeline: Timeline, *, every: bool = False) -> str:
    """The phases with bars, the steps, the longest silences of the console, what QEMU and the agent have said.

    Args:
        every: All entries in their order, instead.
    """
    parts = [draw_title(timeline)]
    if every:
        parts.append("\n".join(_draw_entry(entry) for entry in timeline.entries))
        return "\n\n".join(parts) + "\n"
    for title, entries in (("PHASE", timeline.phases), ("STEP", timeline.of_lane("step"))):
        if entries:
            parts.append(_draw_bars(title, entries, timeline.seconds))
    if timeline.gaps:
        lines = [f"{'SILENT':>9}  THE CONSOLE SAID, AND THEN NOTHING UNTIL"]
        for gap in timeline.gaps:
            lines += [f"{gap.seconds:7.3f} s  {_shorten(gap.before)}", f"{'':9}  {_shorten(gap.after)}"]
        parts.append("\n".join(lines))
    said = timeline.of_lane("agent", "qmp")
    if said:
        lines = [f"{'AT':>9}  QEMU AND THE AGENT", *(_draw_entry(entry) for entry in said[:EVENTS_MAX])]
        if len(said) > EVENTS_MAX:
            lines.append(f"{'':9}  … {len(said) - EVENTS_MAX} more (--all)")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def draw_title(timeline: Timeline) -> str:
    """One line: which machine, what was started, when, and how long it took."""
    words = [str(timeline.about.get("what") or "a boot")]
    if timeline.about.get("accelerator"):
        words.append(f"under {timeline.about['accelerator']}")
    started = timeline.about.get("started_at")
    if isinstance(started, int | float):
        words.append(f"on {datetime.fromtimestamp(started).astimezone():%Y-%m-%d %H:%M:%S}")
    return f"{timeline.name}: {' '.join(words)}, {timeline.seconds:.3f} s, {len(timeline.of_lane('console'))} lines"


def _shorten(line: str) -> str:
    """A line of the console as one reads it: of a message of the agent what it says."""
    if line.startswith('{"'):
        told = re.search(r'"message": ?"([^"]*)"', line)
        line = f"message: {told[1]}" if told is not None else line
    return line[:WORDS]


def _draw_bars(title: str, entries: list[Entry], whole: float) -> str:
    width = min(max(len(title), *(len(entry.text) for entry in entries)), 48)
    lines = [f"{title:{width}}  {'AT':>9}  {'TAKES':>9}"]
    for entry in entries:
        takes = f"{entry.duration:7.3f} s" if entry.duration is not None else ""
        bar = _draw_bar(entry, whole)
        lines.append(f"{entry.text[:width]:{width}}  {entry.time:7.3f} s  {takes:>9}  {bar}".rstrip())
    return "\n".join(lines)


def _draw_bar(entry: Entry, whole: float) -> str:
    if whole <= 0:
        return ""
    begin = min(int(entry.time / whole * BAR), BAR - 1)
    length = max(1, round((entry.duration or 0.0) / whole * BAR))
    return " " * begin + ("█" * min(length, BAR - begin) if entry.duration else "▏")


def _draw_entry(entry: Entry) -> str:
    takes = f" ({entry.duration:.3f} s)" if entry.duration is not None else ""
    return f"{entry.time:7.3f} s  {entry.lane:7}  {entry.text}{takes}"


def draw_comparison(comparison: Comparison) -> str:
    """Phases and steps beside each other, and the lines at which one falls behind the other."""
    parts = [f"{draw_title(comparison.left)}\n{draw_title(comparison.right)}"]
    if comparison.rows:
        width = min(max(len("PHASE OR STEP"), *(len(row.text) for row in comparison.rows)), 48)
        lines = [f"{'PHASE OR STEP':{width}}  {'FIRST':>9}  {'SECOND':>9}  {'DIFFERENCE':>10}"]
        for row in comparison.rows:
            times = f"{_seconds(row.left)}  {_seconds(row.right)}  {_difference(row.left, row.right)}"
            lines.append(f"{row.text[:width]:{width}}  {times}")
        parts.append("\n".join(lines))
    if comparison.jumps:
        lines = [f"{'LATER BY':>10}  WHEN BOTH HAVE SAID"]
        lines += [f"{jump.seconds:+8.3f} s  {_shorten(jump.text)}" for jump in comparison.jumps]
        parts.append("\n".join(lines))
    for title, only in (("ONLY THE FIRST SAID", comparison.only_left), ("ONLY THE SECOND SAID", comparison.only_right)):
        if only:
            more = [f"  … {len(only) - EVENTS_MAX} more"] if len(only) > EVENTS_MAX else []
            parts.append("\n".join([title, *(f"  {_shorten(text)}" for text in only[:EVENTS_MAX]), *more]))
    return "\n\n".join(parts) + "\n"


def _seconds(value: float | None) -> str:
    return f"{value:7.3f} s" if value is not None else f"{'-':>9}"


def _difference(left: float | None, right: float | None) -> str:
    return f"{right - left:+8.3f} s" if left is not None and right is not None else f"{'':>10}"
