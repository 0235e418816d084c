"""Starts a machine of a configuration, and brings it down (floor 3): what commands and scripts do. Blocking."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.paths import open_instance_files
from control.spec.fleet import Fleet, get_vm
from control.vm.hire import hire
from control.vm.reach import begin, claim, connect, hold, look, refuse_foreign, settle
from control.vm.remote import Remote, find_remote

if TYPE_CHECKING:
    from control.process.detach import Detached
    from control.spec.locate import Location
    from control.vm.declared import Planned

STOP_TIMEOUT_S = 20.0
STOP_ANSWER_S = 90.0
"""What a stop may take beyond its own timeout: a VM that must be killed, on a loaded host."""

SNAPSHOT_ANSWER_S = 4000.0
"""Somewhat longer than QEMU is given for it (`control.vm.snapshots`)."""

GOING_S = 10.0
"""How long a supervisor whose VM has ended may take to leave."""

GOING_LOOK_S = 0.01
"""A lock tells nobody that it is free, but who waits for it without a deadline."""


def plan(fleet: Fleet, name: str, *, make: bool = True) -> Planned:
    """Say what the machine `name` comes to on this host; with `make` its disks are made (call with its lock held).

    Raises:
        ConfigError, ImageError, HostError: As `plan_vm`.
    """
    import asyncio

    from control.vm.declared import plan_vm  # a command that ends one has nothing to plan

    seen = look(fleet.location.runtime, name)
    known = seen.record.ports if seen.record is not None else {}
    return asyncio.run(plan_vm(fleet, get_vm(fleet, name), seen.files, known_ports=known, make=make))


def start(
    fleet: Fleet,
    name: str,
    *,
    is_paused: bool = False,
    hired: Detached | None = None,
    say: Callable[[str], None] = lambda note: None,
) -> bool:
    """Start the machine `name` unless it runs; whether it was started.

    Args:
        is_paused: A VM's guest is not let run before somebody resumes it.
        hired: A supervisor that loads already.
        say: Is told what the user should know of this host.

    Raises:
        ConfigError, ImageError, HostError: It cannot be started as it is declared.
        StateError: Somebody holds it and does not answer, or qqmgr has started it.
        RemoteError: What its supervisor says of why it could not be.
    """
    location = fleet.location
    refuse_foreign(look(location.runtime, name, location.earlier_runtimes))
    files = open_instance_files(location.runtime, name, is_shared=location.is_shared)
    with claim(location.runtime, name, files) as lock:
        if lock is None:
            return False
        with contextlib.nullcontext(hired) if hired is not None else hire(name, files.directory) as supervisor:
            begin(supervisor, files, lock, _build_job(fleet, name, say, is_paused=is_paused))
    return True


def _build_job(fleet: Fleet, name: str, say: Callable[[str], None], *, is_paused: bool) -> dict[str, Any]:
    from control.spec.plain import to_plain

    if (again := _plan_clone(fleet, name)) is not None:
        return {**again, "waits": is_paused}
    planned = plan(fleet, name)
    for note in planned.notes:
        say(note)
    vm = get_vm(fleet, name)
    if is_paused and vm.held is not None:
        raise ConfigError(f"{name} is no VM: it cannot be started paused", key="--paused", hint="leave that out")
    return {
        "name": name,
        "adopt": False,
        "spec": to_plain(planned.spec),
        "ports": dict(planned.ports),
        "restart": vm.restart,
        "waits": is_paused,
    }


def _plan_clone(fleet: Fleet, name: str) -> dict[str, Any] | None:
    """The job of a clone that has ended: it boots from the disks that it has. None for what is no clone."""
    seen = look(fleet.location.runtime, name)
    if seen.record is None or not seen.files.clone_note.exists():
        return None
    spec = {**seen.record.spec, "frozen": None}
    return {"name": name, "adopt": False, "spec": spec, "ports": seen.record.ports, "restart": "no"}


def wait_for(
    runtime: Path,
    name: str,
    what: str,
    timeout_s: float,
    on_phase: Callable[[str], None] | None = None,
    **more: object,
) -> None:
    """Wait until a running machine is that far; see `wait` in docs/control.md. Raises what it ended in, WaitTimeout."""
    params = {"for": what, "timeout_s": max(timeout_s, 0.001), **more}
    with connect(runtime, name) as remote:
        remote.call("wait", params, timeout_s=timeout_s + 30.0, on_phase=on_phase)


def stop(runtime: Path, name: str, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Shut the machine down, and kill what has not gone after `timeout_s`; whether it ran. Its supervisor is gone then.

    Raises:
        StateError: Somebody holds it and does not answer.
        WaitTimeout: Its supervisor does not leave.
    """
    with reach_anyhow(runtime, name) as remote:
        if remote is None:
            return False
        remote.call("stop", {"timeout_s": timeout_s}, timeout_s=timeout_s + STOP_ANSWER_S)
    wait_until_free(runtime, name)
    return True


@contextlib.contextmanager
def reach_anyhow(runtime: Path, name: str) -> Iterator[Remote | None]:
    """Connect to the supervisor of a VM, also of one that is between two runs; None when nothing runs."""
    seen = look(runtime, name)
    remote = find_remote(seen.files.control_socket)
    if remote is None and seen.is_running:
        try:
            remote = connect(runtime, name)
        except StateError:
            if look(runtime, name).is_running:
                raise
    if remote is None and seen.files.directory.is_dir():
        with hold(seen.files) as lock:
            if lock is not None:
                settle(look(runtime, name))
    with remote or contextlib.nullcontext():
        yield remote


def wait_until_free(runtime: Path, name: str) -> None:
    """Wait until the supervisor has left, so that the next command finds nothing of it. Raises WaitTimeout."""
    files = look(runtime, name).files
    deadline = time.monotonic() + GOING_S
    while time.monotonic() < deadline:
        with hold(files) as lock:
            if lock is not None:
                settle(look(runtime, name))
                return
        seen = look(runtime, name)
        if seen.is_running and seen.state in ("STARTING", "RUNNING", "PAUSED"):
            return  # somebody has started it again
        time.sleep(GOING_LOOK_S)
    raise WaitTimeout(f"the supervisor of {name} to leave", GOING_S)


def work_with_snapshot(
    location: Location, fleet: Fleet | None, name: str, action: str, tag: str, *, live: bool = False
) -> dict[str, Any]:
    """Save, restore or delete a snapshot of the machine `name`; one that does not run is started to be restored.

    Args:
        fleet: What a machine that does not run is started from.
        action: `save`, `restore` or `delete`.
        tag: Which one; for an empty one the time is taken, or the newest.
        live: A save lets the guest run on meanwhile.

    Returns:
        What `snapshot` in docs/control.md answers.

    Raises:
        StateError, ConfigError, HostError, RemoteError: It cannot be done; see `control.vm.snapshots`.
    """
    was_started = False
    if action != "save" and not look(location.runtime, name).is_running:
        import asyncio

        from control.vm.snapshots import delete_snapshot_at_rest, find_snapshot

        files = look(location.runtime, name).files
        find_snapshot(files, tag)
        if action == "restore" and fleet is not None:
            was_started = start(fleet, name, is_paused=True)
        elif action == "delete":
            started = time.monotonic()
            with hold(files) as lock:
                if lock is not None:
                    gone = asyncio.run(delete_snapshot_at_rest(files, tag))
                    return {"snapshot": gone.describe(), "seconds": round(time.monotonic() - started, 3)}
    try:
        with connect(location.runtime, name) as remote:
            params: dict[str, Any] = {
                "action": action,
                **({"tag": tag} if tag else {}),
                **({"live": True} if live else {}),
            }
            done: dict[str, Any] = remote.call("snapshot", params, timeout_s=SNAPSHOT_ANSWER_S)
            return done
    except ControlError:
        if was_started:
            stop(location.runtime, name, timeout_s=0.0)  # its guest has never run
        raise
