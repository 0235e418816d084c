"""What the clients of the tests hold the agent against lets nothing wrong pass."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.guest.contract import Contract

EXIT = {"exit_code": 0, "signal": None, "timed_out": False, "seconds": 0.1}


def begin() -> Contract:
    """A job of exec_start with the number 4, begun."""
    contract = Contract()
    request = {"jsonrpc": "2.0", "id": 1, "method": "exec_start", "params": {"argv": ["true"]}}
    contract.sent(b"\n" + json.dumps(request).encode() + b"\n")
    contract.received({"jsonrpc": "2.0", "id": 1, "result": {"job": 4, "pid": 9}})
    return contract


def notify(method: str, params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def build_message(text: str, details: dict[str, Any]) -> dict[str, Any]:
    data = {"message": text, "details": details}
    stamp = "2026-01-01T00:00:00Z"
    return notify("message", {"timestamp": stamp, "direction": "vm-to-host", "type": "status", "data": data})


@pytest.mark.parametrize(
    "line",
    [
        notify("job_done", {"job": 4, "result": EXIT}),
        notify("job_done", {"job": 4, "error": {"code": -32006, "message": "cancelled"}}),
        notify("bulk_broken", {"reason": "magic"}),
        build_message("service ssh started", {"service": "ssh", "state": "started"}),
        [{"jsonrpc": "2.0", "id": 2, "result": {}}],
    ],
)
def test_what_is_right_passes(line: Any) -> None:
    begin().received(line)


@pytest.mark.parametrize(
    "line",
    [
        {"jsonrpc": "2.0", "id": 2},
        notify("job_done", {"job": 4, "result": {**EXIT, "exit_code": None}}),
        notify("job_done", {"job": 4}),
        notify("bulk_broken", {}),
        notify("no_such_thing", {}),
        build_message("service ssh started", {"service": "ssh"}),
        build_message("something else", {}),
    ],
)
def test_what_is_wrong_does_not(line: Any) -> None:
    with pytest.raises(AssertionError):
        begin().received(line)


def test_an_answer_is_held_against_its_method() -> None:
    contract = Contract()
    contract.sent(b'{"jsonrpc":"2.0","id":1,"method":"exec_start","params":{"argv":["true"]}}\n')
    with pytest.raises(AssertionError, match=r"exec_start\.result"):
        contract.received({"jsonrpc": "2.0", "id": 1, "result": {"job": 4}})


def test_what_the_agent_takes_is_in_the_schema_too() -> None:
    contract = Contract()
    contract.sent(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"more":1}}\n')
    with pytest.raises(AssertionError, match=r"ping\.params"):
        contract.received({"jsonrpc": "2.0", "id": 1, "result": {}})
