"""Commands of `unhinged` that look at a VM from outside, on the real QEMU without guests: logs, gdb, TAB, doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pexpect
import pyte
import pytest

from control.paths import SCHEMAS
from tests.qemu.fleets import COMMAND, WITHIN_S, Desk, finish, is_alive, open_desk

TALKER = """
[vm.talker]
cmd = [
    "-nodefaults -machine pc,accel=tcg -m 64 -display none",
    "-chardev stdio,id=out -device isa-debugcon,iobase=0x402,chardev=out",
]
"""
"""The firmware talks at port 0x402 (SeaBIOS, CONFIG_DEBUG_IO), which goes to QEMU's stdout here."""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        yield desk


def wait_for_text(desk: Desk, words: tuple[str, ...], text: str) -> str:
    deadline = time.monotonic() + WITHIN_S
    while text not in (seen := desk.run(*words).stdout):
        assert time.monotonic() < deadline, seen
        time.sleep(0.1)
    return seen


def test_what_qemu_writes_is_told_apart(desk: Desk) -> None:
    desk.write(TALKER)
    assert desk.run("start", "talker").exit_code == 0
    wait_for_text(desk, ("stdout", "talker", "-n", "1000"), "SeaBIOS")
    assert desk.run("stderr", "talker").stdout == ""
    told = desk.ask("stdout", "stdout", "talker", "-n", "1000")
    assert "SeaBIOS" in told["text"] and told["file"].endswith("qemu.stdout")
    following = desk.begin("stdout", "talker", "-f")
    assert desk.run("kill", "talker").exit_code == 0
    assert finish(following).exit_code == 0, "it ends with the VM"


def test_the_console_without_a_terminal_is_the_end_of_its_log(desk: Desk) -> None:
    desk.declare("one")
    assert desk.run("serial", "one").exit_code == 1, "never started"
    desk.start("one")
    lines = b"".join(b"line %d\n" % number for number in range(30))
    desk.files("one").serial_log.write_bytes(lines)
    assert desk.run("serial", "one").stdout.splitlines() == [f"line {number}" for number in range(20, 30)]
    assert desk.run("serial", "one", "-n", "2").stdout == "line 28\nline 29\n"
    assert desk.ask("serial", "serial", "one")["text"].startswith("line 20")
    assert desk.run("serial", "one", "-n", "-1").exit_code == 2


def test_messages_are_shown_for_people_and_for_programs(desk: Desk) -> None:
    desk.declare("one")
    desk.start("one")
    line = (
        b'{"timestamp":"2026-01-01T00:00:00Z","direction":"vm-to-host","type":"status",'
        b'"data":{"message":"all \\u001b[31mwell","details":{"a":1}}}\n'
    )
    desk.files("one").messages.write_bytes(line * 3)
    shown = desk.run("messages", "one", "-n", "1").stdout
    assert shown.count("\n") == 1 and "\x1b" not in shown and '<- status     all ?[31mwell  {"a": 1}' in shown
    assert len(desk.ask("messages", "messages", "one")["messages"]) == 3


def test_qemu_under_gdb_is_a_vm_like_any_other(desk: Desk) -> None:
    assert shutil.which("gdb"), "apt-get install gdb"
    desk.declare("one")
    debugging = desk.begin("gdb", "one", "--", "-batch", "-ex", "run")
    try:
        deadline = time.monotonic() + WITHIN_S
        while (seen := desk.status("one"))["state"] != "RUNNING":
            assert time.monotonic() < deadline and debugging.poll() is None, seen
            time.sleep(0.2)
        tracer = Path(f"/proc/{seen['pid']}/status").read_text().partition("TracerPid:")[2].split()[0]
        assert Path(f"/proc/{tracer}/comm").read_text().startswith("gdb")
        assert desk.run("start", "one").exit_code == 0, "it runs already"
        assert desk.ask("qmp", "qmp", "one", "query-status")["return"]["status"] == "running"
        assert desk.run("stop", "--timeout", "1", "one").exit_code == 0
    finally:
        done = finish(debugging)
    assert done.exit_code == 0 and "exited" in done.stdout, done
    assert not is_alive(seen["pid"])
    desk.wait_until_gone()
    desk.start("one")


def test_gdb_attaches_to_one_that_runs(desk: Desk) -> None:
    desk.declare("one")
    desk.start("one")
    pid = desk.status("one")["pid"]
    done = finish(desk.begin("gdb", "one", "--", "-batch", "-ex", "info threads", "-ex", "detach"))
    assert done.exit_code == 0 and f"{pid}" in done.stdout + done.stderr and "Thread" in done.stdout
    assert desk.status("one")["runstate"] == "prelaunch", "it goes on as it was"


def test_a_shell_completes_commands_and_names(desk: Desk) -> None:
    desk.declare("webserver", "database")
    program = desk.directory / "bin" / "unhinged"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(map(_quote, COMMAND))} "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "> "}
    shell = pexpect.spawn(
        "bash", ["--norc", "--noprofile"], cwd=desk.directory, env=environment, timeout=WITHIN_S, encoding="utf-8"
    )
    try:
        shell.sendline('eval "$(unhinged completion bash)"; bind "set bell-style none"; echo re""ady')
        shell.expect("ready")
        shell.send("unhinged sta")
        shell.send("\t\t")
        shell.expect("start +status")
        shell.send("rt web\t")
        shell.expect("webserver ")
        shell.send("\x15unhinged stop d\t")
        shell.expect("database ")
    finally:
        shell.close(force=True)


def _quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_given_their_own(desk: Desk, shell: str) -> None:
    assert "unhinged" in desk.run("completion", shell).stdout


def test_the_doctor_is_the_same_one(desk: Desk) -> None:
    done = desk.run("doctor", "--json")
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "doctor.json").read_bytes())).validate(done.document)
    assert done.document["can_start"] == (done.exit_code == 0)


def test_completion_costs_the_other_commands_nothing(desk: Desk) -> None:
    code = f"{COMMAND[3].partition('from control')[0]}import control.cli.main; print('argcomplete' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_start_is_shown_on_a_terminal_and_leaves_what_matters(desk: Desk) -> None:
    desk.declare("one", "two", more='depends_on = ["one"]\n')
    screen = pyte.Screen(80, 24)
    stream = pyte.ByteStream(screen)
    seen = b""
    child: pexpect.spawn[Any] = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "start", "--all"], cwd=desk.directory, timeout=WITHIN_S, dimensions=(24, 80)
    )
    try:
        while True:
            seen += child.read_nonblocking(65536, timeout=WITHIN_S)
    except pexpect.EOF:
        child.wait()
    stream.feed(seen)
    lines = [line.rstrip() for line in screen.display if line.strip()]
    assert child.exitstatus == 0, lines
    assert b"one   starting QEMU" in seen, "a line for what is under way"
    assert [line.partition(" (")[0] for line in lines] == ["unhinged: one: started", "unhinged: two: started"]
