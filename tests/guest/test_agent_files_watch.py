"""`file_watch`: each kind of change, what it is limited by, and how it ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.guest.agentprocess import AgentProcess, Json

SCHEMAS = Path(__file__).parents[2] / "schemas" / "agent"


@pytest.fixture(autouse=True)
def session(agent: AgentProcess) -> None:
    agent.hello()


def watch(agent: AgentProcess, path: Path, **params: Any) -> int:
    result = agent.result("file_watch", path=str(path), **params)
    jsonschema_rs.validator_for(json.loads((SCHEMAS / "file_watch.result.json").read_text())).validate(result)
    job: int = result["job"]
    return job


def wait_for_change(agent: AgentProcess, job: int, **wanted: str) -> list[Json]:
    """Receives until this change has been told; gives all changes told since the last call that waited for one."""
    changes: list[Json] = []
    while not any(wanted.items() <= change.items() for change in changes):
        told = agent.wait_for_notification("file_changed", lambda params: bool(params["job"] == job))
        changes += told["changes"]
    return changes


def test_every_kind_of_change_is_told(agent: AgentProcess, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    job = watch(agent, place)
    (place / "a").write_text("x")
    wait_for_change(agent, job, change="created", path="a")
    with (place / "a").open("a") as file:
        file.write("y")
    wait_for_change(agent, job, change="modified", path="a")
    (place / "a").rename(place / "b")
    wait_for_change(agent, job, change="moved", path="a", to="b")
    (place / "b").rename(tmp_path / "b")
    wait_for_change(agent, job, change="deleted", path="b")
    (place / "c").touch()
    (place / "c").unlink()
    wait_for_change(agent, job, change="deleted", path="c")
    agent.result("job_cancel", job=job)
    assert agent.wait_for_job(job)["error"]["code"] == -32006


def test_one_file_is_watched_through_its_replacement(agent: AgentProcess, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    job = watch(agent, file)
    (tmp_path / "other").write_text("not ours")
    (tmp_path / "new").write_text("after")
    (tmp_path / "new").rename(file)
    changes = wait_for_change(agent, job, change="created", path="")
    assert [change["path"] for change in changes] == [""]


def test_new_directories_are_watched_with_what_is_in_them(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "root/old/deep").mkdir(parents=True)
    job = watch(agent, tmp_path / "root", recursive=True)
    (tmp_path / "root/old/deep/file").touch()
    wait_for_change(agent, job, change="created", path="old/deep/file")
    (tmp_path / "root/new/inner").mkdir(parents=True)
    told = wait_for_change(agent, job, change="created", path="new/inner")
    assert {"change": "created", "path": "new"} in told
    (tmp_path / "root/new/inner/file").touch()
    wait_for_change(agent, job, change="created", path="new/inner/file")


def test_a_flood_of_changes_is_told_as_such(agent: AgentProcess, tmp_path: Path) -> None:
    job = watch(agent, tmp_path)
    # More than the kernel keeps for an agent that does not read: fs.inotify.max_queued_events is 16384.
    os.kill(agent.process.pid, signal.SIGSTOP)
    for number in range(10_000):
        (tmp_path / f"f{number}").touch()
    os.kill(agent.process.pid, signal.SIGCONT)
    wait_for_change(agent, job, change="overflow")
    assert agent.read_memory_bytes() < 40e6


def test_the_end_of_what_is_watched_ends_the_job(agent: AgentProcess, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    job = watch(agent, place)
    place.rmdir()
    assert agent.wait_for_job(job)["error"]["code"] == -32002


def test_what_cannot_be_watched(agent: AgentProcess, tmp_path: Path) -> None:
    assert agent.error("file_watch", path=str(tmp_path / "none" / "none"))["code"] == -32002
    assert agent.error("file_watch", path=str(tmp_path / "none"))["code"] == -32002


def test_too_many_directories_are_refused_and_given_back(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, {"watch_directories": 2})
    agent.hello()
    for name in ("a/b/c", "d"):
        (tmp_path / "root" / name).mkdir(parents=True)
    assert agent.error("file_watch", path=str(tmp_path / "root"), recursive=True)["code"] == -32004
    job = watch(agent, tmp_path / "root/a/b", recursive=True)
    assert agent.error("file_watch", path=str(tmp_path))["code"] == -32004
    agent.result("job_cancel", job=job)
    agent.wait_for_job(job)
    watch(agent, tmp_path / "root/a/b", recursive=True)
    assert agent.close() == 0
