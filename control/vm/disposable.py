"""Machines that are made for one command and thrown away after it (floor 3): what `unhinged run` stands on. Blocking.

They and their templates lie in the user's cache, away from every configuration. A template fits one QEMU, one built-in
image and one shape of machine, is made on first use, and is removed when room is needed for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from control.errors import ControlError, StateError
from control.host import find_qemu, look_around
from control.paths import InstanceFiles, cache_directory, open_instance_files
from control.process.run import run
from control.spec.locate import Location
from control.spec.network import Network
from control.spec.plain import to_plain
from control.spec.vm_spec import DirectBoot, VMSpec
from control.units import MIB
from control.vm import clones, cloning, templates
from control.vm.provision import get_builtin_file, read_manifest
from control.vm.reach import begin, hold, look
from control.vm.templates import Template

if TYPE_CHECKING:
    from control.process.detach import Detached

MEMORY_BYTES = 512 * MIB
BUDGET_BYTES = 2048 * MIB
"""What templates nobody uses may take together; those used last stay."""

BOOT_WAIT_S = 120.0
NAME = "run"


@dataclass(frozen=True)
class Shape:
    """What a disposable machine is like. `net` is `none`: it reaches nothing, or `user`: what this host reaches."""

    net: Literal["none", "user"] = "none"
    memory_bytes: int = MEMORY_BYTES
    cpus: int = 1


@contextlib.contextmanager
def open_disposable(
    shape: Shape, *, fresh: bool, say: Callable[[str], None], hired: Detached
) -> Iterator[tuple[Path, str]]:
    """A machine for the body, in which the agent answers; nothing is left of it, however this process ends.

    Args:
        fresh: It boots, and is no clone.
        say: Is told what takes a while.
        hired: A supervisor that loads already.

    Yields:
        The directory of its instance's runtime, and its name.

    Raises:
        ImageError, HostError, RemoteError: It cannot be made.
    """
    location = _find_location()
    _sweep(location)
    spec = build_spec(shape)
    template = None if fresh else _find_template(location, spec, say)
    name = f"{NAME}-{os.getpid()}-{secrets.token_hex(3)}"
    files = open_instance_files(location.runtime, name)
    files.clone_note.touch(mode=0o600)
    try:
        if template is None:
            _boot(files, name, spec, hired)
        else:
            cloning.make_clone(location, template, name, hired=hired, with_us=True)
        yield location.runtime, name
    finally:
        with contextlib.suppress(ControlError):  # the next one sweeps what cannot be removed now
            cloning.discard(location, name)


def build_spec(shape: Shape) -> VMSpec:
    """The built-in guest in that shape. Raises ImageError, HostError."""
    from control.accel.choice import choose_accelerator

    qemu = find_qemu(look_around())
    choice = asyncio.run(choose_accelerator("auto", qemu, run, cache_directory()))
    boot = DirectBoot(get_builtin_file("vmlinux"), get_builtin_file("initrd"), read_manifest()["kernel_command_line"])
    return VMSpec(
        name=NAME,
        boot=boot,
        accelerator=choice.name,
        memory_bytes=shape.memory_bytes,
        cpus=shape.cpus,
        networks=(Network(shape.net),),
        display="none",
        qemu=str(qemu),
    )


def _find_location() -> Location:
    runtime = cache_directory() / "run"
    return Location(runtime / "unhinged.toml", runtime, runtime, Path.home())


def _boot(files: InstanceFiles, name: str, spec: VMSpec, hired: Detached) -> None:
    from control.vm.lifetime import wait_for

    with hold(files) as lock:
        if lock is None:
            raise StateError(f"{name} is held by another program", state=name, required=("free",))
        begin(hired, files, lock, cloning.build_job(name, replace(spec, name=name), {}, with_us=True))
    wait_for(files.directory.parent, name, "agent", BOOT_WAIT_S)


def _sweep(location: Location) -> None:
    """Remove what is left of machines whose makers and supervisors were both killed."""
    for directory in location.runtime.glob(f"vm.{NAME}-*"):
        name = directory.name.removeprefix("vm.")
        if Path(f"/proc/{name.split('-')[1]}").exists():
            continue  # it may be about to begin
        files = look(location.runtime, name).files
        # The lock tells also of a machine that runs in another container, under a number that means nothing here.
        with contextlib.suppress(ControlError), hold(files) as lock:
            if lock is not None and not look(location.runtime, name).is_running:
                clones.discard(files)


# -- templates ---------------------------------------------------------------------------------------------------------


def _find_template(location: Location, spec: VMSpec, say: Callable[[str], None]) -> str:
    """The name of the template of `spec`, which is made if there is none."""
    name = f"builtin-{_digest(spec)}"
    note = templates.find_directory(location.runtime, name) / "template.json"
    if not note.exists():
        from control.vm.warming import make_template  # once in a while

        with templates.hold_name(location.runtime, name):
            if not note.exists():
                say("making a template of the built-in guest; from then on it takes a fraction of a second")
                with templates.open_draft(location.runtime, name) as draft:
                    templates.publish(location.runtime, draft, asyncio.run(make_template(name, draft, spec)))
                _make_room(location, name)
    with contextlib.suppress(FileNotFoundError):  # removed for room at this moment; whoever wants to clone it is told
        os.utime(note)  # when it was used last
    return name


def _digest(spec: VMSpec) -> str:
    """All that a state depends on: the machine, the image, the QEMU."""
    qemu = Path(spec.qemu).stat()
    whole = [to_plain(spec), read_manifest()["input_hash"], qemu.st_mtime_ns, qemu.st_size, qemu.st_ino]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def _make_room(location: Location, keep: str) -> None:
    """Remove templates that have not been used for longest, until the others fit the budget."""
    left = BUDGET_BYTES
    used = sorted(templates.list_templates(location.runtime), key=lambda each: _last_use(location, each), reverse=True)
    for template in used:
        left -= template.bytes
        if left < 0 and template.name != keep:
            with contextlib.suppress(StateError):  # one that is in use stays
                cloning.delete_template(location.runtime, template.name)


def _last_use(location: Location, template: Template) -> float:
    with contextlib.suppress(OSError):
        return (templates.find_directory(location.runtime, template.name) / "template.json").stat().st_mtime
    return 0.0
