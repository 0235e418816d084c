"""`unhinged cast` and `replay`, on files as VMs leave them: byte for byte, but on a terminal without questions."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.console.sink import TIDY_UP
from control.errors import EXIT_INTERRUPTED, EXIT_USAGE
from tests.qemu.fleets import COMMAND, WITHIN_S, Desk

CONFIGURATION = """
[vm.one]
disk = "one.img"
memory = "64M"
"""
LOG = b"firmware\r\n\x1b[6n\x1b[32mkernel\x1b[0m\r\n" + "naïve \ud55c\r\n".encode() + b"\xff\x05\x1b]10;?\x07end"
ENTRIES = (
    [0.01, "o", 14],
    [0.02, "m", "kernel"],
    [0.03, "o", 35],
    [0.04, "m", "message: hello"],
    [100.0, "o", len(LOG)],
)
BEGAN = 1_700_000_000.0


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.write(CONFIGURATION)
    (tmp_path / "one.img").write_bytes(b"")
    files = desk.files("one")
    files.directory.mkdir(parents=True)
    lay(desk)
    return desk


def lay(desk: Desk, log: bytes = LOG, entries: tuple[Any, ...] | None = ENTRIES) -> None:
    files = desk.files("one")
    files.serial_log.write_bytes(log)
    files.serial_times.unlink(missing_ok=True)
    if entries is not None:
        header = {"version": 1, "started_at": BEGAN, "console": "ttyS0", "columns": 80, "rows": 24}
        files.serial_times.write_text("".join(json.dumps(line) + "\n" for line in (header, *entries)))


def play(desk: Desk, *words: str) -> bytes:
    argv = [*COMMAND, "replay", "one", *words]
    return subprocess.run(argv, cwd=desk.directory, stdout=subprocess.PIPE, timeout=WITHIN_S, check=True).stdout


def test_a_replay_into_a_pipe_is_the_log_byte_for_byte(desk: Desk) -> None:
    assert play(desk, "--speed", "0") == LOG


def test_a_replay_takes_the_time_it_took(desk: Desk) -> None:
    began = time.monotonic()
    assert play(desk, "--speed", "100") == LOG
    assert time.monotonic() - began > 0.9
    began = time.monotonic()
    assert play(desk, "--idle-limit", "0.01") == LOG
    assert time.monotonic() - began < 30


def test_a_replay_from_a_marker(desk: Desk) -> None:
    assert play(desk, "--speed", "0", "--from", "kernel") == LOG[14:]
    assert play(desk, "--speed", "0", "--from", "message") == LOG[35:]
    error = desk.ask("cast", "cast", "one", "--from", "agent")["error"]
    assert "'kernel', 'message: hello'" in error["hint"]


def test_a_vm_of_an_older_version_has_no_times(desk: Desk) -> None:
    lay(desk, b"all of it", entries=None)
    done = desk.run("replay", "one")
    assert (done.exit_code, done.stdout) == (0, "all of it") and "older version" in done.stderr
    error = desk.ask("cast", "cast", "one")["error"]
    assert error["kind"] == "StateError" and "unhinged logs one" in error["hint"]
    assert desk.run("replay", "one", "--from", "kernel").exit_code == EXIT_USAGE


def test_a_vm_that_was_never_started(desk: Desk) -> None:
    assert desk.ask("cast", "cast", "one", "--console", "hvc0")["error"]["kind"] == "StateError"
    assert desk.run("replay", "one", "--console", "hvc0").exit_code == 1


def test_a_replay_has_no_document(desk: Desk) -> None:
    assert desk.ask("cast", "replay", "one")["error"]["kind"] == "ConfigError"


def test_a_cast(desk: Desk) -> None:
    done = desk.run("cast", "one")
    header, *events = map(json.loads, done.stdout.splitlines())
    assert (header["version"], header["title"], header["timestamp"]) == (2, "one: ttyS0", int(BEGAN))
    assert "".join(text for _, kind, text in events if kind == "o") == LOG.decode("utf-8", "replace")
    document = desk.ask("cast", "cast", "one")
    assert document["cast"] == done.stdout and document["size"] == len(done.stdout)
    assert document["marks"] == [{"time": 0.02, "label": "kernel"}, {"time": 0.04, "label": "message: hello"}]


def test_a_cast_in_a_file_replaces_it_in_one_step(desk: Desk) -> None:
    target = desk.directory / "one.cast"
    target.write_text("of before")
    assert desk.ask("cast", "cast", "one", "one.cast", "--from", "kernel")["file"] == "one.cast"
    assert json.loads(target.read_text().splitlines()[1]) == [0.0, "m", "kernel"]
    assert target.stat().st_mode & 0o777 == 0o600
    lay(desk, entries=None)
    assert desk.run("cast", "one", "one.cast").exit_code == 1
    assert json.loads(target.read_text().splitlines()[1]) == [0.0, "m", "kernel"]
    assert desk.run("cast", "one", "no/such/one.cast").exit_code == 1
    assert not list(desk.directory.glob(".one.cast*"))


# -- on a terminal -----------------------------------------------------------------------------------------------------


OWNING_TERMINAL = (
    sys.executable,
    "-c",
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Makes the terminal on stdin the controlling one, so that its Ctrl-C reaches the command behind these words."""


class Terminal:
    """A replay on a terminal of ours, which somebody types on."""

    def __init__(self, desk: Desk, *words: str) -> None:
        self.own, other = pty.openpty()
        self.before = termios.tcgetattr(other)
        self.seen = b""
        self.process = subprocess.Popen(
            [*OWNING_TERMINAL, *COMMAND, "replay", "one", *words],
            cwd=desk.directory,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
        )
        self.other = other

    def read_until(self, end: bytes) -> None:
        deadline = time.monotonic() + WITHIN_S
        while end not in self.seen:
            assert select.select([self.own], [], [], deadline - time.monotonic())[0], self.seen
            self.seen += os.read(self.own, 65536)

    def type(self, data: bytes) -> None:
        os.write(self.own, data)

    def finish(self) -> int:
        code = self.process.wait(WITHIN_S)
        while select.select([self.own], [], [], 0)[0]:
            self.seen += os.read(self.own, 65536)
        return code

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.own)
        os.close(self.other)


@contextlib.contextmanager
def open_terminal(desk: Desk, *words: str) -> Iterator[Terminal]:
    terminal = Terminal(desk, *words)
    try:
        yield terminal
    finally:
        terminal.close()


def see_restored(terminal: Terminal) -> None:
    assert terminal.seen.endswith(TIDY_UP)
    assert termios.tcgetattr(terminal.other) == terminal.before
    assert not select.select([terminal.other], [], [], 0)[0], "nothing is left for the shell behind it to read"


def test_on_a_terminal_no_question_is_shown(desk: Desk) -> None:
    with open_terminal(desk, "--speed", "0") as terminal:
        assert terminal.finish() == 0
        assert b"\x1b[6n" not in terminal.seen and b"\x05" not in terminal.seen and b"?\x07" not in terminal.seen
        assert b"\x1b[32mkernel\x1b[0m" in terminal.seen and "한".encode() in terminal.seen
        see_restored(terminal)


def test_q_ends_it(desk: Desk) -> None:
    with open_terminal(desk) as terminal:
        terminal.read_until(b"kernel")
        terminal.type(b"xq rm -rf /\n")
        assert terminal.finish() == 0
        see_restored(terminal)


def test_q_ends_it_in_the_middle_of_a_burst(desk: Desk) -> None:
    lay(desk, b"line\r\n" * 5_000_000, ([0.0, "o", 30_000_000],))
    with open_terminal(desk) as terminal:
        terminal.read_until(b"line")
        terminal.type(b"q")
        deadline = time.monotonic() + WITHIN_S
        while terminal.process.poll() is None and time.monotonic() < deadline:
            if select.select([terminal.own], [], [], 0.1)[0]:
                terminal.seen = (terminal.seen + os.read(terminal.own, 65536))[-4096:]
        assert terminal.finish() == 0
        see_restored(terminal)


def test_ctrl_c_ends_it(desk: Desk) -> None:
    with open_terminal(desk) as terminal:
        terminal.read_until(b"kernel")
        terminal.type(b"\x03")
        assert terminal.finish() == EXIT_INTERRUPTED
        see_restored(terminal)


def test_a_signal_ends_it_in_order(desk: Desk) -> None:
    with open_terminal(desk) as terminal:
        terminal.read_until(b"kernel")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.finish() == 128 + signal.SIGTERM
        see_restored(terminal)


def test_what_was_typed_and_not_read_does_not_reach_the_shell(desk: Desk) -> None:
    with open_terminal(desk) as terminal:
        terminal.read_until(b"kernel")
        terminal.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)
        terminal.type(b"rm -rf /\n")
        terminal.process.send_signal(signal.SIGTERM)
        terminal.process.send_signal(signal.SIGCONT)
        assert terminal.finish() == 128 + signal.SIGTERM
        see_restored(terminal)
