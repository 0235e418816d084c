"""A snapshot for which the guest stands still for some tens of milliseconds only (floor 3).

It is stopped, its disks keep what they hold, QEMU takes down its devices, and it goes on. Its memory is written after
that: whatever the guest is about to change first, as the kernel tells QEMU (userfaultfd). What comes of it is the same
as of `snapshot-save`, which has the guest stand still all the while and is over sooner.

(To write memory while it changes, and again what has changed, as for a move to another host, is quicker. But under
software emulation QEMU 7.2 now and then misses a change: programs in the guest crashed after one restore in five.)

Nothing may end the writing before its time: QEMU 7.2 leaves the memory protected then, and the guest waits for ever at
its next change. So there is room for all of it before it begins, and nobody cancels it who does not want it any more.

Source: QMP reference, MigrationCapability `background-snapshot`, `blockdev-snapshot-internal-sync`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import ControlError, HostError, MonitorError, StateError
from control.vm.freeze import hand_state, has_ended, is_writing, set_capabilities, wait_for_end
from control.vm.statefile import STREAM_AT, finish_state_file

if TYPE_CHECKING:
    from control.vm.snapshots import GuestDisk
    from control.vm.vm import VM

BESIDE_BYTES = 256 << 20
"""What devices have of their own, a screen's memory above all."""

_LOOK_S = 0.001


async def prepare_live(vm: VM) -> None:
    """See to it that QEMU can write down memory that is in use.

    Raises:
        StateError: It cannot; nothing has changed.
    """
    lack = ""
    if vm.record.spec.get("limits", {}).get("file_bytes") is not None:
        lack = "its limit on files might end that before its time, and it would never go on"
    else:
        try:
            await set_capabilities(vm, ignore_shared=False, background_snapshot=True)
        except MonitorError as error:
            lack = str(error)
    if lack:
        raise StateError(
            f"{vm.name} cannot run on while it is kept: {lack}",
            state="not live",
            required=("userfaultfd of this host's kernel", "no limit on files"),
            hint="leave --live out: it stands still meanwhile",
        )


async def save_live(vm: VM, tag: str, state: Path, disks: Sequence[GuestDisk], taken_at: datetime) -> float:
    """Write a running VM down in the new file `state`, from which `snapshot-load` takes it, and let it go on.

    Call `prepare_live` before.

    Returns:
        How long the guest stood still, in seconds.

    Raises:
        MonitorError: QEMU could not, or would not (its own words); nothing is left, and the guest goes on.
        HostError: The file cannot be made or written, or there is no room for it.
    """
    try:
        descriptor = os.open(state, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{state} cannot be made: {error.strerror}", hint="make room on that disk") from error
    try:
        # In a thread: a file system that cannot do it writes zeros.
        await asyncio.to_thread(os.posix_fallocate, descriptor, 0, await _estimate(vm))
        os.lseek(descriptor, STREAM_AT, os.SEEK_SET)
        stood_still_s = await _write_stream(vm, descriptor, tag, disks)
        end = os.lseek(descriptor, 0, os.SEEK_CUR)  # QEMU writes on where this descriptor stands: it is the same one
        finish_state_file(descriptor, end, tag, taken_at)
    except BaseException as error:
        with contextlib.suppress(ControlError):  # what is told is why there is no snapshot
            await _take_back(vm, tag, disks)
        if isinstance(error, OSError):
            raise HostError(f"{state} cannot be written: {error.strerror}", hint="make room on that disk") from error
        raise
    finally:
        os.close(descriptor)
    return stood_still_s


async def _estimate(vm: VM) -> int:
    """The most bytes that the file can take, with what is around the stream; each page has a few bytes before it."""
    memory = await vm.monitor.execute("query-memory-size-summary")
    total = int(memory["base-memory"]) + int(memory.get("plugged-memory", 0))
    return STREAM_AT + total + total // 64 + BESIDE_BYTES


async def _write_stream(vm: VM, descriptor: int, tag: str, disks: Sequence[GuestDisk]) -> float:
    began = time.monotonic()
    await vm.monitor.execute("stop")
    if disks:
        kind = "blockdev-snapshot-internal-sync"
        actions = [{"type": kind, "data": {"device": disk.node, "name": tag}} for disk in disks]
        await vm.monitor.execute("transaction", {"actions": actions})
    await hand_state(vm, descriptor)
    # QEMU lets the guest go on by itself, as soon as it has taken down the devices.
    while True:
        if await vm.query_runstate() != "paused" or await has_ended(vm, "written"):
            break
        await asyncio.sleep(_LOOK_S)
    stood_still_s = round(time.monotonic() - began, 3)
    await wait_for_end(vm, "written")
    return stood_still_s


async def _take_back(vm: VM, tag: str, disks: Sequence[GuestDisk]) -> None:
    """Let the guest go on, without what has been kept for a snapshot that there will not be."""
    while True:
        if not await is_writing(vm):
            break
        await asyncio.sleep(_LOOK_S)
    if await vm.query_runstate() == "paused":
        await vm.monitor.execute("cont")
    for disk in disks:
        with contextlib.suppress(MonitorError):  # it may not have come so far
            await vm.monitor.execute("blockdev-snapshot-delete-internal-sync", {"device": disk.node, "name": tag})
