"""`unhinged` with a real guest: what a developer does in a day, and supervisors that are killed in the middle of it."""

from __future__ import annotations

import filecmp
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_TIMEOUT
from tests.qemu.fleets import COMMAND, WITHIN_S, Desk, end_at_once, finish, is_alive, open_desk

CONFIGURATION = """
[vm.web]
image = "builtin"
memory = "256M"
cpus = 1
accel = "tcg"
[vm.web.ssh]
port = "auto"
"""
BURST_LINES = 20000


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write(CONFIGURATION)
        done = desk.run("start", "--wait", "agent", "web")
        assert done.exit_code == 0, done.stderr
        yield desk
        done = desk.run("stop", "web")
        assert done.exit_code == 0, done.stderr
        desk.wait_until_gone()
        assert b"Power down" in desk.files("web").serial_log.read_bytes(), "the guest was asked to go"


def run_in(desk: Desk, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [*COMMAND, "exec", "web", "--", *words]
    return subprocess.run(argv, cwd=desk.directory, input=stdin, capture_output=True, timeout=WITHIN_S, check=False)


def make_tree(folder: Path) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "random").write_bytes(secrets.token_bytes(300_000))
    (folder / "empty").touch()
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "link").symlink_to("deep/er")


def see_same(left: Path, right: Path) -> None:
    compared = filecmp.dircmp(left, right)
    assert not compared.left_only and not compared.right_only
    for folder, _, names in os.walk(left):
        for name in names:
            one = Path(folder) / name
            other = right / one.relative_to(left)
            assert one.read_bytes() == other.read_bytes()
            assert one.stat().st_mode == other.stat().st_mode
    assert (right / "link").readlink() == (left / "link").readlink()


def test_a_day(desk: Desk) -> None:
    """One boot for all of it: boots are what takes time."""
    nonce = secrets.token_hex(8)
    seen = desk.status("web")
    assert (seen["state"], seen["agent_ready"]) == ("RUNNING", True)

    done = run_in(desk, "sh", "-c", f"cat; echo {nonce} >&2; exit 7", stdin=b"\0\xff" * 200_000)
    assert done.returncode == 7
    assert done.stdout == b"\0\xff" * 200_000
    assert done.stderr.decode().strip() == nonce
    told = desk.ask("exec", "exec", "web", "--", "echo", nonce)
    assert (told["stdout"], told["exit_code"]) == (f"{nonce}\n", 0)
    assert desk.run("exec", "web", "--timeout", "1", "--", "sleep", "60").exit_code == EXIT_TIMEOUT
    assert desk.ask("exec", "exec", "web", "--", "no-such-program")["error"]["kind"] == "AgentCallError"

    make_tree(desk.directory / "tree")
    assert desk.ask("put", "put", "web", "tree", "/tmp/there")["entries"] >= 6
    assert desk.ask("get", "get", "web", "/tmp/there", "back")["via"] == "agent"
    see_same(desk.directory / "tree", desk.directory / "back")

    before = time.monotonic()
    assert desk.run("exec", "web", "--", "true").exit_code == 0
    assert time.monotonic() - before < 5, "the benchmark measures it; this only notices a leap"

    assert desk.run("pause", "web").exit_code == 0
    unheard = desk.run("send", "web", "status", "--timeout", "1")
    assert unheard.exit_code == EXIT_TIMEOUT
    assert "hint: web is paused; let it run on: unhinged resume web" in unheard.stderr
    assert desk.run("resume", "web").exit_code == 0

    interrupted = desk.begin(
        "exec", "web", "--", "sh", "-c", "trap 'echo caught; exit 3' INT; echo ready; sleep 60 & wait"
    )
    assert interrupted.stdout is not None and interrupted.stdout.readline() == "ready\n"
    interrupted.send_signal(2)
    assert (finish(interrupted).exit_code, interrupted.returncode) == (3, 3)


def test_a_supervisor_killed_in_the_middle(desk: Desk) -> None:
    """Of an exec, and of a burst on the console: QEMU runs on, and no line of the burst is missing."""
    nonce = secrets.token_hex(4)
    before = desk.status("web")
    burst = f"i=0; while [ $i -lt {BURST_LINES} ]; do echo {nonce}-$i; i=$((i+1)); done > /dev/ttyS0"
    assert (
        desk.run("exec", "web", "--", "sh", "-c", f"setsid sh -c '{burst}' >/dev/null 2>&1 </dev/null &").exit_code == 0
    )
    running = desk.begin("exec", "web", "--", "sh", "-c", "echo begun; sleep 60")
    assert running.stdout is not None and running.stdout.readline() == "begun\n"
    end_at_once(before["supervisor_pid"])
    done = finish(running)
    assert done.exit_code == 1 and "supervisor" in done.stderr
    assert is_alive(before["pid"])
    after = desk.ask("exec", "exec", "web", "--", "echo", nonce)
    assert after["stdout"] == f"{nonce}\n"
    assert desk.status("web")["pid"] == before["pid"]
    log = desk.files("web").serial_log
    deadline = time.monotonic() + WITHIN_S
    while f"{nonce}-{BURST_LINES - 1}".encode() not in log.read_bytes():
        assert time.monotonic() < deadline, "the burst ends"
        time.sleep(0.1)
    # Messages of the agent and the kernel stand among the lines. So bytes may be added, and none may be missing: the
    # numbers make sure that one that is cannot be found further on.
    kept = iter(log.read_bytes())
    expected = "".join(f"{nonce}-{number}\r\n" for number in range(BURST_LINES)).encode()
    missing = next((index for index, byte in enumerate(expected) if byte not in kept), None)
    assert missing is None, expected[missing - 20 : missing + 20] if missing else b""
