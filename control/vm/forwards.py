"""Forwards of a VM that runs (floor 3): added and removed through QEMU's monitor, and kept in the instance's record.

QEMU has no QMP command for it. The human monitor's `hostfwd_add` and `hostfwd_remove` fail with words, in an answer
that is a success.

Source: QEMU sources, net/slirp.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control.errors import HostError, MonitorError, StateError
from control.spec.network import ANY_ADDRESS, Forward, find_forwards, overlap, parse_forward
from control.vm.ports import check_free, pick_port

if TYPE_CHECKING:
    from control.vm.vm import VM

ADDED, REMOVED = "added", "removed"

_USER_NETWORK = re.compile(r"^Hub -?\d+ \((\S+)\):", re.M)
"""What `info usernet` says of each user-mode network: its netdev's id stands between the brackets."""


def list_forwards(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Forward, ...]:
    """Return the forwards of a VM: those it was started with, and what was changed since.

    Args:
        spec: The specification as plain data, as the record has it.
        changes: What became of a forward, by its text: `added` or `removed`.
    """
    first = [Forward(**forward) for forward in spec.get("forwards", ())]
    first += [_with_address(forward) for forward in find_forwards(spec.get("words", ()))]
    kept = [forward for forward in first if changes.get(str(forward)) != REMOVED]
    return (*kept, *(parse_forward(text) for text, change in changes.items() if change == ADDED))


async def add_forward(vm: VM, wanted: Forward) -> Forward:
    """Lead a port of the host to the guest from now until the VM ends, and return the forward with its port.

    Raises:
        HostError: The port is in use, or cannot be opened. Nothing has changed, as with the others.
        StateError: The VM has it already, or has no user-mode network.
    """
    network = await _find_network(vm)
    forward = replace(wanted, host=pick_port(wanted)) if wanted.host == "auto" else wanted
    taken = next((each for each in _list_of(vm) if overlap(each, forward)), None)
    if taken is not None:
        raise StateError(
            f"{vm.name} has the forward {taken} already",
            state=vm.state.value,
            required=(f"no forward of port {forward.host}",),
            hint=f"unhinged forward {vm.name} remove {taken}",
        )
    check_free(forward)
    rule = f"{forward.protocol}:{forward.address}:{forward.host}-:{forward.guest}"
    words = (await vm.monitor.human(f"hostfwd_add {network} {rule}")).strip()
    if words:
        raise HostError(f"QEMU cannot open {forward}: {words}", hint='choose another port, or "auto"')
    try:
        _keep(vm, forward, ADDED)
    except HostError:
        await _close(vm, network, forward)
        raise
    return forward


async def remove_forward(vm: VM, wanted: Forward) -> Forward:
    """Close a port of the host that led to the guest, and return the forward it was; open connections run on.

    Raises:
        StateError: There is no such forward, or with `auto` several; or no user-mode network.
    """
    network = await _find_network(vm)
    found = [forward for forward in _list_of(vm) if _is_meant(forward, wanted)]
    if len(found) != 1:
        what = "no such forward" if not found else f"{len(found)} such forwards"
        raise StateError(
            f"{vm.name} has {what}: {wanted}",
            state=vm.state.value,
            required=("one forward of that form",),
            hint=f"it has: {', '.join(map(str, _list_of(vm))) or 'none'}",
        )
    await _close(vm, network, found[0])
    _keep(vm, found[0], REMOVED)
    return found[0]


async def _close(vm: VM, network: str, forward: Forward) -> None:
    rule = f"{forward.protocol}:{forward.address}:{forward.host}"
    words = (await vm.monitor.human(f"hostfwd_remove {network} {rule}")).strip()
    if not words.endswith(" removed"):
        raise MonitorError(f"QEMU does not close {forward}: {words}", hint=f"unhinged monitor {vm.name} info usernet")


async def _find_network(vm: VM) -> str:
    """Ask QEMU for the id of the user-mode network: of several cards only that one has forwards."""
    found = _USER_NETWORK.findall(await vm.monitor.human("info usernet"))
    if len(found) == 1:
        return str(found[0])
    raise StateError(
        f"{vm.name} has several user-mode networks: {', '.join(found)}"
        if found
        else f"{vm.name} has no user-mode network, through which ports are forwarded",
        state=vm.state.value,
        required=("one user-mode network",),
        hint=f"unhinged monitor {vm.name} hostfwd_add {found[0]} tcp:127.0.0.1:HOST-:GUEST"
        if found
        else 'declare one, net = "user", and start it again',
    )


def _list_of(vm: VM) -> tuple[Forward, ...]:
    return list_forwards(vm.record.spec, vm.record.forwards)


def _keep(vm: VM, forward: Forward, change: str) -> None:
    """Record what became of `forward`; what is as it was at the start has no entry."""
    changes = dict(vm.record.forwards)
    if changes.pop(str(forward), None) is None:
        changes[str(forward)] = change
    vm.keep_forwards(changes)


def _is_meant(forward: Forward, wanted: Forward) -> bool:
    wanted = _with_address(wanted)
    return forward == (replace(wanted, host=forward.host) if wanted.host == "auto" else wanted)


def _with_address(forward: Forward) -> Forward:
    return replace(forward, address=ANY_ADDRESS[-1]) if forward.address in ANY_ADDRESS else forward
