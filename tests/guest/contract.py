"""Holds every line of a real agent against the schemas; the clients of the tests hand it all they send and receive."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from control.paths import SCHEMAS
from control.wire.schema import explain

INDEX = json.loads((SCHEMAS / "index.json").read_text())

Json = dict[str, Any]


class Contract:
    """What was asked and what runs, as far as it must be known to tell which schema an answer or an end has."""

    def __init__(self) -> None:
        self._asked: dict[object, Json | None] = {}
        self._jobs: dict[int, str] = {}

    def sent(self, data: bytes) -> None:
        """Notes the requests among the whole lines of `data`; what else is in it is for the agent to refuse."""
        for line in data.split(b"\n"):
            if line[:1] not in (b"{", b"["):
                continue
            try:
                # A path that is no UTF-8 goes as halves of surrogate pairs, which no schema library takes.
                text = json.dumps(json.loads(line), ensure_ascii=False)
                value = json.loads(text.encode("utf-8", "replace"))
            except (ValueError, RecursionError):
                continue
            for request in value if isinstance(value, list) else [value]:
                if isinstance(request, dict) and isinstance(request.get("id"), str | int):
                    id_ = request["id"]
                    # Which of two requests with one id is answered, nobody can say.
                    self._asked[id_] = request if id_ not in self._asked else None

    def received(self, value: Any) -> None:
        """Fails when this line of the agent, decoded, is not what the schemas say."""
        check("jsonrpc", value)
        for part in value if isinstance(value, list) else [value]:
            if "method" in part:
                self._take_notification(part)
            else:
                self._take_answer(part)

    def _take_answer(self, answer: Json) -> None:
        request = self._asked.pop(answer["id"], None)
        if "result" in answer and request is not None:
            method, result = request["method"], answer["result"]
            check(f"agent/{method}.params", request.get("params") or {})  # it took them, so they fit
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
