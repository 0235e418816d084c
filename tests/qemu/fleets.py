"""Runs `unhinged` on a fleet of paused VMs (imported by the tests of this folder): real QEMUs, no guests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.paths import ROOT, InstanceFiles, find_instance_files
from control.wire.schema import explain

COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from control.cli.begin import run; run()",
)
PLAIN = """
[vm.{name}]
disk = "{name}.img"
memory = "64M"
cpus = 1
accel = "tcg"
agent = false
"""
HALT = b"\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
"""A boot sector that does nothing, for ever: hlt, and a jump back to it."""

WITHIN_S = 60.0


@dataclass(frozen=True)
class Done:
    """What a command left."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)


class Desk:
    """A directory with a configuration, and the command run in it, behind the words of `prefix`."""

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        self.directory = directory
        self.prefix = tuple(prefix)
        self.runtime = directory / ".unhinged"

    def write(self, text: str) -> None:
        (self.directory / "unhinged.toml").write_text(text)

    def declare(self, *names: str, more: str = "") -> None:
        """Declare VMs that boot and then do nothing; `more` follows the last of them."""
        for name in names:
            (self.directory / f"{name}.img").write_bytes(HALT.ljust(1 << 20, b"\0"))
        self.write("".join(PLAIN.format(name=name) for name in names) + more)

    def begin(
        self,
        *words: str,
        stdin: int = subprocess.DEVNULL,
        environment: Mapping[str, str] = os.environ,
        cwd: Path | None = None,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.prefix, *COMMAND, *words],
            cwd=cwd or self.directory,
            env={**environment, "HOME": str(self.directory)},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, cwd: Path | None = None) -> Done:
        return finish(self.begin(*words, cwd=cwd))

    def ask(self, schema: str, *words: str) -> Any:
        """Run a command with --json and return its document, which fits its schema or that of an error."""
        done = self.run("--json", *words)
        document = done.document
        wrong = explain(
            "cli/error" if "error" in document and "kind" in document["error"] else f"cli/{schema}", document
        )
        assert not wrong, f"{wrong}\n{done.stdout}"
        assert "Traceback" not in done.stderr
        return document

    def start(self, *names: str) -> None:
        done = self.run("start", "--paused", *names)
        assert done.exit_code == 0, done.stderr

    def status(self, name: str) -> Any:
        return self.ask("status", "status", name)

    def files(self, name: str) -> InstanceFiles:
        return find_instance_files(self.runtime, name)

    def processes(self) -> list[int]:
        """The QEMUs, holders and supervisors of this directory."""
        needle = os.fsencode(self.directory)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:
                    continue  # it has just ended
                if needle in words and any(name in words for name in (b"qemu-system", b"supervise.py", b"_holder.py")):
                    found.append(int(entry.name))
        return found

    def wait_until_gone(self) -> None:
        deadline = time.monotonic() + WITHIN_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not self.processes(), "processes were left behind"


def finish(process: subprocess.Popen[str], *, within_s: float = WITHIN_S) -> Done:
    with process:
        stdout, stderr = process.communicate(timeout=within_s)
    assert "Traceback" not in stderr, stderr
    return Done(process.returncode, stdout, stderr)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(wanted: Callable[[], Any]) -> Any:
    """Wait until something is so, and return it."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := wanted()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def end_at_once(pid: int) -> None:
    """Kill a process that is not our child, and wait until it is gone."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        deadline = time.monotonic() + WITHIN_S
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.005)
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


@contextmanager
def open_desk(directory: Path, prefix: Sequence[str] = ()) -> Iterator[Desk]:
    """A desk in `directory`; nothing of it runs when the body is left."""
    desk = Desk(directory, prefix)
    try:
        yield desk
    finally:
        for pid in desk.processes():
            end_at_once(pid)
        for path in directory.rglob("*.socket"):
            path.unlink(missing_ok=True)
