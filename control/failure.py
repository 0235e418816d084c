"""An error as plain data, and back (floor 0): over a supervisor's socket, and in the documents of `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control.errors import EXIT_ERROR, ControlError

LINES_MAX = 40
TEXT_MAX = 4000


class RemoteError(ControlError):
    """An error that another process of ours has met; `kind` is the name of its class there."""

    def __init__(self, failure: Mapping[str, Any]) -> None:
        super().__init__(str(failure.get("message", "it failed")), hint=str(failure.get("hint", "")))
        self.kind = str(failure.get("kind", "ControlError"))
        self.exit_code = int(failure.get("exit_code", EXIT_ERROR))
        self._evidence = tuple(str(line) for line in failure.get("evidence", ()))

    @property
    def evidence(self) -> tuple[str, ...]:
        return self._evidence


def build_failure(error: ControlError) -> dict[str, Any]:
    """Return what `schemas/failure.json` describes: the error, its evidence and its way out."""
    failure: dict[str, Any] = {
        "kind": error.kind if isinstance(error, RemoteError) else type(error).__name__,
        "message": str(error)[:TEXT_MAX],
        "hint": error.hint[:TEXT_MAX],
        "exit_code": error.exit_code,
        "evidence": [line[:TEXT_MAX] for line in error.evidence[-LINES_MAX:]],
    }
    for name in ("file", "line", "table", "key"):
        value = getattr(error, name, None)
        if isinstance(value, str | int | Path) and value:
            failure[name] = value if isinstance(value, int) else str(value)
    return failure
