"""A launcher under a terminal of its own, as a person has it; used by the tests of the two-way console."""

from __future__ import annotations

import contextlib
import json
import os
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect

from control.paths import InstanceFiles, find_instance_files, runtime_directory
from tests.boot.launching import BOOT_S, END_S, end_processes_below, launcher_argv

ROWS, COLUMNS = 40, 120
ESCAPE = "\x1d"
GUEST_PROMPT = r"# (\x1b\[6n)?([\r\n]+(\[vm [^\r\n]*[\r\n]+)*)?$"
"""Behind its prompt busybox asks the terminal where the cursor is (editing.c, ask_terminal); nobody need answer. What
the guest says of itself meanwhile, that somebody logged in for one, is shown behind that, or has been shown before and
leaves the end of a line."""

OUR_PROMPT = r"unhinged> $"


class Seat:
    """A terminal with a launcher in front of it; made by `open_seat`."""

    def __init__(self, child: pexpect.spawn[Any], terminal: int, cwd: Path, name: str) -> None:
        self.child = child
        self.name = name
        self._terminal = terminal
        self._commands = 0
        self._runtime = runtime_directory(cwd)
        self.attributes_before = termios.tcgetattr(terminal)

    @property
    def files(self) -> InstanceFiles:
        return find_instance_files(self._runtime, self.name)

    @property
    def qemu_pid(self) -> int:
        return int(self.files.pid.read_text())

    def state(self) -> str:
        return str(json.loads(self.files.state.read_bytes())["state"])

    def expect(self, pattern: str, within_s: float = 30.0) -> str:
        """Wait for `pattern` and return what came before it."""
        self.child.expect(pattern, timeout=within_s)
        return (self.child.before or b"").decode("utf-8", "replace").replace("\r", "")

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def log_in(self) -> None:
        """Log in as root on the serial console; there is no password."""
        self.expect("login: ", BOOT_S)
        self.send("root\r")
        self.expect(GUEST_PROMPT)

    def run(self, command: str) -> str:
        """Type a command at the guest's shell and return what it printed, and its exit code."""
        self._commands += 1
        mark = f"mark{self._commands}"
        # Split by quotes, so that the echo of what is typed is not taken for the mark itself.
        self.send(f"echo 'begin-'{mark}; {command}; echo 'end-'{mark} $?\r")
        self.expect(f"begin-{mark}\r+\n")
        shown = self.expect(f"end-{mark} ")
        return shown + "exit code " + self.expect(GUEST_PROMPT).partition("\n")[0]

    def ask(self, command: str, within_s: float = 30.0) -> str:
        """Type a command at our prompt, which must be open, and return what it showed."""
        self.send(command + "\r")
        self.expect(r"\r+\n")
        return self.expect(OUR_PROMPT, within_s)

    def open_prompt(self) -> None:
        self.send(ESCAPE)
        self.expect(OUR_PROMPT)

    def leave_prompt(self) -> None:
        """Back to the guest with an empty line; its shell is asked for a new prompt."""
        self.send("\r")
        self.send("\r")
        self.expect(GUEST_PROMPT)

    def wait(self, within_s: float = END_S) -> int:
        """Read until the launcher has ended, and return its exit code."""
        # Our own hold on the terminal keeps its end from being seen, so the process is what is watched.
        deadline = time.monotonic() + within_s
        while self.child.isalive():
            assert time.monotonic() < deadline, f"it does not end; last: {self.child.before!r}"
            self.child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=0.05)
        return int(self.child.exitstatus if self.child.exitstatus is not None else -(self.child.signalstatus or 0))

    def see_attributes_restored(self) -> None:
        assert termios.tcgetattr(self._terminal) == self.attributes_before


@contextlib.contextmanager
def open_seat(launcher: str, *options: str, cwd: Path, name: str = "main", ends: bool = True) -> Iterator[Seat]:
    """Start a launcher under a terminal of 40 by 120, and end it; what it started too, unless not `ends`."""
    argv = launcher_argv(launcher, *options)
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    child: pexpect.spawn[Any] = pexpect.spawn(
        argv[0], argv[1:], cwd=str(cwd), env=environment, dimensions=(ROWS, COLUMNS), timeout=30
    )
    # Held open, so that the terminal outlives the launcher and can be looked at afterwards.
    terminal = os.open(Path(f"/proc/{child.pid}/fd/0").readlink(), os.O_RDWR | os.O_NOCTTY)
    try:
        yield Seat(child, terminal, cwd, name)
    finally:
        os.close(terminal)
        if child.isalive():
            child.terminate(force=True)
        child.close()
        if ends:
            end_processes_below(cwd)
