"""One VM as a test uses it (floor 6): blocking, with the verbs people know, and a memory of what was done."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import select
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from control.console.follow import open_watch, skip_hole
from control.console.search import PlainText, StreamSearch
from control.errors import ConfigError, ControlError, WaitTimeout
from control.vm import lifetime
from control.vm.collect import collect_exec
from control.vm.reach import connect, look

if TYPE_CHECKING:
    from control.session.session import Session
    from control.testing.wishes import Wish
    from control.vm.disposable import Disposable

POLL_S = 0.1
"""How often something is looked at in the guest that tells nobody."""

LIFE_LOOK_S = 1.0
"""How often a machine whose console is waited for is looked at: has it ended?"""

COPY_TIMEOUT_S = 3600.0
KILL_ANSWER_S = 10.0
SHUTDOWN_S = 60.0
REBOOT_S = 300.0
READ_BYTES = 1 << 20
SHOWN_CHARACTERS = 2000
HISTORY_MAX = 500
FORWARDED_PROTOCOLS = ("tcp", "udp")

Command = str | Sequence[str]


class GuestAssertion(AssertionError):
    """What a test expected of a guest is not so."""


@dataclass(frozen=True)
class Outcome:
    """How a command in the guest ended, and what it wrote; UTF-8, what is invalid in it as U+FFFD.

    Attributes:
        exit_code: Its own; 128 and the number of the signal when one killed it.
        seconds: How long it ran.
    """

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    def describe(self) -> str:
        """The command and the end of what it wrote, as a report shows it."""
        lines = [f"$ {self.command}", f"  exit code {self.exit_code} after {self.seconds:.2f} s"]
        for name, text in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text.strip():
                shown = text[-SHOWN_CHARACTERS:]
                lines += [f"  {name}: {'…' if len(shown) < len(text) else ''}{shown.rstrip()}"]
        return "\n".join(lines)


class Machine:
    """A VM of a test. Its fixtures make it and throw it away; see docs/testing.md.

    A command is a line for `sh`, or a sequence that is the program and its arguments. Whatever goes wrong beside what a
    test expects is a `control.errors.ControlError`: the guest has ended, the agent does not answer.

    Attributes:
        label: What the test calls it.
        address: Of it on the LAN of the test, when it is on one.
        history: What was run, the last of it.
    """

    def __init__(self, disposable: Disposable, wish: Wish, label: str, scratch: Path) -> None:
        self.label = label
        self.address: ipaddress.IPv4Address | None = None
        self.history: list[Outcome] = []
        self.is_kept = False
        self._disposable = disposable
        self._wish = wish
        self._scratch = scratch
        self._shots = 0
        self._was_ended = False
        self._starts: dict[Path, int] = {}
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Machine {self.label} ({self.name})>"

    @property
    def name(self) -> str:
        """What commands of `unhinged` know it as."""
        return self._disposable.name

    @property
    def disposable(self) -> Disposable:
        return self._disposable

    @property
    def wish(self) -> Wish:
        return self._wish

    @property
    def was_ended(self) -> bool:
        """Whether the test has ended it, with `crash` or `shutdown`, and not started it again."""
        return self._was_ended

    # -- commands ----------------------------------------------------------------------------------------------------

    def execute(
        self,
        command: Command,
        *,
        timeout: float | None = None,
        stdin: str | bytes = b"",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Outcome:
        """Run a command, and return how it ended, however that was.

        Raises:
            WaitTimeout: It took longer than `timeout` seconds, and was killed.
            ControlError: It could not be run.
        """
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(command)
        within_s = self._wish.timeout if timeout is None else timeout
        given = {"cwd": cwd, "env": dict(env) if env is not None else None, "user": user}
        params = {"argv": argv, "timeout_s": within_s, **{key: each for key, each in given.items() if each is not None}}
        with connect(self._disposable.runtime, self.name) as remote:
            done = collect_exec(remote, params, stdin.encode() if isinstance(stdin, str) else stdin)
        outcome = Outcome(shown, done["exit_code"], done["stdout"], done["stderr"], done["seconds"])
        self.history.append(outcome)
        del self.history[:-HISTORY_MAX]
        if done["timed_out"]:
            raise WaitTimeout(f"the end of {shown}", within_s, last_seen=tuple(outcome.describe().splitlines()[2:]))
        return outcome

    def succeed(self, *commands: Command, timeout: float | None = None, **how: Any) -> str:
        """Run commands that have to succeed, and return what they wrote to stdout. Raises GuestAssertion."""
        __tracebackhide__ = True
        outputs = []
        for command in commands:
            outcome = self.execute(command, timeout=timeout, **how)
            if outcome.exit_code != 0:
                raise GuestAssertion(f"this failed in {self.label}:\n{outcome.describe()}")
            outputs.append(outcome.stdout)
        return "".join(outputs)

    def fail(self, *commands: Command, timeout: float | None = None, **how: Any) -> str:
        """Run commands that have to fail, and return what they wrote to stdout. Raises GuestAssertion."""
        __tracebackhide__ = True
        outputs = []
        for command in commands:
            outcome = self.execute(command, timeout=timeout, **how)
            if outcome.exit_code == 0:
                raise GuestAssertion(f"this succeeded in {self.label}:\n{outcome.describe()}")
            outputs.append(outcome.stdout)
        return "".join(outputs)

    def wait_until_succeeds(self, command: Command, *, timeout: float | None = None) -> str:
        """Run a command again and again until it succeeds; returns its stdout then. Raises GuestAssertion."""
        __tracebackhide__ = True
        return self._repeat(command, timeout, lambda outcome: outcome.exit_code == 0, "succeed").stdout

    def wait_until_fails(self, command: Command, *, timeout: float | None = None) -> str:
        """Run a command again and again until it fails; returns its stdout then. Raises GuestAssertion."""
        __tracebackhide__ = True
        return self._repeat(command, timeout, lambda outcome: outcome.exit_code != 0, "fail").stdout

    def _repeat(
        self, command: Command, timeout: float | None, is_enough: Callable[[Outcome], bool], what: str
    ) -> Outcome:
        __tracebackhide__ = True
        within_s = self._wish.timeout if timeout is None else timeout
        deadline = time.monotonic() + within_s
        while True:
            before = len(self.history)
            outcome = self.execute(command, timeout=max(deadline - time.monotonic(), POLL_S))
            if is_enough(outcome):
                return outcome
            if time.monotonic() > deadline:
                raise GuestAssertion(
                    f"this did not {what} in {self.label} within {within_s:g} s:\n{outcome.describe()}"
                )
            del self.history[before:]  # the last one tells as much
            time.sleep(POLL_S)  # a guest has no event for what a command would say

    # -- what a guest does -------------------------------------------------------------------------------------------

    def wait_for_unit(self, unit: str, *, timeout: float | None = None) -> None:
        """Wait until a systemd unit is active, or a service of the built-in guest runs.

        Raises:
            GuestAssertion: It failed, or was not active in time; shows what is known of it.
        """
        __tracebackhide__ = True
        within_s = self._wish.timeout if timeout is None else timeout
        deadline = time.monotonic() + within_s
        while (state := self._look_at_unit(unit)) != "active":
            if state == "failed" or time.monotonic() > deadline:
                why = "has failed" if state == "failed" else f"is {state}, and was not active within {within_s:g} s"
                raise GuestAssertion(f"{unit} {why} in {self.label}:\n{self._describe_unit(unit)}")
            time.sleep(POLL_S)  # this agent has no event for a unit that has become active

    def _look_at_unit(self, unit: str) -> str:
        script = (
            'if test -d /run/systemd/system; then systemctl show --property=ActiveState --value -- "$0"; '
            'elif ! test -x "/etc/init.d/$0"; then echo unknown; '
            'elif "/etc/init.d/$0" status > /dev/null; then echo active; else echo inactive; fi'
        )
        return self._ask(["sh", "-c", script, unit]).strip()

    def _describe_unit(self, unit: str) -> str:
        script = (
            'if test -d /run/systemd/system; then systemctl status --no-pager --lines=20 -- "$0"; '
            'else "/etc/init.d/$0" status; fi 2>&1'
        )
        return self._ask(["sh", "-c", script, unit]).rstrip()

    def wait_for_open_port(self, port: int, *, timeout: float | None = None) -> None:
        """Wait until something in the guest listens at a TCP port. Raises GuestAssertion."""
        __tracebackhide__ = True
        self._wait(lambda: self._is_open(port), f"nothing listens at port {port}", timeout)

    def wait_for_closed_port(self, port: int, *, timeout: float | None = None) -> None:
        """Wait until nothing in the guest listens at a TCP port. Raises GuestAssertion."""
        __tracebackhide__ = True
        self._wait(lambda: not self._is_open(port), f"something listens at port {port}", timeout)

    def _is_open(self, port: int) -> bool:
        """Source of the table: Linux, Documentation/networking/proc_net_tcp.rst; 0A is TCP_LISTEN."""
        table = self._ask(["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 2> /dev/null"])
        return re.search(rf"^ *\d+: [0-9A-F]+:{port:04X} [0-9A-F]+:0000 0A ", table, re.MULTILINE) is not None

    def wait_for_file(self, path: str, *, timeout: float | None = None) -> None:
        """Wait until there is something at `path` in the guest. Raises GuestAssertion."""
        __tracebackhide__ = True
        self._wait(lambda: self._ask(["sh", "-c", 'test -e "$0" && echo yes', path]) != "", f"no {path}", timeout)

    def wait_for_console_text(self, pattern: str, *, timeout: float | None = None, since: int | None = None) -> None:
        """Wait until the serial console has said something that matches a regular expression.

        Args:
            since: A position that `console_position` gave; by default the beginning of the test.

        Raises:
            GuestAssertion: It did not come; shows the last lines.
        """
        __tracebackhide__ = True
        search, text = StreamSearch(re.compile(pattern, re.MULTILINE)), PlainText()
        within_s = self._wish.timeout if timeout is None else timeout
        deadline = time.monotonic() + within_s
        with self._console.open("rb", buffering=0) as log:
            log.seek(self._starts.get(self._console, 0) if since is None else since)
            watch = open_watch(log.fileno())
            try:
                while not self._read_more(log, search, text):
                    left = deadline - time.monotonic()
                    if left <= 0 or (not self.is_running and not self._read_more(log, search, text)):
                        why = f"within {within_s:g} s" if left <= 0 else "before it ended"
                        shown = "\n".join(self.read_console().splitlines()[-20:])
                        raise GuestAssertion(f"the console of {self.label} did not say {pattern!r} {why}:\n{shown}")
                    if select.select([watch], [], [], min(left, LIFE_LOOK_S))[0]:
                        os.read(watch, READ_BYTES)
            finally:
                os.close(watch)

    @staticmethod
    def _read_more(log: FileIO, search: StreamSearch, text: PlainText) -> bool:
        """Read all that is there now; whether what is searched has come."""
        skip_hole(log.fileno())
        while not search.is_found and (data := log.read(READ_BYTES)):
            search.feed(text.feed(data))
        return search.is_found

    @property
    def console_position(self) -> int:
        """How much the serial console has said so far, in bytes; for `wait_for_console_text`."""
        return self._console.stat().st_size

    def read_console(self) -> str:
        """What the serial console has said since the test began, without escape sequences."""
        return PlainText().feed(self._read_since_start(self._console)).replace("\r\n", "\n")

    def _wait(self, is_so: Callable[[], bool], otherwise: str, timeout: float | None) -> None:
        __tracebackhide__ = True
        within_s = self._wish.timeout if timeout is None else timeout
        deadline = time.monotonic() + within_s
        while not is_so():
            if time.monotonic() > deadline:
                raise GuestAssertion(f"{otherwise} in {self.label}, after {within_s:g} s")
            time.sleep(POLL_S)  # see _repeat

    def _ask(self, argv: Sequence[str]) -> str:
        """Run what the test has not asked for: it is not part of the history."""
        with connect(self._disposable.runtime, self.name) as remote:
            return str(collect_exec(remote, {"argv": list(argv), "timeout_s": self._wish.timeout})["stdout"])

    # -- files and pictures ------------------------------------------------------------------------------------------

    def copy_to(self, source: Path | str, target: str) -> None:
        """Copy a file or a directory of the host into the guest, as `cp -r` does. Raises ControlError."""
        self._call("put", {"sources": [str(Path(source).absolute())], "target": target}, COPY_TIMEOUT_S)

    def copy_from(self, source: str, target: Path | str) -> None:
        """Copy a file or a directory of the guest to the host, as `cp -r` does. Raises ControlError."""
        self._call("get", {"sources": [source], "target": str(Path(target).absolute())}, COPY_TIMEOUT_S)

    def write_file(self, path: str, content: str | bytes) -> None:
        """Make a file in the guest, and the directories it lies in. Raises ControlError."""
        with TemporaryDirectory(prefix="unhinged-file.") as scratch:
            file = Path(scratch) / PurePosixPath(path).name
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            self._put_at(file, path)

    def _put_at(self, source: Path, path: str) -> None:
        self._ask(["mkdir", "-p", str(PurePosixPath(path).parent)])
        self.copy_to(source, path)

    def install_files(self) -> None:
        """Copy what was wished for into the guest. Raises ControlError."""
        for path, source in self._wish.files.items():
            if isinstance(source, bytes):
                self.write_file(path, source)
            else:
                self._put_at(source, path)

    def read_file(self, path: str) -> bytes:
        """What a file in the guest holds. Raises ControlError."""
        with TemporaryDirectory(prefix="unhinged-file.") as scratch:
            self.copy_from(path, Path(scratch) / "file")
            return (Path(scratch) / "file").read_bytes()

    def screenshot(self, path: Path | str | None = None) -> Path:
        """Save the guest's screen as PNG, and return where. Raises ControlError, as without a display."""
        if path is None:
            self._shots += 1
            self._scratch.mkdir(parents=True, exist_ok=True)
            path = self._scratch / f"{self.name}-{self._shots}.png"
        target = Path(path).absolute()
        self._call("screenshot", {"path": str(target)})
        return target

    # -- the machine itself ------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """End it at once, as a power cut does. Raises ControlError."""
        with connect(self._disposable.runtime, self.name) as remote:
            remote.call("kill", timeout_s=KILL_ANSWER_S)
        lifetime.wait_until_free(self._disposable.runtime, self.name)
        self._was_ended = True

    def shutdown(self, *, timeout: float = SHUTDOWN_S) -> None:
        """Have the guest shut down; one that has not after `timeout` seconds is killed. Raises ControlError."""
        lifetime.stop(self._disposable.runtime, self.name, timeout_s=timeout)
        self._was_ended = True

    def start(self, *, timeout: float = REBOOT_S) -> None:
        """Boot it again, from what is on its disks, and wait for its agent. Raises ControlError."""
        self._disposable.start(timeout)
        self._was_ended = False

    def reboot(self, *, timeout: float = REBOOT_S) -> None:
        """Have the guest restart, and wait for its agent. Raises WaitTimeout, ControlError."""
        before = self._read_boot_id()
        self._call("agent", {"method": "reboot"})
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(ControlError):  # it is going down, or not up yet
                if self._read_boot_id() not in ("", before):
                    return
            if time.monotonic() > deadline:
                raise WaitTimeout(f"{self.label} to come up again", timeout, last_seen=self.last_lines())
            time.sleep(POLL_S)  # that of another boot has no event for us

    def _read_boot_id(self) -> str:
        return self._ask(["cat", "/proc/sys/kernel/random/boot_id"]).strip()

    def last_lines(self) -> tuple[str, ...]:
        """What the serial console has said last."""
        return tuple(self.read_console().splitlines()[-12:])

    @property
    def is_running(self) -> bool:
        return look(self._disposable.runtime, self.name).is_running

    def forward_port(self, port: int, protocol: Literal["tcp", "udp"] = "tcp") -> int:
        """Let a port of this host lead to one of the guest, and return which; reached at 127.0.0.1.

        Raises:
            ControlError: It has no network that forwards (`net` is neither `user` nor `restricted`).
        """
        if protocol not in FORWARDED_PROTOCOLS:
            raise ConfigError(f"{protocol!r} is not forwarded", key="protocol", hint="tcp or udp")
        told = self._call("forward", {"action": "add", "forward": f"auto:{port}/{protocol}"})["forward"]
        return int(told.split(":")[1])

    @contextlib.contextmanager
    def session(self, console: str = "shell", *, timeout: float = 30.0) -> Iterator[Session]:
        """A console that is typed at, for the body: a `control.session.Session`, with `expect`, `sendline` and `run`.

        Args:
            console: `shell`, which the agent opens, or `ttyS0`, `hvc0`.
        """
        from control.session.session import attach_at

        with attach_at(self._disposable.runtime, self.name, console=console, timeout=timeout) as session:
            yield session

    def ask_agent(self, method: str, **params: Any) -> Any:
        """Call a method of the guest's agent; docs/agent.md lists them. Raises ControlError."""
        return self._call("agent", {"method": method, "params": params}, self._wish.timeout + 30.0)["return"]

    def ask_qemu(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command. Raises ControlError."""
        return self._call("qmp", {"command": command, "arguments": arguments})["return"]

    def _call(self, method: str, params: Mapping[str, Any], timeout_s: float = 60.0) -> Any:
        with connect(self._disposable.runtime, self.name) as remote:
            return remote.call(method, params, timeout_s=timeout_s)

    # -- for reports -------------------------------------------------------------------------------------------------

    @property
    def _console(self) -> Path:
        return self._disposable.files.serial_log

    @property
    def seconds_since_start(self) -> float:
        """How long the test has been using it."""
        return time.monotonic() - self._began

    def begin_test(self) -> None:
        """Let what is reported begin here."""
        self._began = time.monotonic()
        self.history.clear()
        files = self._disposable.files
        for path in (files.serial_log, files.messages):
            self._starts[path] = path.stat().st_size if path.exists() else 0

    def read_messages(self) -> list[bytes]:
        """The lines of `messages.jsonl` since the test began."""
        return self._read_since_start(self._disposable.files.messages).splitlines()

    def _read_since_start(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                file.seek(self._starts.get(path, 0))
                return file.read()
        except FileNotFoundError:
            return b""
