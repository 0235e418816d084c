"""Timelines in the format of Chrome's tracing: for chrome://tracing and Perfetto.

Source: Trace Event Format (Google, "Trace Event Format", the JSON object format); times are microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from control.timeline.reader import LANES, Timeline


def build_trace(timelines: Sequence[Timeline]) -> dict[str, Any]:
    """One process for each timeline, with a thread for each lane."""
    events: list[dict[str, Any]] = []
    for process, timeline in enumerate(timelines, 1):
        events.append(_name("process_name", process, 0, timeline.name))
        for thread, lane in enumerate(LANES, 1):
            events.append(_name("thread_name", process, thread, lane))
            for entry in timeline.phases if lane == "phase" else timeline.of_lane(lane):
                event = {"name": entry.text, "cat": lane, "pid": process, "tid": thread, "ts": entry.time * 1e6}
                if entry.duration is None:
                    events.append({**event, "ph": "i", "s": "t"})
                else:
                    events.append({**event, "ph": "X", "dur": entry.duration * 1e6})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
