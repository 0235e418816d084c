"""Finds, starts and replaces the supervisors of VMs (floor 3): what commands begin with. Blocking, quick to import."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from control.errors import ControlError, HostError, StateError, WaitTimeout
from control.failure import RemoteError
from control.paths import InstanceFiles, find_instance_files
from control.vm.hire import hire
from control.vm.holder import is_held, read_end
from control.vm.instance import Record, find_running, read_record, write_record
from control.vm.remote import Remote, find_remote
from control.vm.states import State

if TYPE_CHECKING:
    from control.process.detach import Detached

BUSY_WAIT_S = 20.0
"""How long a VM may be held by a command that starts it, or by a supervisor that ends."""

BUSY_LOOK_S = 0.01
"""A lock has no event that could be waited for together with a socket."""

REPORT_WAIT_S = 90.0
"""QEMU itself is given 20 s for each of its sockets on a loaded host (`control.vm.vm`)."""

KILL_WAIT_S = 10.0

LOG_LIMIT_BYTES = 1024 * 1024
"""A supervisor's log begins anew beyond it."""


@dataclass(frozen=True)
class Seen:
    """What there is of an instance, as the disk and the kernel tell it.

    Attributes:
        pid: Of its QEMU; None when none runs.
        state: The recorded one, corrected by what is known to have ended.
        note: What is wrong with it; empty when nothing is.
        foreign: Where the instance of a VM lies that qqmgr has started; see `control.vm.foreign`.
    """

    name: str
    files: InstanceFiles
    record: Record | None
    pid: int | None
    state: str
    note: str = ""
    foreign: Path | None = None

    @property
    def is_running(self) -> bool:
        return self.pid is not None


def look(runtime: Path, name: str, earlier: Iterable[Path] = ()) -> Seen:
    """Look at an instance, and touch nothing; one that is damaged is told, and is no error.

    Args:
        earlier: Where qqmgr may have left it running as well.
    """
    seen = _look_at_ours(runtime, name)
    if seen.is_running:
        return seen
    for place in (runtime, *earlier):
        directory = place / f"vm.{name}"
        if (directory / "pid").exists():
            from control.vm.foreign import NOTE, find_foreign  # few have one

            if (process := find_foreign(directory)) is not None:
                with process:
                    return replace(seen, pid=process.pid, state="RUNNING", note=NOTE, foreign=directory)
    return seen


def _look_at_ours(runtime: Path, name: str) -> Seen:
    files = find_instance_files(runtime, name)
    try:
        record = read_record(files)
    except StateError as error:
        return Seen(name, files, None, None, "UNKNOWN", str(error))
    if record is None:
        return Seen(name, files, None, None, State.DEFINED.value)
    if record.sockets:
        files = replace(files, sockets=Path(record.sockets))
    process = find_running(files, record)
    if process is not None:
        process.close()
        return Seen(name, files, record, process.pid, record.state, record.note)
    if record.state in (State.STOPPED.value, State.FAILED.value):
        return Seen(name, files, record, None, record.state, record.note)
    state, note = _find_end(files, record)
    return Seen(name, files, record, None, state.value, note)


def _find_end(files: InstanceFiles, record: Record) -> tuple[State, str]:
    """Say how a machine ended that nobody saw end."""
    if not is_held(record.spec):
        return State.FAILED, "its QEMU is gone, and nobody saw it end"
    end = read_end(files)
    if end is None:
        return State.FAILED, "its holder is gone, and nobody saw it end"
    return (State.STOPPED, "") if end.is_good else (State.FAILED, f"it {end.how}")


@contextlib.contextmanager
def hold(files: InstanceFiles) -> Iterator[int | None]:
    """Try to take the instance's lock for the body; gives its descriptor, or None when another process holds it.

    Raises:
        HostError: The instance's directory cannot be written.
    """
    try:
        descriptor = os.open(files.lock, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(
            f"the directory {files.directory} cannot be written: {error.strerror}",
            hint="make room or get write permission there",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def connect(runtime: Path, name: str) -> Remote:
    """Connect to the supervisor of a running VM; one whose supervisor is gone gets a new one.

    Raises:
        StateError: The VM does not run, or a program that does not answer holds it.
    """
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        seen = look(runtime, name)
        remote = find_remote(seen.files.control_socket)
        if remote is not None:
            return remote
        if not seen.files.directory.is_dir():
            raise _not_running(seen)
        with hold(seen.files) as lock:
            if lock is not None:
                seen = look(runtime, name)  # nobody changes it now
                if not seen.is_running:
                    settle(seen)
                    raise _not_running(seen)
                refuse_foreign(seen)
                start_supervisor(seen.files, lock, {"name": name, "adopt": True})
                continue
        if time.monotonic() > deadline:
            raise _held(seen)
        time.sleep(BUSY_LOOK_S)


def settle(seen: Seen) -> None:
    """Record that a VM has ended which nobody saw end, and remove what it left; its lock is held."""
    if seen.record is None or seen.is_running or seen.record.state in (State.STOPPED.value, State.FAILED.value):
        return
    for path in (*seen.files.fleeting, seen.files.control_socket):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    if seen.record.group:
        from control.process.limits import from_plain  # few VMs have one

        if (group := from_plain(seen.record.group)) is not None:
            group.remove()
    write_record(seen.files, replace(seen.record, state=seen.state, note=seen.note))


@contextlib.contextmanager
def claim(runtime: Path, name: str, files: InstanceFiles) -> Iterator[int | None]:
    """Take an instance that does not run, to start it; gives None when it runs, under whatever supervisor.

    Raises:
        StateError: Somebody holds it and does not answer.
    """
    deadline = time.monotonic() + BUSY_WAIT_S
    while True:
        with hold(files) as lock:
            if lock is not None:
                seen = look(runtime, name)
                if seen.state == "UNKNOWN":
                    raise StateError(seen.note, state="UNKNOWN", required=("readable",), hint=f"rm {files.state}")
                refuse_foreign(seen)
                if not seen.is_running:
                    settle(seen)
                    yield lock
                else:
                    start_supervisor(seen.files, lock, {"name": name, "adopt": True})
                    yield None
                return
        seen = look(runtime, name)
        if seen.is_running and _answers(seen):
            yield None
            return
        if time.monotonic() > deadline:
            raise _held(seen)
        time.sleep(BUSY_LOOK_S)


def _answers(seen: Seen) -> bool:
    """Whether a supervisor is there whose VM is not about to end."""
    remote = find_remote(seen.files.control_socket)
    if remote is None:
        return False
    with remote:
        try:
            state: str = remote.call("status")["state"]
        except ControlError:
            return False
    return state in (State.STARTING.value, State.RUNNING.value, State.PAUSED.value)


def start_supervisor(files: InstanceFiles, lock: int, job: Mapping[str, Any]) -> None:
    """Start a supervisor and wait until its VM runs; raises as `begin` does."""
    with hire(job["name"], files.directory) as hired:
        begin(hired, files, lock, job)


def begin(hired: Detached, files: InstanceFiles, lock: int, job: Mapping[str, Any]) -> None:
    """Give a supervisor its job and wait until its VM runs; the lock goes over to it.

    Raises:
        RemoteError: The VM could not be started; what the supervisor says of it.
        HostError: The supervisor ended without a word, or its log cannot be written.
        WaitTimeout: It said nothing in time; it was left alone.
    """
    whole = {"directory": str(files.directory), "sockets": str(files.sockets), **job}
    with _open_log(files) as log:
        hired.give(json.dumps(whole).encode() + b"\n", (lock, log.fileno()))
    word = hired.read_line(REPORT_WAIT_S)
    if word is None:
        raise WaitTimeout(f"the supervisor of {job['name']}", REPORT_WAIT_S)
    if not word:
        raise HostError(
            f"the supervisor of {job['name']} ended without a word",
            hint=f"its output is in {files.supervisor_log}",
        )
    report = json.loads(word)
    if "error" in report:
        raise RemoteError(report["error"])


def _open_log(files: InstanceFiles) -> BinaryIO:
    """Open the supervisor's log. Raises HostError."""
    path = files.supervisor_log
    try:
        log = path.open("ab" if not path.exists() or path.stat().st_size < LOG_LIMIT_BYTES else "wb")
        os.fchmod(log.fileno(), 0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror or error}", hint="make room there") from error
    return log


def kill_directly(runtime: Path, name: str) -> bool:
    """Kill QEMU although its supervisor does not answer; whether there was one to kill."""
    seen = look(runtime, name)
    process = find_running(seen.files, seen.record)
    if process is None:
        return False
    with process:
        process.send_signal(signal.SIGKILL)
    return True


def refuse_foreign(seen: Seen) -> None:
    """Raise StateError for a VM that qqmgr has started: it has no supervisor, and can be given none."""
    if seen.foreign is not None:
        raise StateError(
            f"{seen.name} runs, and qqmgr started it (pid {seen.pid})",
            state=seen.state,
            required=("STOPPED",),
            hint=f"end it: unhinged stop {seen.name}; then unhinged start {seen.name}",
        )


def _not_running(seen: Seen) -> StateError:
    why = f": {seen.note}" if seen.note else ""
    return StateError(
        f"{seen.name} does not run{why}",
        state=seen.state,
        required=("RUNNING",),
        hint=f"unhinged start {seen.name}",
    )


def _held(seen: Seen) -> StateError:
    return StateError(
        f"{seen.name} is held by a program that does not answer",
        state=seen.state,
        required=("RUNNING",),
        hint="a launcher in another terminal shows it: detach there (Ctrl-], detach), or stop it there; "
        f"`fuser {seen.files.lock}` names it",
    )
