"""What seems wrong with a guest, whatever a test asserts (floor 6): in what its kernel and its agent have said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

TAIL_CHARACTERS = 200

_KERNELS = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[[^\]]*\])? (.*)")
"""A line of the kernel on a console; what programs write there is not believed."""

_PATTERNS = (
    ("panic", re.compile(r"Kernel panic - not syncing: .*")),
    (
        "oops",
        re.compile(
            r"(?:Oops: |BUG: |KASAN: |kernel BUG at |general protection fault"
            r"|Internal error: |Unable to handle kernel ).*"
        ),
    ),
    ("oom", re.compile(r"(?:Memory cgroup out|Out) of memory: Killed process .*")),
)
"""Source: Linux, kernel/panic.c, lib/bug.c, arch/*/kernel/traps.c and dumpstack.c, mm/oom_kill.c, mm/kasan/report.c."""


@dataclass(frozen=True)
class Trouble:
    """One of `control.testing.wishes.TROUBLES`, and the words that show it."""

    kind: str
    words: str


def find_in_console(text: str) -> list[Trouble]:
    """What the kernel has complained of, each line once.

    >>> find_in_console("[    3.5] Oops: 0000 [#1]\\nOops: said by a program\\n")
    [Trouble(kind='oops', words='Oops: 0000 [#1]')]
    """
    found: dict[Trouble, None] = {}
    for line in text.splitlines():
        if (match := _KERNELS.match(line)) is None:
            continue
        for kind, pattern in _PATTERNS:
            if (words := pattern.search(match[1])) is not None:
                found[Trouble(kind, words[0][:TAIL_CHARACTERS])] = None
                break
    return list(found)


def find_in_messages(lines: Iterable[bytes]) -> list[Trouble]:
    """What the agent has told: units that failed, and processes that were killed because memory ran out."""
    found: dict[Trouble, None] = {}
    for line in lines:
        try:
            message = json.loads(line)
            text, details = message["data"]["message"], message["data"].get("details", {})
            is_status = message["type"] == "status" and message["direction"] == "vm-to-host"
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # a line that is being written, or none of ours
        if not is_status or not isinstance(text, str):
            continue
        if text.startswith("service ") and text.endswith(" failed"):
            found[Trouble("unit", text[:TAIL_CHARACTERS])] = None
        elif text == "out of memory":
            found[Trouble("oom", f"{text}: {json.dumps(details)}"[:TAIL_CHARACTERS])] = None
    return list(found)
