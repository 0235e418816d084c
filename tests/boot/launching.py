"""Launchers as child processes, as a user or a CI job starts them; used by every test of this directory.

A `Launch` reads stdout and stderr as they come, waits for patterns with a deadline, and knows the instance it runs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from control.paths import InstanceFiles, find_instance_files, runtime_directory

ROOT = Path(__file__).resolve().parent.parent.parent
MAKE = ("make", "--no-print-directory", "-C", str(ROOT))
LAUNCHERS = ("simple_vm", "enhanced_vm", "unhinged")

BOOT_S = 60.0
"""From start to agent on a machine that does much else beside it; some 3 seconds on an idle one."""

END_S = 40.0
"""All rungs of the shutdown ladder together (control/vm/shutdown.py)."""

GONE_S = 15.0
"""For a QEMU whose launcher was killed: the keeper waits up to 5 seconds twice (control/process/keeper.py)."""


ONE_CPU = ("--accel", "tcg", "--cpus", "1")
"""Two CPUs of an emulated guest get in each other's way where two tests run on two CPUs. `make start` has two."""


def launcher_argv(launcher: str, *options: str) -> list[str]:
    return [sys.executable, str(ROOT / "control" / f"{launcher}_launcher.py"), *options]


class Launch:
    """One launcher that runs; made by `open_launch`.

    Attributes:
        stdout, stderr: All that came so far, when they are pipes.
    """

    def __init__(self, process: subprocess.Popen[bytes], cwd: Path, name: str) -> None:
        self.process = process
        self.name = name
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._runtime = runtime_directory(cwd)
        self._selector = selectors.DefaultSelector()
        for pipe, kept in ((process.stdout, self.stdout), (process.stderr, self.stderr)):
            if pipe is not None:
                self._selector.register(pipe, selectors.EVENT_READ, kept)

    @property
    def files(self) -> InstanceFiles:
        return find_instance_files(self._runtime, self.name)

    @property
    def qemu_pid(self) -> int:
        return int(self.files.pid.read_text())

    def messages(self) -> list[dict[str, Any]]:
        """The journal so far; of what is being written, the whole lines."""
        whole, _, _ = self.files.messages.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def write(self, data: bytes) -> None:
        """Write to its stdin, which must be a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_for(
        self, pattern: bytes, *, on: str = "stdout", after: int = 0, within_s: float = BOOT_S
    ) -> re.Match[bytes]:
        """Read until `pattern` was on stdout or stderr, from byte `after` on.

        Raises:
            AssertionError: It did not come; shows the end of what did.
        """
        kept = self.stdout if on == "stdout" else self.stderr
        found: list[re.Match[bytes]] = []

        def seen() -> bool:
            match = re.search(pattern, bytes(kept[after:]), re.MULTILINE)
            found.extend([match] if match else [])
            return match is not None

        assert self._read_until(seen, within_s), f"{pattern!r} did not come on {on}\n{self.show()}"
        return found[0]

    def wait_until(self, condition: Callable[[], bool], what: str, *, within_s: float = BOOT_S) -> None:
        """Read until `condition` holds, looked at whenever something was read and ten times a second."""
        assert self._read_until(condition, within_s), f"waited {within_s:g} s for {what}\n{self.show()}"

    def wait(self, within_s: float = END_S) -> int:
        """Read until it has ended, and return its exit code."""
        assert self._read_until(lambda: self.process.poll() is not None, within_s), f"it does not end\n{self.show()}"
        self._read_until(lambda: not self._selector.get_map(), 5.0)
        assert self.process.returncode is not None
        return self.process.returncode

    def finish(self, exit_code: int = 0, within_s: float = BOOT_S + END_S) -> Launch:
        """Wait for its end and compare the exit code; shows what it said when that is another."""
        code = self.wait(within_s)
        assert code == exit_code, f"exit code {code}, not {exit_code}\n{self.show()}"
        assert b"Traceback" not in self.stderr, self.show()
        return self

    def peak_bytes(self) -> int:
        """The most memory the launcher ever had resident (proc_pid_status(5), VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def show(self) -> str:
        out, err = (bytes(kept[-2500:]).decode("utf-8", "replace") for kept in (self.stdout, self.stderr))
        return f"-- stdout, {len(self.stdout)} bytes\n{out}\n-- stderr\n{err}"

    def close(self) -> None:
        """End it, gently first, and give back the descriptors."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(AssertionError):
                self.wait()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(GONE_S)
        self._selector.close()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _read_until(self, condition: Callable[[], bool], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            ready = self._selector.select(min(left, 0.1)) if self._selector.get_map() else self._pause(min(left, 0.02))
            for key, _ in ready:
                data = os.read(key.fd, 1 << 18)
                if data:
                    key.data.extend(data)
                else:
                    self._selector.unregister(key.fileobj)
        return True

    def _pause(self, seconds: float) -> list[Any]:
        """What is waited for now is a process or a file, and has no event a selector takes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        if self.process.poll() is not None:
            time.sleep(seconds)
        return []


@contextlib.contextmanager
def open_launch(
    launcher: str,
    *options: str,
    cwd: Path,
    name: str = "main",
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    env: dict[str, str] | None = None,
    argv: Sequence[str] = (),
    ends: bool = True,
) -> Iterator[Launch]:
    """Start a launcher in `cwd`, and end it when the body is left; with `ends`, all that runs of its instance, too."""
    process = subprocess.Popen(
        argv or launcher_argv(launcher, *ONE_CPU, *options),
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=env,
        bufsize=0,
    )
    launch = Launch(process, cwd, name)
    try:
        yield launch
    finally:
        launch.close()
        if ends:
            end_processes_below(launch.files.directory)


def run_launcher(launcher: str, *options: str, cwd: Path, exit_code: int = 0, **further: Any) -> Launch:
    """Run a launcher to its end; shows what it said when the exit code is another than `exit_code`."""
    with open_launch(launcher, *options, cwd=cwd, **further) as launch:
        return launch.finish(exit_code)


def see_same_console(shown: bytes | bytearray, log: Path) -> None:
    """See to it that `shown` is the console that QEMU logged, not a byte lost, changed or added."""
    logged = log.read_bytes()
    if bytes(shown) != logged:
        at = next((at for at, pair in enumerate(zip(shown, logged, strict=False)) if pair[0] != pair[1]), 0)
        raise AssertionError(
            f"{len(shown)} bytes are shown, {len(logged)} logged; at {at} {bytes(shown[at - 40 : at + 20])!r} is shown,"
            f" {logged[at - 40 : at + 20]!r} logged"
        )


# -- processes ---------------------------------------------------------------------------------------------------------


def find_processes_below(directory: Path) -> dict[int, str]:
    """The processes whose command line names something below `directory`: QEMUs and keepers of its instances."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes()
            # A relative path is meant from where the process stands.
            here = (entry / "cwd").readlink()
        except OSError:
            continue  # it has just ended, or is not ours
        if os.fsencode(directory) + b"/" in words or here.is_relative_to(directory):
            found[int(entry.name)] = words.replace(b"\0", b" ").decode("utf-8", "replace").strip()
    return found


def wait_until_gone(directory: Path, within_s: float = GONE_S) -> None:
    """Wait until nothing runs below `directory` any more."""
    deadline = time.monotonic() + within_s
    while left := find_processes_below(directory):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)  # processes that are not our children have no event we could wait for


def end_processes_below(directory: Path) -> None:
    """End what a test left running, so that one that fails does not disturb the next ones."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in find_processes_below(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(AssertionError):
            wait_until_gone(directory, 5.0)
            return


# -- the other ways into a running VM ----------------------------------------------------------------------------------


class GuestShell:
    """A root shell on the guest's second console, beside whatever the launcher does; made by `open_guest_shell`."""

    def __init__(self, said: int, typed: int) -> None:
        self._said = said
        self._typed = typed
        self._seen = bytearray()
        self._count = 0

    def run(self, command: str, within_s: float = 60.0) -> str:
        """Run `command` in the guest and return what it printed.

        Raises:
            AssertionError: It did not end in time, or not with exit code 0.
        """
        output, code = self.run_any(command, within_s)
        assert code == 0, f"{command!r} ended with {code} in the guest:\n{output}"
        return output

    def run_any(self, command: str, within_s: float = 60.0) -> tuple[str, int]:
        """Run `command` in the guest and return what it printed and its exit code."""
        self._count += 1
        mark = f"mark-{self._count}"
        self._seen.clear()
        self.send(f"echo begin-{mark}; {command}\necho end-{mark} $code\n".encode())
        match = self.wait_for(
            rf"begin-{mark}\r*\n(.*?)end-{mark} (\d+)".encode(), within_s, why=f"the end of {command!r}"
        )
        return match[1].decode("utf-8", "replace").replace("\r", "").strip("\n"), int(match[2])

    def put(self, path: str, data: bytes) -> None:
        """Write a file in the guest; made anew, or replaced."""
        self.run(f": > {path}")
        for start in range(0, len(data), 2048):  # a terminal takes lines of 4095 characters (termios(3))
            piece = base64.b64encode(data[start : start + 2048]).decode()
            self.run(f"echo {piece} | base64 -d >> {path}")

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._typed, data) :]

    def wait_for(self, pattern: bytes, within_s: float, *, why: str) -> re.Match[bytes]:
        deadline = time.monotonic() + within_s
        while True:
            match = re.search(pattern, bytes(self._seen), re.DOTALL)
            if match:
                return match
            left = deadline - time.monotonic()
            assert left > 0, f"waited {within_s:g} s on hvc0 for {why}; last: {bytes(self._seen[-600:])!r}"
            if data := os.read(self._said, 65536):
                self._seen += data
            else:
                time.sleep(0.01)  # QEMU writes it into a file, and a file can only be looked at again


@contextlib.contextmanager
def open_guest_shell(launch: Launch, within_s: float = BOOT_S) -> Iterator[GuestShell]:
    """Log in as root on hvc0 of the VM that `launch` runs."""
    files = launch.files
    launch.wait_until(lambda: files.hvc0_log.exists() and files.hvc0_typed.exists(), "the files of hvc0")
    with files.hvc0_log.open("rb", buffering=0) as said, files.hvc0_typed.open("wb", buffering=0) as typed:
        said.seek(0, os.SEEK_END)
        shell = GuestShell(said.fileno(), typed.fileno())
        # The login prompt was printed before we listened: ask again, as a person would, until somebody answers.
        deadline = time.monotonic() + within_s
        while True:
            shell.send(b"\n")
            try:
                match = shell.wait_for(rb"(login: |# )(?:\x1b\[6n)?\Z", 1.0, why="a prompt")
                break
            except AssertionError:
                assert time.monotonic() < deadline, "nobody answers on hvc0"
        if match[1] == b"login: ":
            shell.send(b"root\n")
            shell.wait_for(rb"# (?:\x1b\[6n)?\Z", within_s, why="the shell")
        # Lines without an editor, an echo and a prompt: what comes back is what the commands print.
        shell.send(b'stty -echo; while IFS= read -r line; do eval "$line" < /dev/null; code=$?; done\n')
        shell.run("true")
        yield shell


def ask_monitor(launch: Launch, command: str, within_s: float = 20.0) -> str:
    """Run a command of QEMU's human monitor on its own socket and return its text."""
    with contextlib.closing(_connect(launch.files.monitor_socket, within_s)) as connection:
        connection.settimeout(within_s)
        text = _read_prompt(connection)
        connection.sendall(command.encode() + b"\n")
        text = _read_prompt(connection)
    return text.partition("\n")[2].rpartition("(qemu)")[0].strip()


def _read_prompt(connection: socket.socket) -> str:
    text = b""
    while not text.endswith(b"(qemu) "):
        data = connection.recv(65536)
        assert data, f"the monitor hung up: {text!r}"
        text += data
    return text.decode("utf-8", "replace").replace("\r", "")


def _connect(path: Path, within_s: float) -> socket.socket:
    deadline = time.monotonic() + within_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            assert time.monotonic() < deadline, f"{path} does not answer"
            time.sleep(0.02)  # a socket that is not there yet has no event
        else:
            return connection
