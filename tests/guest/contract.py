"""Holds every line of a real agent against the schemas; the clients of the tests hand it all they send and receive."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from control.paths import SCHEMAS
from control.wire.schema import explain

INDEX = json.loads((SCHEMAS / "index.json").read_text())
_ANY = object()

Json = dict[str, Any]


class Contract:
    """What was asked and what runs, as far as it must be known to tell which schema an answer or an end has."""

    def __init__(self) -> None:
        self._asked: dict[object, object] = {}
        self._jobs: dict[int, str] = {}

    def sent(self, data: bytes) -> None:
        """Notes the requests among the whole lines of `data`; what else is in it is for the agent to refuse."""
        for line in data.split(b"\n"):
            if line[:1] not in (b"{", b"["):
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            for request in value if isinstance(value, list) else [value]:
                if isinstance(request, dict) and isinstance(request.get("id"), str | int):
                    method, id_ = request.get("method"), request["id"]
                    # Which of two requests with one id is answered, nobody can say.
                    self._asked[id_] = method if id_ not in self._asked else _ANY

    def received(self, value: Any) -> None:
        """Fails when this line of the agent, decoded, is not what the schemas say."""
        check("jsonrpc", value)
        for part in value if isinstance(value, list) else [value]:
            if "method" in part:
                self._take_notification(part)
            else:
                self._take_answer(part)

    def _take_answer(self, answer: Json) -> None:
        method = self._asked.pop(answer["id"], _ANY)
        if "result" in answer and isinstance(method, str):
            result = answer["result"]
            check(f"agent/{method}.result", result)
            if "done" in INDEX["methods"][method] and "job" in result:
                self._jobs[result["job"]] = method

    def _take_notification(self, notification: Json) -> None:
        name, params = notification["method"], notification["params"]
        assert "id" not in notification and name in INDEX["notifications"], notification
        check(INDEX["notifications"][name]["params"].removesuffix(".json"), params)
        if name == "message":
            check_message(params)
        elif name == "job_done":
            method = self._jobs.pop(params["job"], None)
            if "result" in params and method is not None:
                check(f"agent/{method}.done", params["result"])


def check_message(envelope: Json) -> None:
    """Fails when a message of the guest has not the details of its verb."""
    data = envelope["data"]
    assert envelope["direction"] == "vm-to-host", envelope
    for entry, text in _list_messages():
        if entry["type"] == envelope["type"] and text.fullmatch(data["message"]):
            check(entry["file"].removesuffix(".json"), data["details"])
            return
    raise AssertionError(f"no schema knows this message: {envelope}")


def check(name: str, value: Any) -> None:
    fault = explain(name, value)
    assert not fault, f"{name}: {fault}: {json.dumps(value)[:2000]}"


@functools.cache
def _list_messages() -> list[tuple[Json, re.Pattern[str]]]:
    """The guest's messages, each with what its text is like."""
    listed = []
    for entry in INDEX["messages"]:
        if entry["direction"] == "vm-to-host":
            text = re.escape(entry["message"] or "").replace("NAME", ".+").replace("STATE", "(started|stopped|failed)")
            listed.append((entry, re.compile(text or ".+", re.DOTALL)))
    return listed
