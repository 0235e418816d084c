"""A VM's state as a file (floor 3): written while it stands still, and taken by another VM of the same kind.

Source: QEMU manual, "Migration"; QMP reference, `migrate`, `migrate-incoming`; `x-ignore-shared`: memory that is a file
others see as well is left out of a state (migration/ram.c).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
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


@contextlib.asynccontextmanager
async def standing_still(vm: VM) -> AsyncIterator[None]:
    """Stop the guest for the body, and let one that ran go on after it."""
    was_running = await vm.query_runstate() == "running"
    try:
        if was_running:
            await vm.monitor.execute("stop")  # whoever wants it may go while QEMU is still at it, or has just done it
        yield
    finally:
        if was_running:
            await vm.monitor.execute("cont")


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
        await set_capabilities(vm, ignore_shared=not with_memory)
        await hand_state(vm, descriptor)
        await wait_for_end(vm, "written")
        await _wait_until_let_go(vm)
    except BaseException:
        await _give_up(vm)
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


async def hand_state(vm: VM, descriptor: int) -> None:
    """Have QEMU begin to write its state to an open file, from where that stands. Raises MonitorError."""
    await vm.monitor.execute("migrate-set-parameters", {"max-bandwidth": _NO_LIMIT})
    await vm.monitor.give("state", descriptor)
    await vm.monitor.execute("migrate", {"uri": "fd:state"}, timeout_s=STATE_TIMEOUT_S)


async def _give_up(vm: VM) -> None:
    """End what may be under way: it would stop a guest that has been let run again meanwhile."""
    with contextlib.suppress(ControlError):  # what is told is why it is given up
        await vm.monitor.execute("migrate_cancel")
        for _ in range(GIVE_UP_LOOKS):
            if (await vm.monitor.execute("query-migrate")).get("status") not in _UNDER_WAY:
                await _wait_until_let_go(vm)
                return
            await asyncio.sleep(_LOOK_S)


async def end_writing(vm: VM) -> None:
    """Give up a state that is being written for somebody who does not see it through any more. Raises MonitorError.

    One whose guest runs meanwhile (`control.vm.live`) goes on to its end.
    """
    if not await is_writing(vm):
        return
    told = await vm.monitor.execute("query-migrate-capabilities")
    if not any(each["state"] for each in told if each["capability"] == "background-snapshot"):
        await _give_up(vm)


async def is_writing(vm: VM) -> bool:
    """Whether a state is being written. Raises MonitorError."""
    return (await vm.monitor.execute("query-migrate")).get("status") in _UNDER_WAY


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
        await set_capabilities(vm, ignore_shared=not with_memory)
        await vm.monitor.give("state", descriptor)
        await vm.monitor.execute("migrate-incoming", {"uri": "fd:state"}, timeout_s=STATE_TIMEOUT_S)
        await wait_for_end(vm, "taken")
    finally:
        os.close(descriptor)


async def set_capabilities(vm: VM, *, ignore_shared: bool, background_snapshot: bool = False) -> None:
    """Say how a state is written or taken: both each time, for what was said last holds on. Raises MonitorError.

    Args:
        ignore_shared: Leave out memory that is a file.
        background_snapshot: As the guest is when it begins, and while that goes on.
    """
    said = {"x-ignore-shared": ignore_shared, "background-snapshot": background_snapshot}
    capabilities = [{"capability": name, "state": state} for name, state in said.items()]
    await vm.monitor.execute("migrate-set-capabilities", {"capabilities": capabilities})


async def wait_for_end(vm: VM, done: str) -> None:
    """Wait until QEMU is through with a state. It tells by no event that is on at once, so it is asked.

    Raises:
        MonitorError: The state could not be `done`, in QEMU's words.
        WaitTimeout: It takes too long.
    """
    try:
        async with asyncio.timeout(STATE_TIMEOUT_S):
            while True:
                if await has_ended(vm, done):
                    return
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise WaitTimeout(f"the state of {vm.name} to be {done}", STATE_TIMEOUT_S) from None


async def has_ended(vm: VM, done: str) -> bool:
    """Whether QEMU is through with a state. Raises MonitorError, as `wait_for_end`."""
    told = await vm.monitor.execute("query-migrate")
    if told.get("status") in ("failed", "cancelled"):
        words = told.get("error-desc") or "; ".join(vm.read_last_words()) or "QEMU does not say why"
        raise MonitorError(f"the state of {vm.name} could not be {done}: {words}")
    return bool(told.get("status") == "completed")
