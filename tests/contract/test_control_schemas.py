"""Every method of a supervisor and every command with --json has its schemas, closed and bounded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli.main import build_parser
from control.paths import SCHEMAS, InstanceFiles
from control.vm.service import Notes, Service

SPOKEN = ("request", "input", "signal", "resize", "turn", "cancel",
          "output", "taken", "phase", "attached", "refused", "note")  # fmt: skip
OPEN = ("phases", "messages", "arguments", "details", "envelope", "answer", "return", "spec", "ports", "params", "env")
"""Values that are somebody else's, QEMU's or a user's; what is said of them is said elsewhere."""

MINE = sorted([*(SCHEMAS / "control").glob("*.json"), *(SCHEMAS / "cli").glob("*.json"), SCHEMAS / "failure.json"])


def list_methods() -> set[str]:
    return set(Service("one", InstanceFiles(Path("/"), Path("/")), Notes()).methods)


def test_every_method_has_its_schemas_and_every_schema_its_method() -> None:
    found = {path.name.split(".")[0] for path in (SCHEMAS / "control").glob("*.json")} - set(SPOKEN)
    assert found == list_methods()
    for method in list_methods():
        for part in ("params", "result"):
            assert (SCHEMAS / "control" / f"{method}.{part}.json").exists()


def test_every_command_has_a_schema() -> None:
    [commands] = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    # gdb is another program from then on, doctor has schemas/doctor.json, what has actions a schema for each, and what
    # completion prints is for a shell, and replay plays.
    without = {"gdb", "doctor", "config", "img", "snapshot", "completion", "replay"}
    expected = (set(commands.choices) - without) | {
        "config_check", "config_show", "img_build", "img_list", "error",
        "snapshot_save", "snapshot_restore", "snapshot_delete", "snapshot_list",
        "snapshot_diff",
    }  # fmt: skip
    assert {path.stem for path in (SCHEMAS / "cli").glob("*.json")} == expected


@pytest.mark.parametrize("path", MINE, ids=lambda path: path.stem)
def test_each_is_closed_and_bounded(path: Path) -> None:
    for where, schema in walk(json.loads(path.read_text())):
        kind = schema.get("type")
        if kind == "object" and not where.endswith(OPEN):
            assert schema.get("additionalProperties") is False, where
        if kind == "array":
            assert "maxItems" in schema, where
        if kind == "string":
            assert "maxLength" in schema or "pattern" in schema, where


def walk(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield where, schema
    for name, value in schema.get("properties", {}).items():
        yield from walk(value, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        yield from walk(schema.get(key), f"{where}")
    for value in schema.get("anyOf", ()):
        yield from walk(value, where)
