"""The schemas, their golden messages, and the agent's own check of the envelope all say the same."""

from __future__ import annotations

import json
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
    files = sorted(path for path in SCHEMAS.rglob("*.json") if path.name != "index.json")
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
    for method in INDEX["methods"].values():
        named |= {method["params"], method["result"]}
    present = {
        str(path.relative_to(SCHEMAS)) for room in ("agent", "messages") for path in SCHEMAS.glob(f"{room}/*.json")
    }
    present |= {"message.json", "jsonrpc.json"}
    assert named == present
