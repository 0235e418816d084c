"""The two-way console under a terminal: typing reaches the guest, Ctrl-] opens a prompt, the end restores all."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.boot.launching import BOOT_S, find_processes_below, wait_until_gone
from tests.boot.terminal import ESCAPE, GUEST_PROMPT, Seat, open_seat

TCG = ("--accel", "tcg")


@pytest.fixture(scope="module")
def logged_in() -> Iterator[Seat]:
    """One VM with a root shell on its serial console, for all tests that leave it as it was."""
    cwd = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    with open_seat("enhanced_vm", *TCG, cwd=cwd) as seat:
        seat.log_in()
        yield seat
    shutil.rmtree(cwd, ignore_errors=True)


@pytest.fixture
def seat(logged_in: Seat) -> Seat:
    """The shared VM, with nothing typed and nothing pending."""
    logged_in.send("\x03\r")
    logged_in.expect(GUEST_PROMPT)
    while logged_in.child.expect([GUEST_PROMPT, pexpect.TIMEOUT], timeout=0.3) == 0:
        pass  # a further prompt was on its way
    return logged_in


def test_what_is_typed_reaches_the_guest_and_comes_back(seat: Seat) -> None:
    assert "42" in seat.run("echo $((6*7))")


def test_ctrl_c_interrupts_the_guests_program_and_nothing_of_ours(seat: Seat) -> None:
    seat.send("cat\r")
    seat.expect("cat\r+\n")
    seat.send("a line\r")
    seat.expect("a line\r+\na line\r+\n")
    seat.send("\x03")
    seat.expect(GUEST_PROMPT)
    seat.send("echo cat ended with $?\r")
    seat.expect(r"cat ended with 130\r+\n")
    assert seat.child.isalive()


def test_ctrl_bracket_twice_types_one(seat: Seat) -> None:
    seat.send("cat -v\r")
    seat.expect("cat -v\r+\n")
    seat.send(ESCAPE)
    seat.expect("unhinged> ")
    seat.send(ESCAPE)
    seat.send("x\r")
    seat.expect(r"\^\]x\r+\n")
    # Both at once, as a paste has it.
    seat.send(f"a{ESCAPE}{ESCAPE}b\r")
    seat.expect(r"a\^\]b\r+\n")
    seat.send("\x03")
    seat.expect(GUEST_PROMPT)


def test_the_prompt_lists_its_commands_and_names_what_it_does_not_know(seat: Seat) -> None:
    seat.open_prompt()
    helped = seat.ask("help")
    for word in ("status", "exec", "send", "monitor", "qmp", "screenshot", "pause", "resume", "detach", "quit"):
        assert f"  {word}" in helped
    assert "no such command: statsu; did you mean status?" in seat.ask("statsu")
    assert "no such command: xyzzy; `help` lists them" in seat.ask("xyzzy")
    seat.leave_prompt()


def test_the_prompt_runs_a_command_in_the_guest(seat: Seat) -> None:
    seat.open_prompt()
    assert "Linux\n[exit code 0]" in seat.ask("exec uname")
    assert "a  b\n[exit code 3]" in seat.ask("exec sh -c 'echo \"a  b\"; exit 3'")
    assert "error: " in seat.ask("exec /no/such/program")
    assert "error: that line cannot be split" in seat.ask("exec 'half")
    seat.leave_prompt()


def test_the_prompt_speaks_with_the_monitor(seat: Seat) -> None:
    seat.open_prompt()
    assert "VM status: running" in seat.ask("monitor info status")
    assert '"status": "running"' in seat.ask("qmp query-status")
    assert "error: " in seat.ask("qmp no-such-command")
    assert "error: that is not JSON" in seat.ask("qmp device_del {nonsense")
    assert f"files: {seat.files.directory}" in seat.ask("status")
    seat.leave_prompt()


def test_the_prompt_sends_messages(seat: Seat) -> None:
    seat.open_prompt()
    shown = seat.ask("send diagnostics")
    assert "status: diagnostics done" in shown and '"kernel"' in shown
    assert "error: there is no command juggle" in seat.ask("send juggle")
    assert "error: that is not JSON" in seat.ask('send show text {"text": ')
    seat.leave_prompt()


def test_the_prompt_takes_a_screenshot(seat: Seat) -> None:
    picture = seat.files.directory / "screen of the guest.png"
    seat.open_prompt()
    assert f"saved as {picture}" in seat.ask(f"screenshot {picture}")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert "error: " in seat.ask("screenshot /no/such/directory/picture.png")
    seat.leave_prompt()


def test_the_prompt_pauses_and_resumes(seat: Seat) -> None:
    seat.open_prompt()
    assert "paused" in seat.ask("pause")
    assert "QEMU says paused" in seat.ask("status")
    assert seat.state() == "PAUSED"
    assert "runs" in seat.ask("resume")
    assert "QEMU says running" in seat.ask("status")
    assert seat.state() == "RUNNING"
    seat.leave_prompt()
    assert "42" in seat.run("echo $((6*7))")


@pytest.mark.parametrize(
    "way_back", ["\r", "\x03", "half a comm\x03"], ids=["empty line", "Ctrl-C", "Ctrl-C in a line"]
)
def test_ways_back_to_the_guest(seat: Seat, way_back: str) -> None:
    seat.open_prompt()
    seat.send(way_back)
    seat.send("\r")
    seat.expect(GUEST_PROMPT)
    assert "42" in seat.run("echo $((6*7))")


def test_output_waits_while_the_prompt_is_open(seat: Seat) -> None:
    seat.send("sleep 1; echo $((40+2))-late\r")
    seat.open_prompt()
    assert "42-late" not in seat.ask("exec sleep 2")
    seat.send("\r")
    seat.expect("42-late")
    seat.expect(GUEST_PROMPT)


def test_what_the_guest_prints_is_shown_unchanged(seat: Seat) -> None:
    assert "\x1b[1mbold\x1b[0m na\u00efve" in seat.run("printf '\\033[1mbold\\033[0m na\\303\\257ve\\n'")


def test_quit_shuts_the_guest_down_and_restores_the_terminal(logged_in: Seat) -> None:
    """The last test of the shared VM."""
    logged_in.open_prompt()
    logged_in.send("quit\r")
    assert logged_in.wait() == 0
    logged_in.see_attributes_restored()
    assert logged_in.state() == "STOPPED"
    log = logged_in.files.serial_log.read_bytes()
    assert b"Power down" in log, "the guest was asked, not cut off"
    wait_until_gone(logged_in.files.directory, 2.0)


@pytest.mark.slow
def test_the_full_launcher_is_interactive_too(workdir: Path) -> None:
    with open_seat("unhinged", *TCG, cwd=workdir) as seat:
        seat.expect(r"unhinged: agent +[0-9.]+ ", BOOT_S)
        seat.send("\r")
        seat.log_in()
        assert "42" in seat.run("echo $((6*7))")
        # The guest goes by itself.
        seat.send("poweroff\r")
        seat.expect("unhinged: the guest shut down", 60)
        seat.expect("messages from the guest")
        assert seat.wait() == 0
        seat.see_attributes_restored()
    wait_until_gone(workdir, 2.0)


def test_detach_leaves_the_vm_running_and_attach_takes_it_back(workdir: Path) -> None:
    with open_seat("enhanced_vm", *TCG, cwd=workdir, ends=False) as seat:
        seat.log_in()
        seat.run("echo $((1000+337))-before")
        seat.open_prompt()
        seat.send("detach\r")
        assert seat.wait() == 0
        seat.see_attributes_restored()
        assert seat.state() == "RUNNING"
        qemu = seat.qemu_pid
    assert qemu in find_processes_below(workdir)
    with open_seat("enhanced_vm", "--attach", cwd=workdir) as seat:
        seat.expect("1337-before")  # history from before anybody of us was there
        seat.send("\r")
        assert "42" in seat.run("echo $((6*7))")
        seat.open_prompt()
        assert "Linux" in seat.ask("exec uname")
        assert seat.qemu_pid == qemu
        seat.send("quit\r")
        assert seat.wait() == 0
        seat.see_attributes_restored()
        assert seat.state() == "STOPPED"
    wait_until_gone(workdir, 2.0)


def test_attach_to_nothing_is_one_clear_sentence(workdir: Path) -> None:
    with open_seat("enhanced_vm", "--attach", cwd=workdir) as seat:
        seat.expect("error: there is no running VM called 'main' here")
        assert seat.wait() == 1
        seat.see_attributes_restored()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_restores_the_terminal(number: signal.Signals, workdir: Path) -> None:
    with open_seat("enhanced_vm", *TCG, cwd=workdir) as seat:
        seat.expect("booting", BOOT_S)
        seat.child.kill(number)
        assert seat.wait() == 130
        seat.see_attributes_restored()
        assert json.loads(seat.files.state.read_bytes())["state"] == "STOPPED"
    wait_until_gone(workdir, 2.0)
