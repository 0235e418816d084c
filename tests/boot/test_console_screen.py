"""What a person sees of a real guest at `unhinged console`: programs that draw the whole screen, resized; Ctrl-C."""

from __future__ import annotations

import os
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from tests.boot.one_vm import open_one_vm
from tests.qemu.fleets import COMMAND, WITHIN_S, Desk

pytestmark = pytest.mark.boot

ESCAPE = "\x1d"
NUDGE_S = 2.0


class Eye:
    """Somebody at a terminal, and the picture on it."""

    def __init__(self, desk: Desk, *words: str, rows: int = 24, columns: int = 80) -> None:
        argv = [*COMMAND, "console", "one", *words]
        environment: Any = {**os.environ, "HOME": str(desk.directory), "TERM": "xterm"}
        self.child: pexpect.spawn[Any] = pexpect.spawn(
            argv[0], argv[1:], cwd=str(desk.directory), env=environment, timeout=WITHIN_S, dimensions=(rows, columns)
        )
        self.terminal = os.open(Path(f"/proc/{self.child.pid}/fd/0").readlink(), os.O_RDWR | os.O_NOCTTY)
        self.before = termios.tcgetattr(self.terminal)
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)

    def __enter__(self) -> Eye:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close(force=True)
        os.close(self.terminal)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def look(self, is_right: Callable[[list[str]], bool], nudge: str = "") -> list[str]:
        """Look until the picture is right, and return it; `nudge` is what a person types when it stays wrong."""
        deadline = time.monotonic() + WITHIN_S
        nudged = time.monotonic()
        while True:
            if nudge and time.monotonic() > nudged + NUDGE_S:
                nudged = time.monotonic()
                self.send(nudge)
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.2))
            except pexpect.TIMEOUT:
                if is_right(self.lines):
                    return self.lines
            except pexpect.EOF:
                raise AssertionError("\n".join(self.lines)) from None
            assert time.monotonic() < deadline, "\n".join(self.lines)

    def see(self, text: str) -> list[str]:
        return self.look(lambda lines: any(text in line for line in lines))

    def send(self, keys: str) -> None:
        self.child.send(keys)

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def wait_for_size(self, desk: Desk, rows: int, columns: int) -> None:
        deadline = time.monotonic() + WITHIN_S
        while desk.run("exec", "-n", "one", "--", "stty", "-F", "/dev/ttyS0", "size").stdout != f"{rows} {columns}\n":
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def leave(self) -> None:
        self.send(ESCAPE)
        self.see("unhinged>")
        self.send("detach\r")
        deadline = time.monotonic() + WITHIN_S
        while self.child.isalive():  # it has no end of file: we hold the terminal open
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert termios.tcgetattr(self.terminal) == self.before


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_one_vm(tmp_path_factory.mktemp("screen"), "ttyS0", "hvc0") as desk:
        desk.run("exec", "-n", "one", "--", "dmesg", "-n", "1")  # a word of the kernel's is no part of these pictures
        yield desk


@pytest.fixture
def eye(desk: Desk) -> Iterator[Eye]:
    with Eye(desk) as eye:
        eye.look(lambda lines: lines[eye.screen.cursor.y].endswith("#"))
        eye.send("clear\r")
        eye.look(lambda lines: lines[0].endswith("#"))
        yield eye
    # Whatever one test has left in front, the next finds a shell.
    desk.run("exec", "-n", "one", "--", "sh", "-c", "killall vi top cat sleep 2>/dev/null; stty -F /dev/ttyS0 sane")


def is_vi(rows: int) -> Callable[[list[str]], bool]:
    """Whether vi has drawn its 60 lines of a file on so many rows."""

    def is_right(lines: list[str]) -> bool:
        text = [f"line {number} of the file" for number in range(1, rows)]
        return len(lines) == rows and lines[:-1] == text and "/tmp/file" in lines[-1]

    return is_right


@pytest.mark.slow
def test_vi_is_drawn_anew_on_another_size(desk: Desk, eye: Eye) -> None:
    """Item 7 of the field notes: the size reaches the guest, and the program in front."""
    eye.wait_for_size(desk, 24, 80)
    eye.send("i=1; while [ $i -le 60 ]; do echo line $i of the file; i=$((i+1)); done > /tmp/file; vi /tmp/file\r")
    eye.look(is_vi(24))
    for rows, columns in ((40, 120), (12, 60)):
        eye.resize(rows, columns)
        eye.wait_for_size(desk, rows, columns)
        eye.look(is_vi(rows), nudge="\x0c")  # Ctrl-L
    eye.send("ofresh line\x1b")  # alone: what follows an escape at once would be one key with it
    eye.look(lambda lines: lines[-1].startswith("- "))
    eye.send(":wq\r")
    eye.look(lambda lines: lines[eye.screen.cursor.y].endswith("#"))
    assert "fresh line" in desk.run("exec", "-n", "one", "--", "head", "-n", "2", "/tmp/file").stdout


def test_top_fills_the_screen_it_has(desk: Desk, eye: Eye) -> None:
    eye.wait_for_size(desk, 24, 80)

    def is_top(rows: int, columns: int) -> Callable[[list[str]], bool]:
        def is_right(lines: list[str]) -> bool:
            head = next((at for at, line in enumerate(lines) if line.lstrip().startswith("PID")), -1)
            rest = lines[head + 1 :]
            return (
                head == 3
                and lines[0].startswith("Mem:")
                and all(line.split()[:1] and line.split()[0].isdigit() for line in rest[:-1])
                and max(len(line) for line in lines) <= columns
                and len(lines) == rows
            )

        return is_right

    eye.send("top -d 1\r")
    eye.look(is_top(24, 80))
    eye.resize(16, 70)
    eye.wait_for_size(desk, 16, 70)
    eye.look(is_top(16, 70))
    eye.send("q")
    eye.look(lambda lines: lines[eye.screen.cursor.y].endswith("#"))


def test_ctrl_c_is_the_guests_and_the_escape_can_be_typed(desk: Desk, eye: Eye) -> None:
    """Item 6 of the field notes; the rest of it, the terminal after any end, is in tests/qemu/test_console.py."""
    eye.send("sh -c 'echo be\"\"gun; exec sleep 1000'\r")
    eye.see("begun")
    eye.send("\x03")
    eye.look(lambda lines: lines[eye.screen.cursor.y].endswith("#"))
    eye.send("cat -v\r")
    eye.see("cat -v")
    eye.send(ESCAPE)
    eye.see("unhinged>")
    eye.send(ESCAPE)  # a second one is typed
    eye.send("x\r")
    eye.see("^]x")
    eye.send("\x04")
    eye.leave()


def test_two_look_on_and_one_steals(desk: Desk, eye: Eye) -> None:
    """Item 15 of the field notes: history before attach is shown, to any number."""
    eye.send('echo said be""fore\r')
    eye.see("said before")
    with Eye(desk) as other:
        other.see("said before")
        eye.send('echo both see th""is\r')
        eye.see("both see this")
        other.see("both see this")
        other.send(ESCAPE)
        other.see("unhinged>")
        other.send("steal\r")
        eye.see("keyboard")
        other.send('\recho now it is mi""ne\r')
        other.see("now it is mine")
        eye.see("now it is mine")
        other.leave()
    eye.send('\recho back aga""in\r')
    eye.see("back again")


def test_the_console_is_complete_from_its_first_byte(desk: Desk) -> None:
    """Item 15 of the field notes: a recorded boot, replayed, is the log byte for byte, and so is the whole history."""
    until = ["--until", "Linux version", "--timeout", "60"]
    before = desk.files("one").serial_log.stat().st_size
    for words, least in (
        (["replay", "one", "--speed", "0"], before),
        (["logs", "one"], before),
        (["console", "one", "--read-only", "--since", "start", *until], 1),
    ):
        done = subprocess.run(
            [*COMMAND, *words], cwd=desk.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False
        )
        log = desk.files("one").serial_log.read_bytes()  # it may have gone on
        assert done.returncode == 0
        assert b"Linux version" in done.stdout
        assert log.startswith(done.stdout), words
        assert len(done.stdout) >= least


@pytest.mark.parametrize("console", ["hvc0", "shell"])
def test_the_other_consoles(desk: Desk, console: str) -> None:
    with Eye(desk, "--console", console) as other:
        other.look(lambda lines: lines[other.screen.cursor.y].endswith("#"))
        other.send('tty; echo at th""is one\r')
        lines = other.see("at this one")
        assert any(("/dev/hvc0" if console == "hvc0" else "/dev/pts/") in line for line in lines)
        other.leave()
