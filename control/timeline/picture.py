"""Timelines as a picture (SVG), and as a page that holds it (HTML). What a guest said is never more than text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from control.timeline.compare import Comparison
from control.timeline.reader import Entry, Timeline
from control.timeline.text import draw_comparison, draw_text, draw_title

WIDTH, LEFT, RIGHT = 1000, 86, 24
ROW, GAP = 22, 8
LABEL_CHARACTERS = 6.3
"""What a character of 11 pixels takes, about: a sans-serif font is not measured here."""

COLUMNS = 300
"""Into so many the console's lines are counted."""

CONSOLE_HEIGHT = 46
LANE_MAX_ROWS = 14

_STYLE = """
svg { font: 11px system-ui, 'DejaVu Sans', sans-serif; background: #fff; }
.title { font-size: 14px; font-weight: 600; fill: #1c2430; }
.lane { fill: #667085; text-anchor: end; }
.axis { fill: #667085; text-anchor: middle; }
.grid { stroke: #e4e7ec; }
.words { fill: #1c2430; }
.inside { fill: #fff; }
.firmware { fill: #98a2b3; } .kernel { fill: #2e6fd8; } .init { fill: #14866d; } .agent { fill: #8a4fc7; }
.phase { fill: #5f6b7a; } .step { fill: #d97706; } .qmp { fill: #b42318; } .told { fill: #8a4fc7; }
.line { fill: #5b93e6; }
@media (prefers-color-scheme: dark) {
  svg { background: #12161c; }
  .title, .words { fill: #e6eaf0; } .lane, .axis { fill: #98a2b3; } .grid { stroke: #2a313c; }
}
"""


def draw_svg(timelines: Sequence[Timeline]) -> str:
    """One below the other, all on the same scale."""
    scale = _find_scale(max((timeline.seconds for timeline in timelines), default=0.0))
    parts: list[str] = []
    y = 12.0
    for timeline in timelines:
        drawn, y = _draw_chart(timeline, scale, y)
        parts += [*drawn, ""]
        y += 18
    height = round(y)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(draw_title(timelines[0]))}">\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "</svg>\n"
    )


def _find_scale(seconds: float) -> float:
    """Pixels for a second."""
    return (WIDTH - LEFT - RIGHT) / max(seconds, 0.001)


def _draw_chart(timeline: Timeline, scale: float, top: float) -> tuple[list[str], float]:
    rows: list[str] = []
    y = top + 16
    rows.append(f'<text class="title" x="12" y="{y:.0f}">{escape(draw_title(timeline))}</text>')
    y += 14
    chart_top = y
    body: list[str] = []
    for lane, entries in (
        ("phases", timeline.phases),
        ("steps", timeline.of_lane("step")),
        ("QEMU", timeline.of_lane("qmp")),
        ("agent", timeline.of_lane("agent")),
    ):
        if entries:
            body.append(f'<text class="lane" x="{LEFT - 10}" y="{y + 15:.0f}">{lane}</text>')
            drawn, used = _draw_lane(entries, scale, y)
            body += drawn
            y += used * ROW + GAP
    body.append(f'<text class="lane" x="{LEFT - 10}" y="{y + 15:.0f}">console</text>')
    body += _draw_console(timeline, scale, y)
    y += CONSOLE_HEIGHT + 4
    rows += _draw_axis(scale, chart_top, y)
    return rows + body, y + 16


def _draw_lane(entries: Sequence[Entry], scale: float, top: float) -> tuple[list[str], int]:
    """Each entry in the first row that has room for it and its words; what finds none is a mark without words."""
    ends: list[float] = []
    drawn = []
    for entry in entries:
        x = LEFT + entry.time * scale
        width = max((entry.duration or 0.0) * scale, 3.0)
        words = (
            entry.text if entry.duration is None or entry.lane == "phase" else f"{entry.text} {_show(entry.duration)}"
        )
        if entry.lane == "phase" and entry.duration is not None:
            words = f"{entry.text} {_show(entry.duration)}"
        is_inside = len(words) * LABEL_CHARACTERS + 8 < width
        needed = width if is_inside else width + 6 + len(words[:60]) * LABEL_CHARACTERS
        to_left = not is_inside and x + needed > WIDTH - 4
        begin = x - (needed - width) if to_left else x
        row = next((index for index, end in enumerate(ends) if end <= begin), len(ends))
        if row == LANE_MAX_ROWS:
            row, words = LANE_MAX_ROWS - 1, ""
        if row == len(ends):
            ends.append(0.0)
        ends[row] = max(ends[row], begin + needed + 4)
        drawn.append(_draw_entry(entry, x, top + row * ROW, width, words[:60], is_inside=is_inside, to_left=to_left))
    return drawn, len(ends)


def _draw_entry(entry: Entry, x: float, y: float, width: float, words: str, *, is_inside: bool, to_left: bool) -> str:
    kind = {"phase": entry.text, "agent": "told"}.get(entry.lane, entry.lane)
    kind = kind if kind in ("firmware", "kernel", "init", "agent", "step", "qmp", "told") else "phase"
    tip = f"{_show(entry.time)} {entry.text}" + (f", {_show(entry.duration)}" if entry.duration is not None else "")
    if is_inside:
        text = f'<text class="inside" x="{x + 5:.1f}" y="{y + 13:.1f}">{escape(words)}</text>'
    elif to_left:
        text = f'<text class="words" x="{x - 4:.1f}" y="{y + 13:.1f}" text-anchor="end">{escape(words)}</text>'
    else:
        text = f'<text class="words" x="{x + width + 4:.1f}" y="{y + 13:.1f}">{escape(words)}</text>'
    box = f'<rect class="{kind}" x="{x:.1f}" y="{y + 1:.1f}" width="{width:.1f}" height="{ROW - 5}" rx="2"/>'
    return f"<g><title>{escape(tip)}</title>{box}{text if words else ''}</g>"


def _draw_console(timeline: Timeline, scale: float, top: float) -> list[str]:
    """How many lines came when: a column for each part of the time, as high as it has lines, by their root."""
    span = (WIDTH - LEFT - RIGHT) / COLUMNS
    counts = [0] * COLUMNS
    for entry in timeline.of_lane("console"):
        counts[min(int(entry.time * scale / span), COLUMNS - 1)] += 1
    most = max([1, *counts]) ** 0.5
    drawn = []
    for index, count in enumerate(counts):
        if count:
            height = max(3.0, count**0.5 / most * CONSOLE_HEIGHT)
            x, y = LEFT + index * span, top + CONSOLE_HEIGHT - height
            drawn.append(
                f'<rect class="line" x="{x:.1f}" y="{y:.1f}" width="{span - 0.4:.1f}" height="{height:.1f}">'
                f"<title>{count} line{'s' if count > 1 else ''}</title></rect>"
            )
    return drawn


def _draw_axis(scale: float, top: float, bottom: float) -> list[str]:
    seconds = (WIDTH - LEFT - RIGHT) / scale
    tick = next((unit for unit in _UNITS if seconds / unit <= 12), seconds / 10)
    drawn = []
    for index in range(int(seconds / tick) + 1):
        x = LEFT + index * tick * scale
        drawn.append(f'<line class="grid" x1="{x:.1f}" y1="{top:.0f}" x2="{x:.1f}" y2="{bottom:.0f}"/>')
        drawn.append(f'<text class="axis" x="{x:.1f}" y="{bottom + 13:.0f}">{index * tick:.10g} s</text>')
    return drawn


_UNITS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


def _show(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


_PAGE_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px auto; max-width: 1040px; padding: 0 16px; color: #1c2430; }
svg { max-width: 100%; height: auto; border: 1px solid #e4e7ec; border-radius: 8px; }
pre { overflow-x: auto; background: #f5f7fa; border-radius: 8px; padding: 12px; font-size: 12px; }
table { border-collapse: collapse; font: 12px ui-monospace, monospace; width: 100%; }
td, th { text-align: left; padding: 2px 10px 2px 0; vertical-align: top; border-bottom: 1px solid #eef0f3; }
td:first-child { text-align: right; white-space: nowrap; } td:last-child { overflow-wrap: anywhere; }
summary { cursor: pointer; margin: 16px 0 8px; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  body { background: #12161c; color: #e6eaf0; } pre { background: #1b2129; } svg { border-color: #2a313c; }
  td, th { border-color: #232a33; }
}
"""


def draw_page(timelines: Sequence[Timeline], comparison: Comparison | None = None) -> str:
    """A page that needs nothing else: the picture, the text, and every entry. It has no script, and allows none."""
    told = draw_comparison(comparison) if comparison is not None else draw_text(timelines[0])
    tables = "".join(_draw_table(timeline) for timeline in timelines)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(draw_title(timelines[0]))}</title><style>{_PAGE_STYLE}</style></head><body>\n"
        f"{draw_svg(timelines)}<pre>{escape(told)}</pre>\n{tables}</body></html>\n"
    )


def _draw_table(timeline: Timeline) -> str:
    rows = "".join(
        f"<tr><td>{entry.time:.3f} s</td><td>{entry.lane}</td>"
        f"<td>{_show(entry.duration) if entry.duration is not None else ''}</td><td>{escape(entry.text)}</td></tr>\n"
        for entry in timeline.entries
    )
    head = "<tr><th>at</th><th>lane</th><th>takes</th><th>what</th></tr>"
    return (
        f"<details><summary>{escape(timeline.name)}: all {len(timeline.entries)} entries</summary>"
        f"<table>{head}\n{rows}</table></details>\n"
    )
