"""Two boots beside each other: what took longer in which, and at which line one fell behind."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from control.timeline.reader import Timeline

JUMPS = 10
JUMP_MIN_S = 0.02

_CHANGING = re.compile(r"^\[ *\d+\.\d+\] *|0x[0-9a-fA-F]+|\d+(?:[.:]\d+)*")
"""What differs from boot to boot in a line that says the same: times, addresses, numbers."""


@dataclass(frozen=True)
class Row:
    """How long a phase or step took in each; None where it was not."""

    text: str
    left: float | None
    right: float | None


@dataclass(frozen=True)
class Jump:
    """By how much more the second is behind the first at this line than at the one before; negative: it catches up."""

    seconds: float
    time: float
    text: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` has found; `only_left` and `only_right` are lines that the other's console did not say."""

    left: Timeline
    right: Timeline
    rows: tuple[Row, ...]
    jumps: tuple[Jump, ...]
    only_left: tuple[str, ...]
    only_right: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "first": self.left.describe(),
            "second": self.right.describe(),
            "rows": [{"text": row.text, "first": row.left, "second": row.right} for row in self.rows],
            "jumps": [vars(jump) for jump in self.jumps],
            "only_first": list(self.only_left),
            "only_second": list(self.only_right),
        }


def compare(left: Timeline, right: Timeline) -> Comparison:
    """Compare two timelines: durations of what both have, and the times of the lines that both consoles have said."""
    lines = {side: _number_lines(timeline) for side, timeline in (("left", left), ("right", right))}
    both = [key for key in lines["left"] if key in lines["right"]]
    jumps, behind = [], 0.0
    for key in both:
        now = lines["right"][key][0] - lines["left"][key][0]
        if abs(now - behind) >= JUMP_MIN_S:
            jumps.append(Jump(round(now - behind, 6), lines["left"][key][0], lines["left"][key][1]))
        behind = now
    largest = sorted(jumps, key=lambda jump: -abs(jump.seconds))[:JUMPS]
    return Comparison(
        left,
        right,
        _list_rows(left, right),
        tuple(sorted(largest, key=lambda jump: jump.time)),
        tuple(lines["left"][key][1] for key in lines["left"] if key not in lines["right"]),
        tuple(lines["right"][key][1] for key in lines["right"] if key not in lines["left"]),
    )


def _number_lines(timeline: Timeline) -> dict[tuple[str, int], tuple[float, str]]:
    """The lines of the console by what they say without changing parts, and the how-manieth of these each is."""
    seen: Counter[str] = Counter()
    found = {}
    for entry in timeline.of_lane("console"):
        key = _CHANGING.sub("", entry.text).strip()
        seen[key] += 1
        found[key, seen[key]] = (entry.time, entry.text)
    return found


def _list_rows(left: Timeline, right: Timeline) -> tuple[Row, ...]:
    sides = []
    for timeline in (left, right):
        lasting = [entry for entry in (*timeline.phases, *timeline.of_lane("step")) if entry.duration is not None]
        sides.append({entry.text: entry.duration for entry in lasting} | {"all of it": timeline.seconds})
    texts = [text for text in dict.fromkeys([*sides[0], *sides[1]]) if text != "all of it"]
    return tuple(Row(text, sides[0].get(text), sides[1].get(text)) for text in (*texts, "all of it"))
