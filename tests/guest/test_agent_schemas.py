"""The schemas, their golden messages, and the agent's own check of the envelope all say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import pytest

from guest.agent import message

SCHEMAS = Path(__file__).parents[2] / "schemas"
GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((SCHEMAS / "index.json").read_text())
ENVELOPE = json.loads((SCHEMAS / "message.json").read_text())


def load(name: str) -> Any:
    return json.loads((SCHEMAS / name).read_text())


def check(schema: Any, value: Any) -> bool:
    """Validates with both validators, which must agree."""
    slow: bool = jsonschema.Draft202012Validator(schema).is_valid(value)
    fast = jsonschema_rs.validator_for(schema).is_valid(value)
    assert slow == fast, f"the validators disagree about {value!r}"
    return slow


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_messages(path: Path) -> None:
    value = json.loads(path.read_text())
    expected = path.parent.name == "valid"
    assert check(ENVELOPE, value) == expected
    assert (message.find_fault(value) is None) == expected, message.find_fault(value)


@pytest.mark.parametrize("path", sorted((GOLDEN / "valid").glob("*.json")), ids=lambda path: path.stem)
def test_details_of_golden_messages_have_the_form_of_their_verb(path: Path) -> None:
    value = json.loads(path.read_text())
    for entry in INDEX["messages"]:
        if path.stem == Path(entry["file"]).stem:
            assert check(load(entry["file"]), value["data"]["details"])
            assert value["type"] == entry["type"] and value["direction"] == entry["direction"]


def test_every_schema_is_a_closed_and_bounded_schema_of_its_own() -> None:
    # What a user writes into their own configuration crosses no border.
    files = sorted(path for path in SCHEMAS.rglob("*.json") if path.name not in ("index.json", "config.json"))
    assert len(files) > 40
    ids = set()
    for path in files:
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        ids.add(schema["$id"])
        assert schema["$id"].endswith("/" + str(path.relative_to(SCHEMAS)))
        for part in walk(schema):
            assert part.get("$ref", "#").startswith("#"), f"{path} refers to another document"
            if part.get("type") == "object":
                assert "additionalProperties" in part or "maxProperties" in part or "result" in path.name, (path, part)
            if part.get("type") == "string" and "const" not in part:
                assert "maxLength" in part, (path, part)
            if part.get("type") == "array":
                assert "maxItems" in part, (path, part)
    assert len(ids) == len(files)


def walk(schema: Any) -> Any:
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str) or "$ref" in schema:
            yield schema
        for value in schema.values():
            yield from walk(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from walk(value)


def test_the_index_names_every_schema_and_every_method() -> None:
    from guest.agent import dispatch

    assert set(INDEX["methods"]) == set(dispatch.HANDLERS)
    named = {INDEX["envelope"], INDEX["line"]} | {entry["file"] for entry in INDEX["messages"]}
    named |= {entry["params"] for entry in INDEX["notifications"].values()}
    for method in INDEX["methods"].values():
        named |= {value for key, value in method.items() if key != "notification"}
    rooms = ("agent", "agent/notifications", "messages")
    present = {str(path.relative_to(SCHEMAS)) for room in rooms for path in SCHEMAS.glob(f"{room}/*.json")}
    present |= {"message.json", "jsonrpc.json"}
    assert named == present


def test_every_method_that_begins_a_job_says_how_it_ends() -> None:
    for name, method in INDEX["methods"].items():
        result = load(method["result"])
        answers = result.get("anyOf", [result])
        begins_job = any("job" in answer["properties"] for answer in answers)
        assert method.get("done") == (f"agent/{name}.done.json" if begins_job else None)


def test_every_notification_of_the_agent_has_a_schema() -> None:
    sources = [path.read_text() for path in (SCHEMAS.parent / "guest" / "agent").rglob("*.py")]
    told = {name for source in sources for name in re.findall(r"\bnotify\(\s*\"(\w+)\"", source)}
    assert set(INDEX["notifications"]) == told | {"message"}


def test_metrics_are_pushed_as_they_are_answered() -> None:
    answered = load("agent/get_metrics.result.json")
    pushed = load("agent/notifications/metrics.json")["properties"]["metrics"]
    assert pushed == {key: value for key, value in answered.items() if key not in ("$schema", "$id", "title")}


END = {"exit_code": 0, "signal": None, "timed_out": False, "seconds": 0.1}
COPIED = {"entries": 1, "bytes": 2, "skipped": 0, "changed": ["a"]}
CHANGED = {"name": "a", "before": None, "after": "1"}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("exec_start.done", END, {**END, "signal": 9}),
        ("exec_start.done", {**END, "exit_code": None, "signal": 9}, {**END, "exit_code": None}),
        ("exec_start.done", END, {**END, "seconds": 10**30}),
        ("file_put.done", COPIED, {**COPIED, "changed": ["a"] * 101}),
        ("file_get.done", COPIED, {**COPIED, "entries": -1}),
        ("file_read.done", {"bytes": 1, "crc32": 2**32 - 1}, {"bytes": 1, "crc32": 2**32}),
        ("file_write.done", {"bytes": 1, "size": 1, "crc32": 0}, {"bytes": 1, "crc32": 0}),
        ("log_follow.done", {"bytes": 0, "rotations": 0}, {"bytes": 0}),
        ("metrics_watch.done", {"sent": 1}, {"sent": 0}),
        ("package_update.done", {"changed": [CHANGED], "changed_total": 1}, {"changed": [{}], "changed_total": 1}),
        (
            "cloud_init_apply.done",
            {"directives": [{"directive": "runcmd", "ok": False, "detail": ""}], "failed": 1},
            {"directives": [{"directive": "other", "ok": True, "detail": ""}], "failed": 0},
        ),
        ("notifications/job_done", {"job": 1, "result": {}}, {"job": 1}),
        (
            "notifications/job_done",
            {"job": 1, "error": {"code": -32006, "message": "cancelled"}},
            {"job": 1, "result": {}, "error": {"code": -32006, "message": "cancelled"}},
        ),
        ("notifications/bulk_broken", {"reason": ""}, {"reason": None}),
        (
            "notifications/file_changed",
            {"job": 1, "changes": [{"change": "moved", "path": "a", "to": "b"}]},
            {"job": 1, "changes": [{"change": "moved", "path": "a"}]},
        ),
        ("notifications/file_changed", {"job": 1, "changes": [{"change": "overflow", "path": ""}]}, {"job": 1}),
    ],
)
def test_ends_and_notifications(name: str, good: object, bad: object) -> None:
    schema = load(f"agent/{name}.json")
    assert check(schema, good) and not check(schema, bad)


def test_a_watch_never_ends_with_a_result() -> None:
    schema = load("agent/file_watch.done.json")
    assert not any(check(schema, value) for value in ({}, None, {"job": 1}))
