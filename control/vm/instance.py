"""An instance on disk (floor 3): its lock, its recorded state, and what an earlier crash left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from control.errors import ControlError, HostError, StateError
from control.log import LOG
from control.paths import InstanceFiles, find_instance_files, open_instance_files
from control.process.handle import ProcessHandle, find_process
from control.units import format_duration
from control.vm.states import State

PID_MAX = 2**22
"""The highest number Linux gives a process (proc(5), /proc/sys/kernel/pid_max)."""

NOTE_LENGTH_MAX = 1000

_TYPES = {"str": str, "int": int, "bool": bool}


@dataclass(frozen=True)
class Record:
    """What `state.json` says of an instance; enough to find and adopt its QEMU.

    Attributes:
        pid, start_ticks: Name the QEMU process for good; 0 when there is none.
        host_boot_id: The host boot `start_ticks` counts from: after a reboot of the host nothing runs any more.
        bulk: Whether the agent has a port for streams; a VM that an earlier version started has none.
        sockets: Where its sockets lie; which short directory a long path gets depends on the environment of the start.
        spec: The specification as plain data (`control.spec.plain`); with it a VM can be started again.
        ports: The ports of the host that were picked, by `Forward.key`; picked again when they are free.
        forwards: What was changed about its forwards in this run: `added` or `removed`, by the text of each.
        restart: Whether its supervisor starts it again when it ends: `no`, `on-failure` or `always`.
        waits: Its guest is not let run before somebody resumes it.
        group: What keeps QEMU within its limits (`control.process.limits.Group`); empty when it has none.
        note: What went wrong when it FAILED.
    """

    name: str
    state: str
    pid: int = 0
    start_ticks: int = 0
    host_boot_id: str = ""
    accelerator: str = ""
    started_at: str = ""
    ended: str = ""
    agent: bool = False
    bulk: bool = False
    hvc0: bool = False
    share: str = ""
    sockets: str = ""
    spec: dict[str, Any] = field(default_factory=dict)
    ports: dict[str, Any] = field(default_factory=dict)
    forwards: dict[str, Any] = field(default_factory=dict)
    restart: str = "no"
    waits: bool = False
    group: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def read_host_boot_id() -> str:
    """Read the identity of this boot of the host (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def write_record(files: InstanceFiles, record: Record) -> None:
    """Put `record` on disk; whoever reads at that moment sees the old one or the new one, never a half.

    Raises:
        HostError: The disk is full or read-only; the old record stands.
    """
    write_atomically(files.state, json.dumps(asdict(record), indent=1).encode() + b"\n")


def note_failure(files: InstanceFiles, error: ControlError) -> None:
    """Keep with an instance that does not run what it failed of: the next `status` tells."""
    LOG.info("%s", error)
    _note(files, lambda record: replace(record, state=State.FAILED.value, note=str(error)[:NOTE_LENGTH_MAX]))


@contextlib.contextmanager
def note_restart(files: InstanceFiles, pause_s: float) -> Iterator[None]:
    """Keep with an instance that does not run, for the body, that it soon will again."""
    told = f"it is started again after {format_duration(pause_s)}"
    LOG.info("%s", told)
    _note(files, lambda record: replace(record, note="; ".join(filter(None, (record.note, told)))))
    try:
        yield
    finally:
        _note(files, lambda record: replace(record, note=record.note.removesuffix(told).removesuffix("; ")))


def _note(files: InstanceFiles, change: Callable[[Record], Record]) -> None:
    with contextlib.suppress(ControlError):  # the disk may be what failed
        record = read_record(files)
        if record is not None and record.state in (State.FAILED.value, State.STOPPED.value):
            write_record(files, change(record))


def make_directory(path: Path) -> None:
    """Make a directory of an instance, unless it is there. Raises HostError."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"{path} cannot be made: {error.strerror}", hint="make room on that disk") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step, readable by its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written: {error.strerror}", hint="make room on that disk") from error


def read_record(files: InstanceFiles) -> Record | None:
    """Read what is recorded; None when nothing is.

    Raises:
        StateError: The file is there and is not a record; it is left for the user to look at.
    """
    try:
        return _check_record(Record(**json.loads(files.state.read_bytes())))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, OSError) as error:
        raise StateError(
            f"the state file {files.state} cannot be read: {error}",
            state="unknown",
            required=("readable",),
            hint="if no QEMU of it runs any more, remove that file",
        ) from error


def _check_record(record: Record) -> Record:
    """Return `record` when each value can be what its name says; ValueError or TypeError otherwise."""
    for known in fields(Record):
        value = getattr(record, known.name)
        if type(value) is not _TYPES.get(str(known.type), dict):
            raise TypeError(f"{known.name} is {value!r:.80}")
    State(record.state)
    if not 0 <= record.pid <= PID_MAX:
        raise ValueError(f"pid is {record.pid}")
    return record


def find_running(files: InstanceFiles, record: Record | None) -> ProcessHandle | None:
    """Find the instance's QEMU process, if it still runs. The handle is the caller's to close."""
    if record is None or not record.pid or record.host_boot_id != read_host_boot_id():
        return None
    return find_process(record.pid, record.start_ticks)


def remove_stale_files(files: InstanceFiles) -> None:
    """Clear what a QEMU that no longer runs left: sockets and pid file. Logs and disks are kept.

    Raises:
        HostError: One of them cannot be removed; the others may be gone.
    """
    for path in files.fleeting:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HostError(f"{path} cannot be removed: {error.strerror}", hint="look at the rights there") from error


def _open_lock(files: InstanceFiles) -> BinaryIO:
    try:
        return files.lock.open("ab")
    except OSError as error:
        raise HostError(
            f"the directory {files.directory} cannot be written: {error.strerror}",
            hint="make room or get write permission there, or run from another directory",
        ) from error


@contextlib.contextmanager
def lock_instance(files: InstanceFiles) -> Iterator[bool]:
    """Try to take the instance for the body; gives False when another process holds it.

    The kernel drops the lock when its holder ends, however it ends.

    Raises:
        HostError: The instance's directory cannot be written.
    """
    with _open_lock(files) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_free(files: InstanceFiles) -> bool:
    """Whether no QEMU of this instance runs (call with its lock held)."""
    running = find_running(files, read_record(files))
    if running is None:
        return True
    running.close()
    return False


@contextlib.contextmanager
def claim_instance(runtime: Path, name: str, *, or_next: bool) -> Iterator[InstanceFiles]:
    """Take the instance `name` for this process; with `or_next`, the first free one of `name`, `name-2`, `name-3`, ….

    Raises:
        StateError: It runs, or another process holds it, and `or_next` is not set. Nothing was changed.
    """
    for number in range(1, 1000):
        candidate = name if number == 1 else f"{name}-{number}"
        files = open_instance_files(runtime, candidate)
        with contextlib.ExitStack() as stack:
            if stack.enter_context(lock_instance(files)) and is_free(files):
                yield files
                return
        if not or_next:
            break
    raise StateError(
        f"the VM {name!r} is already running",
        state="RUNNING",
        required=("STOPPED",),
        hint=f"give this one another name (NAME=…), or look at it: {find_instance_files(runtime, name).directory}",
    )
