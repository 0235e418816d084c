"""Holds what a guest's agent says against `schemas/agent/` (floor 2); used by whatever uses what it says."""

from __future__ import annotations

from typing import Any

from control.errors import AgentProtocolError
from control.wire.schema import explain, get_validator

NOTIFICATIONS = {"file_watch": "file_changed", "metrics_watch": "metrics"}
"""What jobs of these methods tell before they end."""


def check_result(method: str, result: object) -> dict[str, Any]:
    """Return `result` when it is what `method` answers. Raises AgentProtocolError otherwise."""
    return _check(f"agent/{method}.result", result, f"answer to {method}")


def check_end(method: str, params: object) -> dict[str, Any]:
    """Return the parameters of a `job_done` when they are the end of a job of `method`.

    Raises:
        AgentProtocolError: They are not.
    """
    checked = _check("agent/notifications/job_done", params, f"end of {method}")
    if "result" in checked:
        _check(f"agent/{method}.done", checked["result"], f"end of {method}")
    return checked


def check_notification(name: str, params: object) -> dict[str, Any]:
    """Return the parameters of the notification `name` when they are its own. Raises AgentProtocolError otherwise."""
    return _check(f"agent/notifications/{name}", params, f"notification {name}")


def prepare_job(method: str) -> None:
    """Have what the end of a job of `method` is checked with at hand before the job begins.

    Raises:
        FileNotFoundError: `method` begins no job.
    """
    get_validator(f"agent/{method}.done")


def _check(name: str, value: Any, what: str) -> dict[str, Any]:
    fault = explain(name, value)
    if fault:
        raise AgentProtocolError(f"the guest agent's {what} is none: {fault}")
    checked: dict[str, Any] = value  # all of these schemas are for objects
    return checked
