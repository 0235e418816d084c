"""Clones (floor 3): VMs that go on from a template, each a machine of its own before anybody works with it."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import HostError, StateError
from control.paths import InstanceFiles, find_instance_files
from control.spec.vm_spec import Disk, Frozen, VMSpec
from control.vm.instance import make_directory, write_atomically

if TYPE_CHECKING:
    from control.spec.declaration import VMDeclaration
    from control.spec.fleet import Fleet
    from control.spec.locate import Location
    from control.vm.vm import VM

AGENT_WAIT_S = 60.0
"""A clone's agent answers within 0.1 s; this is for a host that wakes many at once."""

SEED_BYTES = 64

_making_blanks = threading.Lock()
"""A command makes several clones at once; another command may too, and has a name of its own for what it makes."""

_QEMUS_MACS = "52:54:00:12:34:"
"""Of cards that are given none. Source: QEMU sources, net/net.c, qemu_macaddr_default_if_unset."""


# -- which there are ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parentage:
    """Of which `template` an instance is a clone, of which `vm` that was made, and which QEMU froze it."""

    template: str
    vm: str
    qemu: str


def read_parentage(files: InstanceFiles) -> Parentage | None:
    """None for what is no clone, or is not one yet."""
    try:
        return Parentage(**json.loads(files.clone_note.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_parentage(files: InstanceFiles, parentage: Parentage) -> None:
    """Raises HostError."""
    write_atomically(files.clone_note, json.dumps(asdict(parentage)).encode())


def list_clones(runtime: Path, template: str | None = None) -> list[str]:
    """The clones that there are, running or not, by name; of one template, or of all."""
    found = []
    for note in sorted(runtime.glob("vm.*/clone.json")):
        name = note.parent.name.removeprefix("vm.")
        told = read_parentage(find_instance_files(runtime, name))
        if told is not None and template in (None, told.template):
            found.append(name)
    return found


def load_fleet_with_clones(location: Location) -> Fleet:
    """The configuration, with the clones that there are of its VMs beside these. Raises ConfigFileError."""
    from control.spec.fleet import load_fleet  # a supervisor needs no configuration

    fleet = load_fleet(location)
    clones = {}
    for name in list_clones(location.runtime):
        told = read_parentage(find_instance_files(location.runtime, name))
        parent = fleet.vms.get(told.vm) if told is not None else None
        if parent is not None and name not in fleet.vms:
            clones[name] = _declare(parent, name)
    return replace(fleet, vms={**fleet.vms, **clones}) if clones else fleet


def _declare(parent: VMDeclaration, name: str) -> VMDeclaration:
    """What a clone is like: its parent, at ports of its own."""
    ssh = parent.ssh
    if ssh is not None and ssh.port is not None and not ssh.is_elsewhere:
        ssh = replace(ssh, port="auto")
    forwards = tuple(replace(forward, host="auto") for forward in parent.forwards)
    return replace(parent, name=name, abstract=False, depends_on=(), ssh=ssh, forwards=forwards, restart="no")


# -- making one --------------------------------------------------------------------------------------------------------


def build_clone(plain: Mapping[str, Any], name: str, files: InstanceFiles, frozen: Frozen) -> VMSpec:
    """The specification of a VM `name` that goes on from a template, whose disks are made. Raises HostError.

    Args:
        plain: What the template was, as plain data (`control.spec.plain`).
    """
    from control.spec.plain import from_plain

    spec = from_plain(plain)
    assert isinstance(spec, VMSpec)
    disks = []
    for index, disk in enumerate(spec.disks):
        if not disk.read_only:
            over = files.frozen_disks / f"disk{index}.qcow2"
            make_directory(over.parent)
            _lay_over(disk, frozen.memory.with_name(f"disk{index}.blank"), over)
            disk = replace(disk, path=over, format="qcow2")
        disks.append(disk)
    return replace(spec, name=name, disks=tuple(disks), frozen=frozen)


def _lay_over(disk: Disk, blank: Path, over: Path) -> None:
    """Make the disk `over`, over a template's. One that is empty is the same for each clone, so it is made once."""
    with _making_blanks:
        if not blank.exists():
            import asyncio

            from control.vm.provision import make_disk

            draft = blank.with_name(f"{blank.name}.{os.getpid()}")
            asyncio.run(make_disk(draft, None, base=disk.path, base_format=disk.format))
            draft.rename(blank)
    import shutil  # for who makes a clone, and for who removes one; not for who is one

    try:
        over.touch(mode=0o600)
        shutil.copyfile(blank, over)
    except OSError as error:
        raise HostError(f"the disk {over} cannot be made: {error.strerror}", hint="make room on that disk") from error


async def make_overlays(spec: VMSpec, directory: Path) -> tuple[Disk, ...]:
    """Disks in `directory` that take what is written over those of `spec`. Raises HostError."""
    from control.vm.provision import make_disk

    disks = []
    for index, disk in enumerate(spec.disks):
        if not disk.read_only:
            over = directory / f"disk{index}.qcow2"
            await make_disk(over, None, base=disk.path, base_format=disk.format)
            disk = replace(disk, path=over, format="qcow2")
        disks.append(disk)
    return tuple(disks)


async def wake(vm: VM, frozen: Frozen, *, reachable: bool) -> None:
    """Let a clone, whose CPUs have not run, go on from its template, and make it a machine of its own.

    Args:
        reachable: Whether it has network cards.

    Raises:
        StateError: Another QEMU froze the template.
        MonitorError, HostError: It does not take the template's state.
        WaitTimeout, AgentCallError, AgentProtocolError: Its agent does not make it its own; it is to be ended.
    """
    from control.vm.freeze import take_state
    from control.vm.snapshots import query_version

    parentage, version = read_parentage(vm.files), await query_version(vm)
    if parentage is not None and parentage.qemu != version:
        raise StateError(
            f"the template {parentage.template} was frozen by QEMU {parentage.qemu}, and this host has {version} now",
            state=parentage.qemu,
            required=(version,),
            hint=f"make it again: unhinged template {parentage.vm} --as {parentage.template}",
        )
    assert frozen.state is not None
    with vm.timeline.step("the state of its devices is loaded"):
        await take_state(vm, frozen.state, with_memory=False)
    vm.watch.up = True  # it has booted, long ago
    macs = await _pick_macs(vm)
    await vm.resume()
    with vm.timeline.step("the agent wakes"):
        guest = vm.guest  # its guest needs longer to wake than this takes to load
        await vm.agent.wait_until_ready(AGENT_WAIT_S)
    with vm.timeline.step("it becomes a machine of its own"):
        await guest.renew_identity(
            _build_hostname(vm.name),
            machine_id=secrets.token_hex(16),
            seed=base64.b64encode(secrets.token_bytes(SEED_BYTES)).decode(),
            macs=macs,
            reachable=reachable,
        )
    vm.mark("a machine of its own")


def _build_hostname(name: str) -> str:
    """What comes nearest to `name` among the names that a host can have (RFC 1123)."""
    return re.sub(r"[^A-Za-z0-9-]", "-", name).strip("-") or "clone"


async def _pick_macs(vm: VM) -> dict[str, str]:
    """The address of each card that is on a network with others, with a new one.

    A card on a network of its own (`user`) keeps the one that QEMU gave it: the ports of the host lead to the address
    that QEMU's DHCP server keeps for it. Source: QMP reference, `query-rx-filter`; libslirp, bootp.c.
    """
    cards = [card["main-mac"] for card in await vm.monitor.execute("query-rx-filter")]
    return {mac: "52:54:00:" + secrets.token_bytes(3).hex(":") for mac in cards if not mac.startswith(_QEMUS_MACS)}


def discard(files: InstanceFiles) -> None:
    """Remove all that there is of a clone that does not run; its lock is held. Raises HostError."""
    import shutil

    for path in {files.directory, files.sockets}:
        while path.exists():
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                continue  # somebody who ends has removed something of it at the same time
            except OSError as error:
                raise HostError(
                    f"{path} cannot be removed: {error.strerror}", hint="look at the rights there"
                ) from error
