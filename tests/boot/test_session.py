"""Sessions at the consoles of a real guest: its serial line, its virtio console, a shell of its agent's."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_TIMEOUT, EXIT_USAGE, ConsoleError, ControlError, WaitTimeout
from control.session import (
    CommandTimeout,
    Done,
    SessionEnded,
    attach_to_vm,
    create_cluster,
    detach_vm,
    open_session,
    read_output,
    send_input,
)
from tests.boot.one_vm import CONFIGURATION, open_one_vm
from tests.qemu.fleets import COMMAND, WITHIN_S, Desk, end_at_once, open_desk

pytestmark = pytest.mark.boot


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_one_vm(tmp_path_factory.mktemp("session"), "ttyS0") as desk:
        yield desk


@pytest.mark.parametrize("console", ["ttyS0", "shell"])
def test_commands_are_run_at_every_console(desk: Desk, console: str) -> None:
    with open_session("one", console=console, config=desk.directory, timeout=WITHIN_S) as session:
        assert session.run("uname -s").output == "Linux\n"
        assert session.run("sh -c 'exit 9'").exit_code == 9
        assert session.run("printf 'ä €\\n' | tee /tmp/text; cat /tmp/text").output == "ä €\nä €\n"
        assert session.run("ls --color=always -d /etc").output == "/etc\n"
        assert session.run(f"echo {'z' * 3000} | wc -c").output == "3001\n"
        with pytest.raises(CommandTimeout) as caught:
            session.run("echo begun; sleep 1000", timeout=3)
        assert (caught.value.output, caught.value.stopped) == ("begun\n", True)
        assert session.run("echo next").output == "next\n"


def test_the_kernel_speaks_in_between(desk: Desk) -> None:
    """Item 12 of the field notes, with a kernel that really does."""
    with open_session("one", config=desk.directory, timeout=WITHIN_S) as session:
        session.run("dmesg -n 8")
        for _ in range(5):
            done = session.run(
                'for i in 1 2 3 4 5; do echo "<4>kernel says $i" > /dev/kmsg; echo line $i; done; (exit 4)'
            )
            assert (done.output, done.exit_code) == ("line 1\nline 2\nline 3\nline 4\nline 5\n", 4)
    assert b"kernel says 3" in desk.files("one").serial_log.read_bytes(), "the log has it all"


def test_a_login_at_another_console(desk: Desk) -> None:
    with open_session("one", config=desk.directory, timeout=WITHIN_S) as session:
        session.sendline("exit")
        session.expect("login: ")
        with pytest.raises(ConsoleError, match="login prompt"):
            session.run("true")
        session.login("root")
        assert session.run("pwd").output == "/root\n"


def test_a_session_outlives_the_supervisor(desk: Desk) -> None:
    with open_session("one", config=desk.directory, timeout=WITHIN_S) as session:
        session.run("kept=1234")
        end_at_once(desk.status("one")["supervisor_pid"])
        deadline = time.monotonic() + WITHIN_S
        while True:
            try:
                assert session.run("echo $kept").output == "1234\n"
                break
            except ConsoleError:  # it has gone while something was typed
                assert time.monotonic() < deadline


def test_who_has_the_keyboard_is_told(desk: Desk) -> None:
    session = attach_to_vm("one", config=desk.directory, timeout=WITHIN_S)
    try:
        with (
            pytest.raises(WaitTimeout, match="the keyboard, which a script"),
            open_session("one", config=desk.directory, timeout=0.3),
        ):
            pass
        with open_session("one", config=desk.directory, mode="read") as reader:
            send_input(session, "echo seen''by both\n")
            reader.expect("seenby both", timeout=WITHIN_S)
            with pytest.raises(ConsoleError, match="the keyboard is with a script"):
                reader.send("x")
        assert "seenby both" in read_output(session, timeout=WITHIN_S) + read_output(session, timeout=1)
        with open_session("one", config=desk.directory, mode="steal", timeout=WITHIN_S) as thief:
            assert thief.run("echo mine").output == "mine\n"
    finally:
        detach_vm(session)
        detach_vm(session)


def run_command(desk: Desk, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [*COMMAND, *words]
    return subprocess.run(
        argv, cwd=desk.directory, input=stdin, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def test_a_shell_script_types_reads_and_plays_scripts(desk: Desk) -> None:
    done = run_command(desk, "send", "one", "echo a''b", "--console", "ttyS0", "--until", r"ab\s")
    assert (done.returncode, done.stderr) == (0, "")
    assert "ab" in done.stdout
    done = run_command(desk, "read", "one", "--until", "# $", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    position = json.loads(run_command(desk, "--json", "send", "one", "echo c''d", "--console", "ttyS0").stdout)[
        "position"
    ]
    assert "cd" in run_command(desk, "read", "one", "--from", str(position), "--until", "cd\r?\n").stdout
    assert "Linux version" in run_command(desk, "read", "one").stdout, "all it has said"
    done = run_command(desk, "read", "one", "--until", "never", "--timeout", "0.2")
    assert done.returncode == EXIT_TIMEOUT

    script = Path(desk.directory / "look")
    script.write_text('run "uname -s"\nrun "sh -c \'exit 4\'" exit 4\nprint "it works"\n')
    done = run_command(desk, "expect", "one", "look")
    assert (done.returncode, done.stderr) == (0, "")
    assert "$ uname -s\nLinux\n" in done.stdout
    assert done.stdout.endswith("it works\n")
    document = json.loads(run_command(desk, "--json", "expect", "one", "look").stdout)
    assert document == {"name": "one", "console": "ttyS0", "steps": 3, "printed": ["it works"]}
    done = run_command(desk, "expect", "one", "-", stdin='run "exit_with() { return 7; }; exit_with"')
    assert done.returncode == 7
    assert "stdin:1: run:" in done.stderr
    assert run_command(desk, "expect", "one", "-", stdin="nonsense").returncode == EXIT_USAGE
    assert run_command(desk, "expect", "one", "no-such-file").returncode == EXIT_USAGE


def test_a_vm_that_stops_ends_the_session(desk: Desk) -> None:
    with open_session("one", config=desk.directory, timeout=WITHIN_S) as session:
        session.sendline("poweroff")
        with pytest.raises(SessionEnded) as caught:
            session.expect("no such text")
        assert caught.value.evidence


@pytest.mark.slow
def test_vms_work_as_a_cluster(workdir: Path) -> None:
    with open_desk(workdir) as desk:
        desk.write(CONFIGURATION + CONFIGURATION.replace("[vm.one]", "[vm.two]"))
        with create_cluster(["one", "two"], config=desk.directory, timeout=WITHIN_S * 2) as cluster:
            cluster.broadcast("uname -s; exit_code() { return 5; }; exit_code", timeout=WITHIN_S)
            for answer in cluster.gather(timeout=WITHIN_S).values():
                assert isinstance(answer, Done), answer
                assert (answer.output, answer.exit_code) == ("Linux\n", 5)
            desk.run("kill", "two")
            cluster.broadcast("echo here", timeout=WITHIN_S)
            one, two = cluster.gather(timeout=WITHIN_S).values()
            assert isinstance(one, Done)
            assert isinstance(two, ControlError)
        assert desk.status("one")["state"] == "STOPPED"
