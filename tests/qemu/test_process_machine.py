"""Programs on a terminal of this host as machines: under the commands and the API that VMs have."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_QEMU_DIED, EXIT_USAGE, HostError
from control.process.limits import make_group
from control.session import SessionEnded, open_session
from control.spec.limits import Limits
from control.units import MIB
from tests.qemu.fleets import WITHIN_S, Desk, end_at_once, is_alive, open_desk, wait_for

SHELL = """
[vm.shell]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
env = { PS1 = "ready> ", WORD = "of the file" }
"""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write(SHELL)
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


def start(desk: Desk, *names: str) -> None:
    done = desk.run("start", *names)
    assert done.exit_code == 0, done.stderr


def find_program(desk: Desk, name: str) -> int:
    return int(desk.status(name)["holder"]["pid"])


def declare(desk: Desk, name: str, script: str, more: str = "") -> None:
    command = json.dumps(["sh", "-c", script])
    desk.write(f'[vm.{name}]\nkind = "process"\ncommand = {command}\n{more}\n{SHELL}')


def test_it_lives_under_the_commands_of_vms(desk: Desk) -> None:
    start(desk, "shell")
    listed = {vm["name"]: vm for vm in desk.ask("list", "list")["vms"]}
    assert (listed["shell"]["kind"], listed["shell"]["state"]) == ("process", "RUNNING")
    program = find_program(desk, "shell")
    assert is_alive(program)
    assert f"program  pid {program}" in desk.run("status", "shell").stdout
    assert desk.run("wait", "shell", "--for", "boot").exit_code == 0
    sent = desk.ask("send", "send", "shell", "echo $((6 * 7)) $WORD; pwd", "--until", "ready> $")
    assert sent["console"] == "console"
    assert f"42 of the file\r\n{desk.directory}\r\n" in sent["text"]
    assert "42 of the file" in desk.ask("read", "read", "shell")["text"]
    assert "42 of the file" in desk.run("logs", "shell").stdout
    assert [event[1] for event in map(json.loads, desk.run("cast", "shell").stdout.splitlines()[1:])].count("i") >= 1
    assert desk.run("stop", "shell").exit_code == 0
    assert not is_alive(program)
    assert desk.status("shell")["state"] == "STOPPED"


def test_a_session_is_at_its_console(desk: Desk) -> None:
    start(desk, "shell")
    with open_session("shell", config=desk.directory, timeout=WITHIN_S) as session:
        assert session.run("echo one; (exit 9)").exit_code == 9
        session.resize(41, 113)
        assert session.run("stty size").output == "41 113\n"
        # Said by the program itself: a Ctrl-C between a line and the start of its program is lost in bash.
        session.sendline("sh -c 'echo be\"\"gun; exec sleep 1000'")
        session.expect_exact("begun\r\n")
        session.sendcontrol("c")
        session.expect_exact("ready> ")
        assert session.run("tty").output.startswith("/dev/pts/")
        session.sendline("exit 3")
        with pytest.raises(SessionEnded, match="ended with exit code 3"):
            session.expect_exact("never said")
    assert desk.status("shell")["note"] == "bash ended with exit code 3"


@pytest.mark.parametrize(
    ("script", "state", "note"),
    [
        ("exit 0", "STOPPED", ""),
        ("exit 3", "FAILED", "sh ended with exit code 3"),
        ("kill -SEGV $$", "FAILED", "sh was ended by SIGSEGV"),
    ],
)
def test_how_it_ended_is_told(desk: Desk, script: str, state: str, note: str) -> None:
    declare(desk, "one", f"echo begun; {script}")
    start(desk, "one")
    wait_for(lambda: desk.status("one")["state"] == state)
    assert desk.status("one")["note"] == note
    assert desk.ask("logs", "logs", "one")["text"] == "begun\r\n"
    assert desk.ask("send", "send", "one", "more")["error"]["kind"] == "StateError"


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize(("code", "state"), [(0, "STOPPED"), (5, "FAILED")])
def test_an_end_that_no_supervisor_saw_is_told_too(desk: Desk, supervised: bool, code: int, state: str) -> None:
    declare(desk, "one", f"read x; echo last words; exit {code}")
    start(desk, "one")
    if not supervised:
        end_at_once(int(desk.status("one")["supervisor_pid"]))
    descriptor = os.open(desk.files("one").serial_typed, os.O_WRONLY)
    os.write(descriptor, b"go\n")
    os.close(descriptor)
    wait_for(lambda: desk.files("one").serial_log.read_bytes().endswith(b"last words\r\n"))
    seen = wait_for(lambda: (now := desk.ask("list", "list")["vms"][0])["pid"] is None and now)
    assert (seen["state"], f"exit code {code}" in seen["note"]) == (state, code != 0)


def test_a_program_that_cannot_be_started_is_told(desk: Desk) -> None:
    desk.write("""
[vm.none]
kind = "process"
command = ["no-such-program"]
[vm.nowhere]
kind = "process"
command = ["sh"]
cwd = "no-such-directory"
""")
    for name, what in (("none", "the program no-such-program"), ("nowhere", "the directory ")):
        done = desk.run("start", name)
        assert done.exit_code == EXIT_QEMU_DIED
        assert what in done.stderr
        assert "No such file or directory" in done.stderr
        assert desk.status(name)["state"] == "FAILED"


def test_it_is_started_again_when_it_fails(desk: Desk) -> None:
    declare(desk, "one", "echo x >>lives; test $(wc -l <lives) -ge 3 || exit 1; sleep 1000", 'restart = "on-failure"')
    start(desk, "one")
    wait_for(lambda: desk.status("one")["restarts"] == 2)
    assert desk.status("one")["state"] == "RUNNING"
    assert (desk.directory / "lives").read_text() == "x\n" * 3


def test_it_goes_on_without_its_supervisor_and_nothing_is_lost(desk: Desk) -> None:
    declare(desk, "one", "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; sleep 0.005; done; sleep 1000")
    start(desk, "one")
    for _ in range(3):
        program = find_program(desk, "one")
        end_at_once(int(desk.status("one")["supervisor_pid"]))
    with open_session("one", config=desk.directory, since="start", timeout=WITHIN_S) as session:
        session.expect_exact("line 400\r\n")
        assert session.before == "".join(f"line {i}\r\n" for i in range(1, 400))
    assert find_program(desk, "one") == program


def test_the_death_of_one_is_nothing_to_another(desk: Desk) -> None:
    desk.write(SHELL + SHELL.replace("[vm.shell]", "[vm.other]"))
    start(desk, "shell", "other")
    os.kill(find_program(desk, "shell"), signal.SIGKILL)
    wait_for(lambda: desk.status("shell")["note"] == "bash was ended by SIGKILL")
    with open_session("other", config=desk.directory, timeout=WITHIN_S) as session:
        assert session.run("echo here").output == "here\n"


def test_a_holder_that_is_killed_takes_its_program_along(desk: Desk) -> None:
    start(desk, "shell")
    program = find_program(desk, "shell")
    os.kill(int(desk.status("shell")["pid"]), signal.SIGKILL)
    wait_for(lambda: desk.status("shell")["state"] == "FAILED")
    assert "its holder was killed" in desk.status("shell")["note"]
    wait_for(lambda: not is_alive(program))


def test_a_program_that_will_not_go_is_ended(desk: Desk) -> None:
    declare(desk, "one", "trap '' TERM HUP INT; echo ready; while :; do sleep 0.05; done")
    start(desk, "one")
    program = find_program(desk, "one")
    started = time.monotonic()
    assert desk.run("stop", "--timeout", "0.5", "one").exit_code == 0
    assert time.monotonic() - started >= 0.5
    assert not is_alive(program)


def test_what_it_says_is_kept_byte_for_byte(desk: Desk) -> None:
    binary = bytes(range(256)) * 16384
    (desk.directory / "binary").write_bytes(binary)
    declare(desk, "one", "stty raw; cat binary")
    start(desk, "one")
    wait_for(lambda: desk.status("one")["state"] == "STOPPED")
    assert desk.files("one").serial_log.read_bytes() == binary


def test_what_only_vms_have_is_refused_in_a_sentence(desk: Desk) -> None:
    start(desk, "shell")
    for words in (["exec", "shell", "--", "ls"], ["qmp", "shell", "query-status"], ["pause", "shell"]):
        done = desk.run(*words)
        assert done.exit_code != 0
        assert "it is a process machine, and no VM" in done.stderr, done.stderr
    assert "is at no serial port" in desk.run("line", "shell", "break").stderr
    assert desk.run("console", "shell", "--console", "hvc0").stderr.count("has no console hvc0") == 1
    done = desk.run("explain", "shell")
    assert (done.exit_code, "no command line of QEMU" in done.stderr) == (EXIT_USAGE, True)
    desk.run("stop", "shell")
    done = desk.run("start", "--paused", "shell")
    assert (done.exit_code, "cannot be started paused" in done.stderr) == (EXIT_USAGE, True)
    assert "pty_holder.py" in desk.run("config", "show", "shell").stdout


def test_a_program_that_wants_more_memory_than_its_limit_is_told(desk: Desk) -> None:
    try:
        make_group("unhinged-tests-probe", Limits(None, 64 * MIB)).remove()
    except HostError as error:
        pytest.skip(f"limits cannot be kept here: {error}")
    script = "read x; x=$(head -c 100000000 /dev/zero | tr '\\\\0' x); echo $x | wc -c"
    declare(desk, "one", script.replace("\\\\", "\\"), 'limits = { memory = "48M" }')
    start(desk, "one")
    assert desk.status("one")["limits"]["memory_bytes"] == 48 * MIB
    assert desk.run("send", "one", "go").exit_code == 0
    wait_for(lambda: desk.status("one")["state"] == "FAILED")
    assert "wanted more memory than its limit of 48 MiB" in desk.status("one")["note"]
