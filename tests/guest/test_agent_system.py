"""What the agent says of the machine it runs on: here, of the host of the tests. It changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from guest.agent import dispatch, process, services
from tests.guest.agentprocess import AgentProcess, wait_until


def test_network(agent: AgentProcess) -> None:
    seen = agent.result("get_network_info", limit=1000)
    names = sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert sorted(interface["name"] for interface in seen["interfaces"]) == names
    for interface in seen["interfaces"]:
        directory = Path("/sys/class/net") / interface["name"]
        assert interface["mtu"] == int((directory / "mtu").read_text())
        assert interface["index"] == int((directory / "ifindex").read_text())
    [loopback] = [interface for interface in seen["interfaces"] if interface["name"] == "lo"]
    assert {"family": "ipv4", "address": "127.0.0.1", "prefix": 8, "scope": "host"} in loopback["addresses"]


def test_disks(agent: AgentProcess) -> None:
    seen = {mount["path"]: mount for mount in agent.result("get_disk_usage", limit=1000)["mounts"]}
    sizes = os.statvfs("/")
    assert seen["/"]["sizes"]["total_bytes"] == sizes.f_blocks * sizes.f_frsize
    everything = agent.result("get_disk_usage", limit=1000, all=True)
    assert "/proc" in {mount["path"] for mount in everything["mounts"]} and "/proc" not in seen


def test_pages_hold_everything_once(agent: AgentProcess) -> None:
    children = [subprocess.Popen(["sleep", "100"]) for _ in range(50)]
    try:
        seen: list[int] = []
        page: dict[str, Any] = {"next": None}
        while True:
            after = {} if page["next"] is None else {"after": page["next"]}
            page = agent.result("process_list", limit=7, **after)
            assert len(page["processes"]) <= 7
            seen += [process["pid"] for process in page["processes"]]
            if page["next"] is None:
                break
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert seen == sorted(set(seen)) and {child.pid for child in children} <= set(seen)


def test_a_page_fits_on_a_line_however_long_the_entries_are(agent: AgentProcess) -> None:
    """Command lines of control characters take six bytes of JSON each."""
    argv = [sys.executable, "-c", "import time; time.sleep(100)", "\x01" * 100_000]
    children = [subprocess.Popen(argv) for _ in range(160)]
    try:
        found: set[int] = set()
        after = children[0].pid - 1
        while not {child.pid for child in children} <= found:
            page = agent.result("process_list", after=after, limit=1000)
            found |= {process["pid"] for process in page["processes"]}
            if page["next"] is None:
                break
            after = page["next"]
        assert {child.pid for child in children} <= found
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def test_a_process_that_calls_itself_anything(agent: AgentProcess, tmp_path: Path) -> None:
    program = tmp_path / ") R 1 (\n"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "100"]) as child:
        try:
            [seen] = agent.result("process_list", after=child.pid - 1, limit=1)["processes"]
            assert seen["pid"] == child.pid and seen["ppid"] == os.getpid() and seen["name"] == ") R 1 (\n"
        finally:
            child.kill()


def test_a_signal_reaches_the_process_that_was_meant_and_no_other(agent: AgentProcess) -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        [seen] = agent.result("process_list", after=child.pid - 1, limit=1)["processes"]
        wrong = agent.error("process_signal", pid=child.pid, signal="KILL", start_ticks=seen["start_ticks"] - 1)
        assert wrong["code"] == -32002 and child.poll() is None
        agent.result("process_signal", pid=child.pid, signal="TERM", start_ticks=seen["start_ticks"])
        assert child.wait(10) == -15
    assert agent.error("process_signal", pid=agent.process.pid, signal="KILL")["code"] == -32003
    assert agent.error("process_signal", pid=1, signal="TERM")["code"] == -32003
    for wrong_name in ("SIGTERM", "term", "_DFL", "", "NSIG", 15):
        assert agent.error("process_signal", pid=2, signal=wrong_name)["code"] == -32602


@pytest.mark.parametrize(
    "method", ["get_time", "cpu_list", "service_list", "user_list", "get_metrics", "filesystem_status"]
)
def test_results_have_the_form_of_their_schema(agent: AgentProcess, method: str) -> None:
    agent.result(method)


def test_metrics_stop_when_they_are_no_longer_wanted(agent: AgentProcess) -> None:
    agent.hello()
    job = agent.result("metrics_watch", interval_s=0.1)["job"]
    for sequence in (1, 2, 3):
        assert agent.wait_for_notification("metrics")["sequence"] == sequence
    agent.result("job_cancel", job=job)
    assert agent.wait_for_job(job)["error"]["code"] == -32006
    agent.unasked.clear()
    time.sleep(0.3)  # what is seen is that nothing comes
    agent.result("ping")
    assert not [line for line in agent.unasked if line.get("method") == "metrics"]


def test_a_log_is_followed_across_rotation_and_truncation(agent: AgentProcess, tmp_path: Path) -> None:
    agent.hello()
    log = tmp_path / "log"
    log.write_text("".join(f"{number}\n" for number in range(200_000)))
    stream = agent.open_stream()
    job = agent.result("log_follow", path=str(log), lines=2, output=stream.number)["job"]
    agent.wait_until(lambda: stream.data == b"199998\n199999\n", "the last lines")
    log.rename(tmp_path / "log.1")
    with (tmp_path / "log.1").open("a") as file:
        file.write("late\n")
    log.write_text("new\n")
    agent.wait_until(lambda: stream.data.endswith(b"late\nnew\n"), "the new file")
    os.truncate(log, 0)
    time.sleep(0.5)  # the follower has to see that it was empty: bytes written at once would look like more of the same
    with log.open("a") as file:
        file.write("from the start\n")
    agent.wait_until(lambda: stream.data.endswith(b"new\nfrom the start\n"), "what came after the truncation")
    agent.result("job_cancel", job=job)
    assert agent.wait_for_job(job)["error"]["data"]["rotations"] == 1


def test_directives_are_checked_before_anything_is_done(agent: AgentProcess, tmp_path: Path) -> None:
    agent.hello()
    good: dict[str, Any] = {"write_files": [{"path": str(tmp_path / "a"), "content": "x"}]}
    for key, wrong in (
        ("bogus", {"bogus": 1}),
        ("runcmd[1]", {"runcmd": ["true", []]}),
        ("users[0].shel", {"users": [{"name": "a", "shel": "/bin/sh"}]}),
        ("chpasswd.users[0].password", {"chpasswd": {"users": [{"name": "a"}]}}),
        ("chpasswd.expire", {"chpasswd": {"users": [{"name": "a", "password": "b"}], "expire": True}}),
        ("packages[0]", {"packages": ["bash-"]}),
    ):
        error = agent.error("cloud_init_apply", directives={**good, **wrong})
        assert (error["code"], error["data"]["key"]) == (-32602, key)
    assert not (tmp_path / "a").exists()
    job = agent.result("cloud_init_apply", directives={**good, "runcmd": ["exit 3", ["nothing-here"]]})["job"]
    result = agent.wait_for_job(job)["result"]
    assert result["failed"] == 1 and (tmp_path / "a").read_text() == "x"


def test_directives_cannot_do_what_the_configuration_denies(tmp_path: Path) -> None:
    settings = {"method_deny": ["user_*"], "write_paths": [str(tmp_path / "in")], "command_allow": ["/bin/true"]}
    (tmp_path / "in").mkdir()
    agent = AgentProcess(tmp_path, settings)
    agent.hello()
    assert agent.error("cloud_init_apply", directives={"users": [{"name": "a"}]})["code"] == -32003
    files = [{"path": str(tmp_path / name / "f"), "content": "x"} for name in ("out", "in")]
    for wish, ok in zip(files, (False, True), strict=True):
        job = agent.result("cloud_init_apply", directives={"write_files": [wish]})["job"]
        assert agent.wait_for_job(job)["result"]["directives"][0]["ok"] == ok
    assert not (tmp_path / "out").exists() and (tmp_path / "in" / "f").read_text() == "x"
    job = agent.result("cloud_init_apply", directives={"runcmd": ["touch /tmp/never"]})["job"]
    assert not agent.wait_for_job(job)["result"]["directives"][0]["ok"]
    assert agent.close() == 0


def test_events_of_the_guest(agent: AgentProcess) -> None:
    agent.result("ping")
    fifo = agent.directory / "events"
    wait_until(fifo.exists, "the FIFO")
    fifo.write_text("login root ttyS0\nshutdown begins reboot\nlogin\nshutdown begins\nservice a failed\n")
    assert agent.wait_for_message(message="login")["data"]["details"] == {
        "user": "root",
        "terminal": "ttyS0",
        "host": "",
    }
    assert agent.wait_for_message(message="shutdown begins")["data"]["details"] == {"action": "reboot"}
    assert agent.wait_for_message(type="error")["data"]["details"]["code"] == "bad-message"
    # A shutdown is told once, whoever notices it.
    assert agent.wait_for_message(type="status")["data"]["message"] == "service a failed"


def test_a_list_of_services_that_did_not_come_is_an_error() -> None:
    """systemd takes seconds for it on a slow machine; half a list, or an empty one, would look like the truth."""
    for answered in (0, 1):
        work = services._find_units()
        next(work)
        for _ in range(answered):
            work.send(process.Result(0, b"a.service enabled\n", b"", False, False, 1.0))
        with pytest.raises(dispatch.CallError):
            work.send(process.Result(9, b"", b"", False, True, 60.0))
