"""The audit log: what is in it, what is not, and that it neither grows nor fails in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from guest.agent.audit import AuditLog, summarise
from guest.agent.loop import Loop
from guest.agent.ratelimit import RateLimit
from tests.guest.agentprocess import AgentProcess, Json


def read_log(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_call_is_written_down_without_secrets(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "audit.log"
    agent = AgentProcess(tmp_path, {"audit_log": str(log), "method_deny": ["reboot"]})
    agent.result("ping")
    agent.hello()
    agent.result("file_write", path=str(tmp_path / "file"), text="SECRET-1")
    agent.result("exec_command", argv=["echo", "SECRET-2"], env={"A": "SECRET-3"}, stdin="SECRET-4")
    agent.error("user_set_password", user="no-such-user", password="SECRET-5")
    agent.error("ssh_key_add", user="no-such-user", key="SECRET-6")
    agent.error("reboot")
    agent.error("no_such_method", password="SECRET-7")
    agent.error("file_stat", path="/no/such")
    agent.send(b'{"jsonrpc": "2.0", "method": "file_stat", "params": {"path": "/no/such/either"}}\n')
    agent.command("command", "set configuration", {"key": "heartbeat_s", "value": "SECRET-8"})
    agent.error("file_stat", path="/no/such/third")  # what came before has ended by then
    session = agent.session
    assert agent.close() == 0
    text = log.read_text()
    assert "SECRET" not in text
    assert log.stat().st_mode & 0o777 == 0o600
    lines = read_log(log)
    assert all(list(line) == ["time", "session", "method", "params", "code", "seconds"] for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    seen = [(line["method"], line["code"]) for line in lines]
    assert seen[:4] == [("ping", 0), ("hello", 0), ("file_write", 0), ("exec_command", 0)]
    assert lines[0]["session"] is None and lines[2]["session"] == session
    assert lines[2]["params"] == {"path": str(tmp_path / "file"), "text": {"characters": 8}}
    assert lines[3]["params"]["argv"] == ["echo", 1]
    for wanted in [("reboot", -32003), ("no_such_method", -32601), ("file_stat", -32002)]:
        assert wanted in seen
    assert seen.count(("file_stat", -32002)) == 3, "a notification is a call too"
    assert ("message set configuration", -32005) in seen


def test_the_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    agent = AgentProcess(tmp_path, {"audit_log": str(log), "audit_log_bytes": 4096, "audit_log_files": 3})
    for number in range(300):
        agent.error("file_stat", path=f"/no/such/{number}/" + "x" * 4000)
    assert agent.close() == 0
    files = sorted(tmp_path.glob("audit.log*"))
    assert [file.name for file in files] == ["audit.log", "audit.log.1", "audit.log.2"]
    assert all(2048 < file.stat().st_size <= 4096 for file in files[1:]) and files[0].stat().st_size <= 4096
    assert read_log(log)[-1]["params"]["path"].startswith("/no/such/299/")


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "not-a-directory").touch()
    agent = AgentProcess(tmp_path, {"audit_log": str(tmp_path / "not-a-directory/audit.log")})
    agent.result("ping")
    message = agent.wait_for_message(type="error")
    assert "audit log" in message["data"]["message"]
    agent.result("ping")
    assert agent.close() == 0


def test_what_could_not_be_written_is_counted_and_told_later(tmp_path: Path) -> None:
    reports: list[str] = []
    place = tmp_path / "logs"
    place.touch()
    log = AuditLog(Loop(), str(place / "audit.log"), 10**6, 2, reports.append)
    for _ in range(3000):
        log.write(None, "ping", {"path": "x" * 50}, 0, 0.0)
    log.flush()
    assert len(reports) == 1
    place.unlink()
    log.flush()
    lines = read_log(place / "audit.log")
    assert lines[-1]["lost"] == 3000 - (len(lines) - 1) > 0
    log.close()


@pytest.mark.parametrize(
    ("params", "summary"),
    [
        (None, {}),
        ([1], {}),
        ({"a": 1, "b": None, "c": True}, {"a": 1, "b": None, "c": True}),
        ({"password": "xx", "path": "/x"}, {"password": {"characters": 2}, "path": "/x"}),
        ({"path": "x" * 9999}, {"path": "x" * 256}),
        ({"list": ["secret"], "object": {"secret": 1}}, {"list": {"entries": 1}, "object": {"entries": 1}}),
        ({"argv": ["su", "-c", "secret"]}, {"argv": ["su", 2]}),
        ({"argv": [{}]}, {"argv": {"entries": 1}}),
        ({"argv": "secret"}, {"argv": {"characters": 6}}),
    ],
)
def test_summaries(params: Any, summary: Json) -> None:
    assert summarise(params) == summary


def test_a_summary_is_bounded() -> None:
    assert len(summarise({str(number): number for number in range(1000)})) == 16


def test_the_rate_is_a_burst_and_then_so_many_a_second() -> None:
    now = [100.0]
    limit = RateLimit(2, 3, lambda: now[0])
    assert [limit.take() for _ in range(4)] == [0, 0, 0, 0.5]
    now[0] += 0.5
    assert [limit.take(), limit.take()] == [0, 0.5]
    now[0] += 1000
    assert [limit.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_logs_are_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "audit.log").symlink_to("target")
    reports: list[str] = []
    log = AuditLog(Loop(), str(tmp_path / "audit.log"), 4096, 2, reports.append)
    log.write(None, "ping", {}, 0, 0.0)
    log.flush()
    assert reports and (tmp_path / "target").stat().st_size == 0
