"""Reads timelines, and works out what took how long."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from control.errors import ConfigError
from control.timeline.writer import FULL, Lane

LANES: tuple[Lane, ...] = get_args(Lane)
GAPS = 10
GAP_MIN_S = 0.02
NEAR_S = 30.0


@dataclass(frozen=True)
class Entry:
    """What happened at `time`, in seconds since QEMU was started; `duration` is None for what took no time."""

    time: float
    lane: Lane
    text: str
    duration: float | None = None

    @property
    def end(self) -> float:
        return self.time + (self.duration or 0.0)


@dataclass(frozen=True)
class Gap:
    """A silence of the console: `before` was said, then nothing for `seconds`, then `after`."""

    time: float
    seconds: float
    before: str
    after: str


@dataclass(frozen=True)
class Timeline:
    """One run of a VM.

    Attributes:
        name: Of the VM.
        about: What the header says: `accelerator`, `what` was started, `started_at` (Unix seconds).
        entries: In the order of their times.
    """

    name: str
    about: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return max((entry.end for entry in self.entries), default=0.0)

    def of_lane(self, *lanes: Lane) -> list[Entry]:
        return [entry for entry in self.entries if entry.lane in lanes]

    @property
    def phases(self) -> list[Entry]:
        """The phases of the boot, each until the next; the last one is a moment."""
        begun = [entry for entry in self.of_lane("phase") if entry.duration is None]
        whole = [Entry(a.time, "phase", a.text, b.time - a.time) for a, b in pairwise(begun)]
        return [*whole, *begun[-1:]]

    @property
    def boot(self) -> Timeline:
        """What there is of it until the guest was up; what was done to it much later, a snapshot say, is left out."""
        ends = [entry.end for entry in self.of_lane("phase", "step") if entry.text != FULL]
        ends += [entry.time for entry in self.of_lane("agent") if entry.text.startswith("boot finished")]
        up = max((entry.time for entry in self.of_lane("phase")), default=0.0)
        until = max((end for end in ends if end <= max(up * 4, up + NEAR_S)), default=self.seconds)
        # A little more, for what was said at that moment.
        return Timeline(self.name, self.about, tuple(entry for entry in self.entries if entry.time <= until * 1.05))

    @property
    def gaps(self) -> list[Gap]:
        """The longest silences of the console, the longest first."""
        lines = self.of_lane("console")
        found = [Gap(a.time, b.time - a.time, a.text, b.text) for a, b in pairwise(lines)]
        return sorted((gap for gap in found if gap.seconds >= GAP_MIN_S), key=lambda gap: -gap.seconds)[:GAPS]

    def describe(self) -> dict[str, Any]:
        """As plain data, from which `from_plain` makes it again."""
        return {
            "name": self.name,
            **{key: self.about.get(key) for key in ("what", "accelerator", "started_at")},
            "seconds": round(self.seconds, 6),
            "entries": [
                {"time": entry.time, "lane": entry.lane, "text": entry.text, "duration": entry.duration}
                for entry in self.entries
            ],
        }


def read_timeline(path: Path, name: str) -> Timeline:
    """Read `timeline.jsonl`; half a last line is passed over.

    Raises:
        FileNotFoundError: There is none.
        ConfigError: It is none.
    """
    with path.open("rb") as file:
        about = _read_json(file.readline())
        if not isinstance(about, dict) or about.get("version") != 1:
            raise ConfigError(f"{path} is no timeline", key="timeline", hint="it was written by another version")
        rows = [_read_json(line) for line in file]
    return Timeline(name, about, _sort(entry for row in rows if (entry := _read_entry(row)) is not None))


def from_plain(plain: object, path: Path) -> Timeline:
    """Read what `describe` returned. Raises ConfigError when it is nothing of the kind."""
    try:
        if not isinstance(plain, dict):
            raise TypeError("no object")
        entries = [
            Entry(
                float(each["time"]),
                _check_lane(each["lane"]),
                _clean(str(each["text"])),
                _read_duration(each["duration"]),
            )
            for each in plain["entries"]
        ]
        return Timeline(str(plain["name"]), dict(plain), _sort(entries))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is no timeline: {error!r}", key="compare", hint="unhinged timeline NAME --json makes one"
        ) from error


def _sort(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.time))


def _read_json(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _read_entry(row: object) -> Entry | None:
    try:
        if not isinstance(row, list):
            return None
        time, lane, text, *duration = row
        return Entry(float(time), _check_lane(lane), _clean(str(text)), float(duration[0]) if duration else None)
    except (ValueError, TypeError):
        return None


def _clean(text: str) -> str:
    """Safe for a terminal, and for XML: what a guest wrote is in it."""
    return "".join(char if char.isprintable() else " " if char == "\t" else "?" for char in text)


def _check_lane(lane: object) -> Lane:
    for each in LANES:
        if lane == each:
            return each
    raise ValueError(f"no lane {lane!r}")


def _read_duration(value: object) -> float | None:
    return None if value is None else float(str(value))
