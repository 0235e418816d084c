"""Consoles of real QEMUs, whose guest is a boot sector that says back what is typed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from control.console.sink import TIDY_UP
from control.errors import EXIT_TIMEOUT, EXIT_USAGE, ConsoleError
from control.failure import RemoteError
from control.vm.attached import Attached, attach
from tests.qemu.fleets import COMMAND, PLAIN, WITHIN_S, Desk, end_at_once, finish, open_desk

ECHO = bytes.fromhex("fabafd03eca80174fbbaf803eceeebf1")
"""Code for the serial port at 0x3f8: waits for a byte, and says it back, for ever."""

ROM = ECHO.ljust(0xFFF0, b"\0") + bytes.fromhex("ea000000f0").ljust(16, b"\0")
"""It instead of a BIOS, which would speak, and read, on that port too: a CPU begins in the last 16 bytes."""

ESCAPE = "\x1d"
PROMPT = "unhinged> "


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        (desk.directory / "one.img").write_bytes(bytes(1 << 20))
        (desk.directory / "rom").write_bytes(ROM)
        desk.write(PLAIN.format(name="one") + f'qemu_args = ["-bios", "{desk.directory}/rom"]\n')
        done = desk.run("start", "one")
        assert done.exit_code == 0, done.stderr
        yield desk
        desk.run("kill", "one")
        desk.wait_until_gone()


def read_until(attached: Attached, wanted: bytes) -> bytes:
    """Read until `wanted` was said, and return all of it."""
    seen = b""
    deadline = time.monotonic() + WITHIN_S
    while wanted not in seen:
        assert time.monotonic() < deadline, (len(seen), seen)
        attached.wait(1.0)
        attached.attend()
        seen += attached.read()
    return seen


def attend_until(attached: Attached, turn: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while attached.turn != turn:
        assert time.monotonic() < deadline, attached.turn
        attached.wait(0.1)
        attached.attend()


def type_on(desk: Desk, data: bytes) -> None:
    """Have the guest say `data`, and see that it did."""
    with attach(desk.runtime, "one", mode="steal") as attached:
        attached.wait_for_turn(WITHIN_S)
        attached.type(data)
        read_until(attached, data)


def run_piped(desk: Desk, *words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    argv = [*COMMAND, "console", "one", *words]
    return subprocess.run(argv, cwd=desk.directory, input=stdin, capture_output=True, timeout=WITHIN_S, check=False)


class Person:
    """Somebody at a terminal of 30 by 100 with `unhinged console` in front of them."""

    def __init__(self, desk: Desk, *words: str) -> None:
        argv = [*COMMAND, "console", "one", *words]
        environment: Any = {**os.environ, "HOME": str(desk.directory), "TERM": "xterm"}
        self.child: pexpect.spawn[Any] = pexpect.spawn(
            argv[0], argv[1:], cwd=str(desk.directory), env=environment, timeout=WITHIN_S, dimensions=(30, 100)
        )
        # Held open, so that the terminal outlives the command and can be looked at afterwards.
        self.terminal = os.open(Path(f"/proc/{self.child.pid}/fd/0").readlink(), os.O_RDWR | os.O_NOCTTY)
        self.before = termios.tcgetattr(self.terminal)

    def __enter__(self) -> Person:
        self.child.expect_exact("Ctrl-] opens a prompt")
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)
        os.close(self.terminal)

    def say(self, text: str) -> None:
        self.child.send(text)
        self.child.expect_exact(text)

    def ask(self, command: str) -> None:
        self.child.send(ESCAPE)
        self.child.expect_exact(PROMPT)
        self.child.send(command + "\r")

    def see_restored(self, within_s: float = WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while termios.tcgetattr(self.terminal) != self.before:
            assert time.monotonic() < deadline, "the terminal is not as it was"
            time.sleep(0.01)


def test_one_types_and_the_others_wait_for_their_turn(desk: Desk) -> None:
    with attach(desk.runtime, "one", who="first") as first, attach(desk.runtime, "one", who="second") as second:
        with attach(desk.runtime, "one", mode="read", who="reader") as reader:
            assert (first.turn, second.turn, reader.turn) == ("yours", "waiting", "reading")
            assert second.holder == "first"
            first.type(b"hello")
            for each in (first, second, reader):
                assert read_until(each, b"hello").endswith(b"hello")
            for each in (second, reader):
                with pytest.raises(ConsoleError, match="the keyboard is with first"):
                    each.type(b"x")
            second.steal()
            second.wait_for_turn(WITHIN_S)
            attend_until(first, "lost")
            assert first.holder == "second"
            reader.steal()
            reader.wait_for_turn(WITHIN_S)
        second.wait_for_turn(WITHIN_S)  # who was robbed is the next
        second.release()
        first.wait_for_turn(WITHIN_S)
        attend_until(second, "reading")
    assert desk.files("one").serial_log.read_bytes() == b"hello", "nothing of the refused was typed"


def test_leaving_twice_is_fine_and_nothing_can_be_done_then(desk: Desk) -> None:
    with attach(desk.runtime, "one") as attached:
        attached.close()
        attached.close()
        with pytest.raises(ConsoleError, match="was left"):
            attached.read()
        with pytest.raises(ConsoleError, match="was left"):
            attached.type(b"x")


def test_a_console_that_is_not_there_is_named(desk: Desk) -> None:
    with pytest.raises(RemoteError, match="no console tty9"), attach(desk.runtime, "one", console="tty9"):
        pass
    done = desk.run("console", "one", "--console", "shell")
    assert done.exit_code == 1
    assert "agent" in done.stderr


def test_a_hundred_viewers_see_every_byte_and_the_typist_is_not_held_up(desk: Desk) -> None:
    data = os.urandom(3000)
    with ExitStack() as stack:
        # None of them ever reads before the end.
        viewers = [stack.enter_context(attach(desk.runtime, "one", mode="read", start=0)) for _ in range(100)]
        with attach(desk.runtime, "one") as typist:
            typist.type(data)
            assert read_until(typist, data[-40:]) == data
        for viewer in viewers:
            assert read_until(viewer, data[-40:]) == data


def test_a_supervisor_that_is_killed_costs_no_byte(desk: Desk) -> None:
    supervisor = desk.status("one")["supervisor_pid"]
    with attach(desk.runtime, "one", who="us") as attached, attach(desk.runtime, "one", mode="read") as reader:
        attached.type(b"before;")
        seen = read_until(attached, b"before;")
        end_at_once(supervisor)
        attached.wait(WITHIN_S)
        attached.attend()  # sits down with the next one
        attached.wait_for_turn(WITHIN_S)
        attached.type(b"after;")
        seen += read_until(attached, b"after;")
        assert seen == b"before;after;"
        assert read_until(reader, b"after;") == b"before;after;"
    assert desk.status("one")["supervisor_pid"] != supervisor
    assert desk.files("one").serial_log.read_bytes() == b"before;after;"


def test_the_end_of_the_vm_is_the_end_of_the_stream(desk: Desk) -> None:
    with attach(desk.runtime, "one") as attached:
        attached.type(b"last words")
        read_until(attached, b"words")
        desk.run("stop", "one", "--timeout", "0")
        deadline = time.monotonic() + WITHIN_S
        while not attached.is_over:
            assert time.monotonic() < deadline
            attached.wait(1.0)
            attached.attend()
            attached.read()
        assert attached.how
        with pytest.raises(ConsoleError, match="nothing can be typed"):
            attached.type(b"x")


def test_a_person_comes_and_goes_and_finds_what_was_said_meanwhile(desk: Desk) -> None:
    with Person(desk) as person:
        person.say("one;")
        person.child.send("\x03")  # Ctrl-C is the guest's
        person.child.expect_exact("\x03")
        person.ask("detach")
        person.child.expect_exact("one: detached")
        person.child.wait()
        person.see_restored()
    type_on(desk, b"two;")
    with Person(desk) as person:
        person.child.expect_exact("one;\x03two;")
        person.say("three;")
    with Person(desk, "--no-history") as person:
        person.say("four;")
        assert b"three" not in (person.child.before or b"")
    assert desk.status("one")["state"] == "RUNNING"


def test_the_escape_key_can_be_typed_and_the_prompt_runs_commands(desk: Desk) -> None:
    with Person(desk) as person:
        person.child.send(ESCAPE + ESCAPE)
        person.child.expect_exact(ESCAPE)
        person.ask("status")
        person.child.expect("state +RUNNING")
        person.child.expect_exact(PROMPT)
        person.child.send("monitor info status\r")
        person.child.expect_exact("VM status: running")
        person.child.expect_exact(PROMPT)
        person.child.send("nonsense\r")
        person.child.expect_exact("leave the console")
        person.child.expect_exact(PROMPT)
        person.child.send("\r")
        person.say("back")


def test_two_people_at_one_console(desk: Desk) -> None:
    with Person(desk) as first, Person(desk) as second:
        second.child.expect("the keyboard is with .* at pts/")
        first.say("from the first")
        second.child.expect_exact("from the first")
        second.child.send("x")
        second.child.expect_exact("the keyboard is with")
        second.ask("steal")
        second.child.expect_exact(PROMPT)
        second.child.send("\r")
        first.child.expect_exact("has taken the keyboard")
        second.say("from the second")
        first.child.expect_exact("from the second")
        second.ask("detach")
        first.child.expect_exact("the keyboard is yours")
        first.say("the first again")
    assert desk.files("one").serial_log.read_bytes() == b"from the firstfrom the secondthe first again"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_put_back_however_the_viewer_is_ended(desk: Desk, number: int) -> None:
    with Person(desk) as person:
        person.say("x")
        assert termios.tcgetattr(person.terminal) != person.before
        os.kill(int(person.child.pid or 0), number)
        person.see_restored()
        person.child.expect_exact(TIDY_UP[-10:])
        with attach(desk.runtime, "one") as attached:
            attached.wait_for_turn(WITHIN_S)


def test_a_guest_cannot_type_through_the_terminal_of_a_viewer(desk: Desk) -> None:
    question = b"\x1b[6n\x1b[c\x05\x1b]10;?\x07\x1b[31m"
    with Person(desk, "--read-only") as reader, Person(desk) as typist:
        typist.child.send(b"<" + question + b">")
        typist.child.expect_exact(b"<" + question + b">")
        reader.child.expect_exact(b"<\x1b[31m>")
        reader.child.send("\x1b[1;1R")  # what a terminal would have answered
        type_on(desk, b"end")
        reader.child.expect_exact("end")
    assert b"\x1b[1;1R" not in desk.files("one").serial_log.read_bytes()
    with Person(desk) as late:  # what was asked before they came is not theirs to answer
        late.child.expect_exact(b"<\x1b[31m>")


def test_what_is_no_text_arrives_as_it_is(desk: Desk) -> None:
    # BEL: what stands there by chance may have begun a sequence that would take the rest with it.
    data = bytes(range(0x20)) + b"\xff\xfe\xc3\x28" + os.urandom(2000) + b"\x07end of it"
    done = run_piped(desk, "--until", "end of it", "--timeout", "60", stdin=data)
    assert (done.returncode, done.stdout) == (0, data)


def test_a_script_types_and_reads_through_pipes(desk: Desk) -> None:
    done = run_piped(desk, stdin=b"hello\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")
    done = run_piped(desk)
    assert (done.returncode, done.stdout) == (0, b"hello\n"), "stdin that is empty, or closed, does not hang"
    done = run_piped(desk, "--no-history", "--until", "wor.d", stdin=b"world")
    assert (done.returncode, done.stdout) == (0, b"world")
    assert desk.ask("console", "console", "one", "--since", "start")["text"] == "hello\nworld"


def test_a_pattern_that_never_comes_ends_at_its_time_with_what_was_seen(desk: Desk) -> None:
    done = run_piped(desk, "--until", "never", "--timeout", "0.5", stdin=b"something else\n")
    assert done.returncode == EXIT_TIMEOUT
    assert b"the pattern" in done.stderr
    assert b"| something else" in done.stderr
    assert run_piped(desk, "--until", "(").returncode == EXIT_USAGE


def test_a_script_waits_for_the_keyboard_and_says_who_has_it(desk: Desk) -> None:
    with attach(desk.runtime, "one", who="the other one"):
        done = run_piped(desk, "--timeout", "0.5", stdin=b"x")
        assert done.returncode == EXIT_TIMEOUT
        assert b"the other one" in done.stderr
        done = run_piped(desk, "--steal", stdin=b"mine")
        assert (done.returncode, done.stdout) == (0, b"mine")
        assert run_piped(desk, "--read-only", "--until", "mine").returncode == 0


def test_lines_are_picked_and_history_begins_where_it_is_wanted(desk: Desk) -> None:
    type_on(desk, b"alpha 1\r\nbeta 2\r\n\x1b[31malpha\x1b[0m 3\r\n")
    done = run_piped(desk, "--grep", "^alpha", "--until", "alpha 3", "--timeout", "30")
    assert done.stdout.splitlines() == [b"alpha 1", b"alpha 3"]
    assert run_piped(desk, "--since", "1h", "--read-only", "--until", "3").stdout.startswith(b"alpha 1")
    assert run_piped(desk, "--since", "firmware", "--read-only", "--until", "3").stdout.startswith(b"alpha 1")
    done = run_piped(desk, "--since", "nowhere")
    assert done.returncode == EXIT_USAGE
    assert b"firmware" in done.stderr, "it names the markers there are"


def test_a_long_history_is_shown_from_the_beginning_of_a_line(desk: Desk) -> None:
    with desk.files("one").serial_log.open("ab") as log:  # as QEMU writes it, only quicker
        log.write(b"".join(b"line %07d\n" % number for number in range(20_000)))
    done = run_piped(desk, "--read-only", "--until", "line 0019999")
    assert re.fullmatch(rb"(line \d{7}\n)+", done.stdout)
    assert 60_000 < len(done.stdout) <= 64 * 1024
    whole = run_piped(desk, "--read-only", "--since", "start", "--until", "line 0019999").stdout
    assert whole == desk.files("one").serial_log.read_bytes()


def test_a_viewer_that_does_not_read_holds_nobody_up(desk: Desk) -> None:
    with stalled(desk, "console", "one", "--read-only") as viewer:
        type_on(desk, b"x" * 12_000 + b"and on")
        assert viewer.poll() is None
        os.set_blocking(viewer.stdout.fileno(), True)  # type: ignore[union-attr]
        seen = b""
        while not seen.endswith(b"and on"):
            seen += os.read(viewer.stdout.fileno(), 1 << 20)  # type: ignore[union-attr]
    assert seen == b"x" * 12_000 + b"and on"


@contextmanager
def stalled(desk: Desk, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A viewer whose pipe is full, for the body."""
    argv = [*COMMAND, *words]
    with subprocess.Popen(argv, cwd=desk.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as viewer:
        try:
            assert viewer.stdout is not None
            fcntl.fcntl(viewer.stdout, fcntl.F_SETPIPE_SZ, 4096)
            with attach(desk.runtime, "one") as attached:
                attached.wait_for_turn(WITHIN_S)
                attached.type(b"!")
            assert select.select([viewer.stdout], [], [], WITHIN_S)[0], "it has come up"
            assert os.read(viewer.stdout.fileno(), 1) == b"!"
            yield viewer
        finally:
            viewer.kill()


def test_a_guest_that_does_not_read_is_told_and_can_be_left(desk: Desk) -> None:
    desk.run("pause", "one")
    with Person(desk) as person:
        for _ in range(40):
            person.child.send("y" * 10_000)
        person.ask("detach")
        person.child.expect_exact("one: detached")
        person.see_restored()


def test_the_size_of_the_terminal_is_no_error_where_nothing_can_be_told_of_it(desk: Desk) -> None:
    with Person(desk) as person:
        person.child.expect_exact("stty rows 30 cols 100")  # there is no agent that could
        person.child.setwinsize(0, 0)
        person.say("x")


def test_json_is_one_document(desk: Desk) -> None:
    done = finish(desk.begin("--json", "console", "one", "--until", "never", "--timeout", "0.2"))
    assert done.exit_code == EXIT_TIMEOUT
    assert json.loads(done.stdout)["error"]["exit_code"] == EXIT_TIMEOUT
