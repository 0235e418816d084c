"""What the holder of a machine without QEMU says of it (floor 3). Blocking, quick to import."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.paths import InstanceFiles

HELD_KINDS = ("process", "serial")


def is_held(spec: Mapping[str, Any]) -> bool:
    """Whether a holder has the machine whose specification is recorded as `spec`."""
    return spec.get("kind") in HELD_KINDS


@dataclass(frozen=True)
class End:
    """How a machine ended.

    Attributes:
        how: As in "it …".
        exit_code: Of a program, or 128 and the number of the signal that ended it.
        error: Why it could not be started, a whole sentence; empty otherwise.
        hint: What to do then.
    """

    how: str
    exit_code: int | None = None
    error: str = ""
    hint: str = ""

    @property
    def is_good(self) -> bool:
        return self.exit_code == 0


def read_state(files: InstanceFiles) -> dict[str, Any] | None:
    """Read what a holder says of a machine it has; None before it has it."""
    return _read(files.holder_state)


def read_end(files: InstanceFiles) -> End | None:
    """Read how a machine ended; None while it has not, or when its holder was killed."""
    plain = _read(files.holder_end)
    if plain is None:
        return None
    if "error" in plain:
        return End(
            "could not be started",
            error=str(plain["error"]),
            hint=str(plain.get("hint", "")) or "is it installed, and in PATH? may it be run?",
        )
    if plain["signal"]:
        return End(f"was ended by {_name_signal(plain['signal'])}", plain["exit_code"])
    return End(f"ended with exit code {plain['exit_code']}", plain["exit_code"])


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # a holder writes whole files: one that cannot be read is none
    return found if isinstance(found, dict) else None
