"""The contract between host and guest: every schema is one; the host judges the golden messages as the guest does."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import jsonschema_rs
import pytest

from control.errors import MessageError
from control.paths import ROOT, SCHEMAS
from control.wire import encode_message, parse_message

GOLDEN = ROOT / "tests" / "guest" / "golden"
ALL = sorted(SCHEMAS.rglob("*.json"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_every_schema_is_one(path: Path) -> None:
    schema = json.loads(path.read_text())
    if path.name == "index.json":
        return
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_every_schema_has_a_name_of_its_own() -> None:
    names = [json.loads(path.read_text()).get("$id") for path in ALL if path.name != "index.json"]
    assert None not in names
    assert len(set(names)) == len(names)


def test_the_envelope_compiles_alone() -> None:
    """The host checks every console line with it, so it refers to nothing else."""
    text = (SCHEMAS / "message.json").read_text()
    assert '"$ref"' not in text
    jsonschema_rs.validator_for(text)


@pytest.mark.parametrize("path", sorted((GOLDEN / "valid").glob("*.json")), ids=lambda path: path.name)
def test_the_host_takes_what_is_valid(path: Path) -> None:
    line = json.dumps(json.loads(path.read_text())).encode()
    assert json.loads(encode_message(parse_message(line))) == json.loads(line)


@pytest.mark.parametrize("path", sorted((GOLDEN / "invalid").glob("*.json")), ids=lambda path: path.name)
def test_the_host_refuses_what_is_not(path: Path) -> None:
    with pytest.raises(MessageError):
        parse_message(path.read_text())
