"""A VM's state as a file (floor 3): written while it stands still, and taken by another VM of the same kind.

Source: QEMU manual, "Migration"; QMP reference, `migrate`, `migrate-incoming`; `x-ignore-shared`: memory that is a file
others see as well is left out of a state (migration/ram.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import ControlError, HostError, MonitorError, WaitTimeout

if TYPE_CHECKING:
    from control.vm.vm import VM

STATE_TIMEOUT_S = 3600.0
"""Gigabytes of memory on a slow disk; it is no wait for an event."""

_NO_LIMIT = 1 << 50
"""Bytes a second; without it QEMU takes the file for a network, and spares it (128 MiB/s)."""

_LOOK_S = 0.002
GIVE_UP_LOOKS = 5000
_UNDER_WAY = ("setup", "active", "cancelling", "device")
"""Of QMP's MigrationStatus, those that come to an end by themselves."""


async def write_state(vm: VM, path: Path, *, with_memory: bool) -> None:
    """Write the state of a VM that stands still to the new file `path`; its disks are then as they are on this host.

    Raises:
        MonitorError: QEMU could not, or would not (its own words); there is no file, and the VM can go on.
        HostError: The file cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be made: {error.strerror}", hint="make room on that disk") from error
    try:
        await _leave_out_memory(vm, not with_memory)
        await vm.monitor.execute("migrate-set-parameters", {"max-bandwidth": _NO_LIMIT})
        await vm.monitor.give("state", descriptor)
        await vm.monitor.execute("migrate", {"uri": "fd:state"}, timeout_s=STATE_TIMEOUT_S)
        await _wait_for_end(vm, "written")
        await _wait_until_let_go(vm)
    except BaseException:
        await _give_up(vm)
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


async def _give_up(vm: VM) -> None:
    """End what may be under way: it would stop a guest that has been let run again meanwhile."""
    with contextlib.suppress(ControlError):  # what is told is why it is given up
        await vm.monitor.execute("migrate_cancel")
        for _ in range(GIVE_UP_LOOKS):
            if (await vm.monitor.execute("query-migrate")).get("status") not in _UNDER_WAY:
                await _wait_until_let_go(vm)
                return
            await asyncio.sleep(_LOOK_S)


async def _wait_until_let_go(vm: VM) -> None:
    """QEMU says that a state is written, or is not, a moment before it lets the guest be run again."""
    for _ in range(GIVE_UP_LOOKS):
        if await vm.query_runstate() != "finish-migrate":
            return
        await asyncio.sleep(_LOOK_S)


async def take_state(vm: VM, path: Path, *, with_memory: bool) -> None:
    """Bring a VM that was started with `-incoming defer`, and whose CPUs have not run, into the state at `path`.

    Raises:
        MonitorError: It does not fit, or is damaged (QEMU's words); the VM is of no use any more.
        HostError: The file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path} cannot be read: {error.strerror}", hint="make the template again") from error
    try:
        await _leave_out_memory(vm, not with_memory)
        await vm.monitor.give("state", descriptor)
        await vm.monitor.execute("migrate-incoming", {"uri": "fd:state"}, timeout_s=STATE_TIMEOUT_S)
        await _wait_for_end(vm, "taken")
    finally:
        os.close(descriptor)


async def _leave_out_memory(vm: VM, is_left_out: bool) -> None:
    capability = {"capability": "x-ignore-shared", "state": is_left_out}
    await vm.monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})


async def _wait_for_end(vm: VM, done: str) -> None:
    """Wait until QEMU is through with a state. It tells by no event that is on at once, so it is asked."""
    try:
        async with asyncio.timeout(STATE_TIMEOUT_S):
            while (told := await vm.monitor.execute("query-migrate")).get("status") != "completed":
                if told.get("status") in ("failed", "cancelled"):
                    words = told.get("error-desc") or "; ".join(vm.read_last_words()) or "QEMU does not say why"
                    raise MonitorError(f"the state of {vm.name} could not be {done}: {words}")
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise WaitTimeout(f"the state of {vm.name} to be {done}", STATE_TIMEOUT_S) from None
