"""The configuration file: its schema, the agent's own check and the shipped files all say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema_rs
import pytest

from guest.agent import config
from tests.guest.agentprocess import AGENT, AgentProcess

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "schemas/agent-config.json").read_text())
PACKAGING = ROOT / "guest/packaging"

# For every kind of value: what fits somewhere, and what fits nowhere.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 4096, 262144, 2**40, 2**60, 0.5, 1234567.5, "", "/", "/x", "x", "/a\0b",
    "/" + "x" * 5000, "ü",
    [], {}, ["x"], ["/x"], [""], [1], [None], ["/x", "y"], ["x" * 65], ["x"] * 257, ["/x"] * 257, ["a\nb"],
]  # fmt: skip


def is_valid(value: Any) -> bool:
    slow: bool = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert slow == jsonschema_rs.validator_for(SCHEMA).is_valid(value)
    return slow


def test_the_schema_has_every_key_with_its_default() -> None:
    assert {key: part.get("default") for key, part in SCHEMA["properties"].items()} == config.build_default()
    assert all(part["description"] for part in SCHEMA["properties"].values())


@pytest.mark.parametrize("key", sorted(config.KEYS))
def test_schema_and_agent_agree_about_every_value(key: str) -> None:
    for value in VALUES:
        assert is_valid({key: value}) == (config.find_fault(key, value) is None), (key, value)


@pytest.mark.parametrize("name", ["config.json", "config.default.json", "strict.json"])
def test_shipped_files_are_valid(name: str) -> None:
    path = PACKAGING / name
    assert is_valid(json.loads(path.read_text()))
    config.load(str(path), True)


def test_the_default_file_is_the_default() -> None:
    assert json.loads((PACKAGING / "config.default.json").read_text()) == config.build_default()


def test_the_documents_name_every_key() -> None:
    text = (ROOT / "docs/agent.md").read_text()
    assert [key for key in config.KEYS if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"read_path": []}', "read_path"),
        ('{"read_paths": "/srv"}', "read_paths"),
        ('{"read_paths": ["srv"]}', "absolute"),
        ('{"denied_paths": null}', "denied_paths"),
        ('{"method_deny": [1]}', "method_deny"),
        ('{"calls_per_second": "many"}', "calls_per_second"),
        ('{"run_as": "no-such-user-here"}', "no-such-user-here"),
        ('{"audit_log": "relative"}', "audit_log"),
        ("\xff", "UTF-8"),
        ('{"share": null' + " " * 70000 + "}", "bytes"),
    ],
)
def test_a_bad_file_stops_the_agent_with_one_line(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    assert words in run_with(path)


@pytest.mark.parametrize("how", ["writable", "foreign"])
def test_rules_that_others_could_change_stop_the_agent(tmp_path: Path, how: str) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    if how == "writable":
        path.chmod(0o646)
    elif os.geteuid() == 0:
        os.chown(path, 65534, 0)
    else:
        pytest.skip("only root gives files away: run as root")
    assert "others" in run_with(path)


def run_with(path: Path) -> str:
    """The line with which an agent that is given this configuration ends."""
    argv = [sys.executable, "-I", "-S", "-B", str(AGENT / "__main__.py"), "--config", str(path), "--fd", "0"]
    argv += ["--console", "/dev/null"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    assert done.returncode == 2
    said = done.stderr.decode()
    assert said.count("\n") == 1
    return said


def test_the_host_cannot_change_the_rules(agent: AgentProcess) -> None:
    for key in ("method_deny", "denied_paths", "run_as", "audit_log", "calls_per_second", "exec_max_timeout_s"):
        value = config.build_default()[key]
        answer = agent.command("command", "set configuration", {"key": key, "value": value})
        assert answer["data"]["details"]["code"] == "not-permitted"
