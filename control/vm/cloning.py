"""Makes templates and clones, and removes them (floor 3): what commands do. Blocking."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.paths import InstanceFiles, check_instance_name, find_instance_files, open_instance_files
from control.process.handle import read_start_ticks
from control.spec.network import Forward
from control.spec.vm_spec import VMSpec
from control.vm import clones, templates
from control.vm.clones import Parentage
from control.vm.hire import hire
from control.vm.lifetime import wait_until_free
from control.vm.reach import begin, connect, hold, kill_directly, look
from control.vm.remote import find_remote
from control.vm.templates import Template

if TYPE_CHECKING:
    from control.process.detach import Detached
    from control.spec.fleet import Fleet
    from control.spec.locate import Location

FREEZE_ANSWER_S = 8000.0
"""Somewhat longer than the parts of it are given (`control.vm.freeze`, `control.vm.templates`)."""

KILL_ANSWER_S = 5.0
LOOK_S = 0.005
"""That another's child has gone is told by no event that comes without an event loop."""

NAMES_MAX = 10000
ABANDONED_S = 600.0
"""A name that is taken becomes a clone within seconds, on a host that makes many within a minute."""


def make_template(location: Location, vm: str, name: str) -> tuple[Template, Mapping[str, float]]:
    """Freeze the running VM `vm` as the template `name`, in place of an older one of that name.

    Returns:
        The template; `frozen_s`, how long the guest stood still, and `seconds`, how long all of it took.

    Raises:
        StateError: The VM does not run or cannot be cloned, or the older template has clones.
        RemoteError, ControlError: It cannot be made; the VM goes on, and an older template is as it was.
    """
    import asyncio  # a clone does without

    started = time.monotonic()
    check_instance_name(name)
    _refuse_clones_of(location.runtime, name)
    with templates.open_draft(location.runtime, name) as draft:
        with connect(location.runtime, vm) as remote:
            frozen = remote.call("freeze", {"directory": str(draft)}, timeout_s=FREEZE_ANSWER_S)
        template = asyncio.run(templates.settle(name, vm, draft, frozen))
        templates.publish(location.runtime, draft, template)
    return template, {"frozen_s": frozen["seconds"], "seconds": round(time.monotonic() - started, 3)}


def _refuse_clones_of(runtime: Path, name: str) -> None:
    """Before anything is done: what the end would refuse."""
    if there := clones.list_clones(runtime, name):
        raise StateError(
            f"the template {name} has clones, which need it as it is: {', '.join(there[:10])}",
            state="in use",
            required=("no clones",),
            hint=f"give the new one another name (--as), or: unhinged discard {' '.join(there[:10])}",
        )


def refresh_template(location: Location, name: str, say: Callable[[str], None]) -> None:
    """Make a template again whose files have changed, when its VM runs from the new ones.

    Args:
        say: Is told of it.

    Raises:
        StateError: There is none, or it has changed and cannot be made again by itself; it is as it was.
        RemoteError, ControlError: As `make_template`.
    """
    source = templates.read_template(location.runtime, name)
    changed = source.find_changed()
    if not changed:
        return
    if not _runs_since(location.runtime, source.vm, changed):
        _refuse_changed(source)
    say(f"{', '.join(changed[:3])} has changed since the template {name} was made: it is made again of {source.vm}")
    make_template(location, source.vm, name)


def _runs_since(runtime: Path, vm: str, changed: Iterable[str]) -> bool:
    """Whether a VM runs that was started after all of these were changed."""
    seen = look(runtime, vm)
    if not seen.is_running or templates.COMMAND_LINE in changed:
        return False  # of a command line nothing tells since when it is another
    try:
        # Its command line is written right before QEMU is started with it.
        return seen.files.argv.stat().st_mtime_ns > max(Path(path).stat().st_mtime_ns for path in changed)
    except FileNotFoundError:
        return False


def _refuse_changed(source: Template) -> None:
    """Raise StateError when the files that a template stands on are others now: its clones would read nonsense."""
    if changed := source.find_changed():
        raise StateError(
            f"what the template {source.name} was made of has changed: {', '.join(changed[:3])}",
            state="changed",
            required=("as it was",),
            hint=f"make it again: unhinged restart {source.vm} && unhinged template {source.vm} --as {source.name}",
        )


def delete_template(runtime: Path, name: str) -> None:
    """Raises StateError when there is none, or it has clones."""
    with templates.hold_templates(runtime, alone=True):
        if not templates.find_directory(runtime, name).exists():
            templates.read_template(runtime, name)
        templates.delete(runtime, name)


def reserve_names(fleet: Fleet, prefix: str, count: int, *, exact: bool) -> list[str]:
    """Take names for clones that nothing else has; each has its directory from now on.

    Args:
        exact: One clone that has this very name; otherwise they are numbered.

    Raises:
        ConfigError: It can be no name.
        StateError: It is taken.
        HostError: A directory cannot be made.
    """
    names: list[str] = []
    for number in range(1, NAMES_MAX):
        name = prefix if exact else f"{prefix}-{number}"
        check_instance_name(name)
        if name not in fleet.vms and _reserve(fleet.location, name):
            names.append(name)
        elif exact:
            raise StateError(
                f"there is a machine {name} already", state=name, required=("another name",), hint="choose another name"
            )
        if len(names) == count:
            break
    return names


def _reserve(location: Location, name: str) -> bool:
    files = find_instance_files(location.runtime, name)
    if files.directory.exists() and not _is_abandoned(files):
        return False
    open_instance_files(location.runtime, name, is_shared=location.is_shared)
    try:
        files.clone_note.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False  # somebody was quicker
    return True


def _is_abandoned(files: InstanceFiles) -> bool:
    """Whether the name was taken for a clone by a process that was killed before it made any; it is free then."""
    try:
        taken = files.clone_note.stat()
    except FileNotFoundError:
        return False
    if taken.st_size or time.time() - taken.st_mtime < ABANDONED_S:
        return False
    clones.discard(files)
    return True


def name_passing(prefix: str) -> str:
    """A name that nothing else has, for a machine that ends with this process."""
    return f"{prefix}-{os.getpid()}-{secrets.token_hex(3)}"


def sweep(runtime: Path, prefix: str) -> None:
    """Remove what is left of machines whose makers, who named them so, and supervisors were both killed."""
    for directory in runtime.glob(f"vm.{prefix}-*-*"):
        name = directory.name.removeprefix("vm.")
        if Path(f"/proc/{name.rsplit('-', 2)[1]}").exists():
            continue  # it may be about to begin
        files = look(runtime, name).files
        if files.kept_note.exists() or not files.clone_note.exists():
            continue
        # The lock tells also of a machine that runs in another container, under a number that means nothing here.
        with contextlib.suppress(ControlError), hold(files) as lock:
            if lock is not None and not look(runtime, name).is_running:
                clones.discard(files)


def make_clone(
    location: Location,
    template: str,
    name: str,
    *,
    hired: Detached | None = None,
    with_us: bool = False,
    own: Mapping[str, Any] | None = None,
) -> None:
    """Make the running clone `name`, a reserved name, of a template; it is a machine of its own when this returns.

    Args:
        hired: A supervisor that loads already.
        with_us: It ends with this process, in whatever way that ends, and nothing of it is left.
        own: What it has in the place of its template's: parts of a `VMSpec` on which no state depends.

    Raises:
        StateError: There is no such template.
        RemoteError, ControlError: It could not be made; nothing of it is left.
    """
    files = find_instance_files(location.runtime, name)
    try:
        hiring = hire(name, files.directory) if hired is None else contextlib.nullcontext(hired)
        with hiring as supervisor, templates.hold_templates(location.runtime, alone=False):
            source = templates.read_template(location.runtime, template)
            _refuse_changed(source)
            templates.mark_used(location.runtime, template)
            clones.write_parentage(files, Parentage(template, source.vm, source.qemu))
            frozen = templates.find_frozen(location.runtime, template)
            spec = clones.build_clone(source.spec, name, files, frozen)
            spec, ports = _take_ports(replace(spec, **(own or {})))
            with hold(files) as lock:
                if lock is None:
                    raise StateError(f"{name} is held by another program", state=name, required=("free",))
                begin(supervisor, files, lock, build_job(name, spec, ports, with_us=with_us))
    except BaseException:
        with contextlib.suppress(ControlError):  # what is told is why there is no clone
            discard(location, name)
        raise


def build_job(name: str, spec: VMSpec, ports: Mapping[str, int], *, with_us: bool) -> dict[str, Any]:
    """What a supervisor is told of a clone, or of another VM that is thrown away; `with_us` as `make_clone` has it."""
    from control.spec.plain import to_plain

    owner = {"pid": os.getpid(), "start_ticks": read_start_ticks(os.getpid())} if with_us else None
    return {
        "owner": owner,
        "name": name,
        "adopt": False,
        "spec": to_plain(spec),
        "ports": dict(ports),
        "restart": "no",
        "waits": False,
    }


def _take_ports(spec: VMSpec) -> tuple[VMSpec, dict[str, int]]:
    """Give a clone ports of the host that are its own, in the place of its template's."""
    from control.vm.ports import pick_port

    forwards: list[Forward] = []
    ports: dict[str, int] = {}
    for forward in spec.forwards:
        ports[forward.key] = pick_port(forward)
        forwards.append(replace(forward, host=ports[forward.key]))
    return replace(spec, forwards=tuple(forwards)), ports


def discard(location: Location, name: str) -> bool:
    """End a clone at once and remove all that there is of it; whether it ran.

    Raises:
        ConfigError: It is no clone.
        StateError: Somebody holds it and does not answer.
        HostError: Something of it cannot be removed.
    """
    files = look(location.runtime, name).files
    if not files.clone_note.exists():
        raise ConfigError(
            f"{name} is no clone: what it has on its disks is not thrown away",
            key=name,
            hint=f"end it: unhinged stop {name}",
        )
    did_run = look(location.runtime, name).is_running
    _end(location.runtime, name, files)
    wait_until_free(location.runtime, name)
    with hold(files) as lock:
        if lock is None:
            raise StateError(f"{name} is held by a program that does not answer", state="held", required=("free",))
        clones.discard(files)
    return did_run


def _end(runtime: Path, name: str, files: InstanceFiles) -> None:
    """Kill it by its supervisor, which then does not start it again; without one by ourselves."""
    remote = find_remote(files.control_socket)
    if remote is not None:
        with remote, contextlib.suppress(StateError, WaitTimeout):
            remote.call("kill", timeout_s=KILL_ANSWER_S)
            return
    if not kill_directly(runtime, name):
        return
    deadline = time.monotonic() + KILL_ANSWER_S
    while look(runtime, name).is_running:
        if time.monotonic() > deadline:
            raise WaitTimeout(f"the end of {name}", KILL_ANSWER_S)
        time.sleep(LOOK_S)
