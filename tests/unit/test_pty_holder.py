"""The holder of a program on a terminal: it writes what the program says, types, and says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import control.process

HOLDER = Path(control.process.__file__).with_name("pty_holder.py")
WITHIN_S = 30.0


class Held:
    """A holder and the files through which it is driven."""

    def __init__(self, directory: Path, command: list[str], env: dict[str, str]) -> None:
        self.directory = directory
        self.log = directory / "serial"
        self.log.touch(mode=0o600)
        for name in ("serial.in", "holder.orders"):
            os.mkfifo(directory / name, 0o600)
        job = {"command": command, "directory": str(directory), "env": env}
        (directory / "holder.job").write_text(json.dumps(job))
        self.process = subprocess.Popen([sys.executable, "-I", "-S", HOLDER, directory / "pid"])

    def wait_for(self, wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not wanted():
            assert time.monotonic() < deadline, self.log.read_bytes()
            time.sleep(0.005)

    def see(self, text: bytes) -> None:
        self.wait_for(lambda: text in self.log.read_bytes())

    def put(self, name: str, data: bytes) -> None:
        descriptor = os.open(self.directory / name, os.O_WRONLY)
        os.write(descriptor, data)
        os.close(descriptor)

    def end(self) -> dict[str, object]:
        self.process.wait(WITHIN_S)
        ended: dict[str, object] = json.loads((self.directory / "holder.end").read_text())
        return ended


@contextmanager
def hold(directory: Path, *command: str, env: dict[str, str] | None = None) -> Iterator[Held]:
    held = Held(directory, list(command), env or {})
    try:
        yield held
    finally:
        if held.process.poll() is None:
            held.process.kill()
            held.process.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_said_is_written_and_what_is_typed_is_read(tmp_path: Path) -> None:
    with hold(tmp_path, "sh", "-c", "echo ready $WORD; read x; echo got $x; exit 7", env={"WORD": "42"}) as held:
        held.see(b"ready 42\r\n")
        assert int((tmp_path / "pid").read_text()) == held.process.pid
        held.put("serial.in", b"this\n")
        assert held.end() == {"exit_code": 7, "signal": 0}
    assert held.log.read_bytes() == b"ready 42\r\nthis\r\ngot this\r\n"


def test_the_size_is_the_terminals_and_ctrl_c_is_the_programs(tmp_path: Path) -> None:
    script = "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done"
    with hold(tmp_path, "sh", "-c", script) as held:
        held.see(b"ready")
        held.put("holder.orders", b"size 31 117\n")
        held.see(b"31 117\r\n")
        held.put("serial.in", b"\x03")
        held.see(b"interrupted")
        assert held.end()["exit_code"] == 3


def test_a_flood_is_written_whole(tmp_path: Path) -> None:
    with hold(tmp_path, "sh", "-c", "yes 0123456789abcde | head -n 1000000") as held:
        assert held.end()["exit_code"] == 0
    assert held.log.stat().st_size == 17_000_000
    assert held.log.read_bytes() == b"0123456789abcde\r\n" * 1_000_000


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with hold(tmp_path, "no-such-program") as held:
        assert held.end() == {"error": "the program no-such-program cannot be used: No such file or directory"}
    assert not (tmp_path / "holder.state").exists()


def test_all_that_was_started_on_the_terminal_ends_with_the_program(tmp_path: Path) -> None:
    script = "trap '' TERM HUP; sleep 1000 & echo $! > grandchild; echo ready; wait"
    with hold(tmp_path, "sh", "-c", f"({script}) & read x; wait") as held:
        held.see(b"ready")
        held.see(b"ready")
        grandchild = int((tmp_path / "grandchild").read_text())
        held.process.send_signal(signal.SIGTERM)
        assert held.end()["signal"] in (signal.SIGTERM, signal.SIGHUP)
        held.wait_for(lambda: not is_alive(grandchild))


def test_a_program_that_will_not_go_is_ended(tmp_path: Path) -> None:
    with hold(tmp_path, "sh", "-c", "trap '' TERM HUP INT; echo ready; while :; do sleep 0.05; done") as held:
        held.see(b"ready")
        held.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert held.process.poll() is None
        held.process.send_signal(signal.SIGQUIT)
        assert held.end() == {"exit_code": 137, "signal": signal.SIGKILL}


def test_a_holder_that_is_killed_leaves_no_program(tmp_path: Path) -> None:
    with hold(tmp_path, "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.05; done") as held:
        held.see(b"ready")
        child = json.loads((tmp_path / "holder.state").read_text())["pid"]
        held.process.kill()
        held.wait_for(lambda: not is_alive(child))
