"""Boots the machine that disposable ones are cloned from (floor 3); imported when there is no template of it yet."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from control.errors import StateError, WaitTimeout
from control.spec.plain import to_plain
from control.spec.vm_spec import Frozen, VMSpec
from control.vm import templates
from control.vm.clones import make_overlays
from control.vm.disposable import BOOT_WAIT_S, NAME
from control.vm.freeze import write_state
from control.vm.service import Notes
from control.vm.snapshots import query_version
from control.vm.templates import Template
from control.vm.vm import VM, open_vm
from control.wire import Message

CALM_LOOK_S, CALM_LOOKS = 0.5, 20
CALM_SHARE = 0.05
"""Of a processor; a guest that waits takes some 0.02 under TCG."""


class _Boot(Notes):
    """Hears when the guest has done all that it does at its start."""

    def __init__(self) -> None:
        super().__init__()
        self.is_finished = asyncio.Event()

    async def on_message(self, message: Message, carrier: str) -> None:
        if message.text == "boot finished":
            self.is_finished.set()


async def make_template(name: str, draft: Path, spec: VMSpec) -> Template:
    """Boot the machine with its memory, and what it writes to its disks, in the draft; then write down the rest of it.

    Raises:
        LaunchError, BootError, MonitorError, HostError, WaitTimeout: It does not come up, or cannot be written down.
    """
    boot = _Boot()
    spec = replace(spec, disks=await make_overlays(spec, draft))
    with templates.open_maker(draft, name) as files:
        booting = replace(spec, name=name, frozen=Frozen(draft / "memory", None, is_shared=True))
        async with open_vm(booting, files, boot) as vm:
            await vm.resume()
            await _wait_until_up(vm, boot)
            # What clones are woken by and used for is in their memory then, and need not be loaded by each.
            await vm.guest.identity()
            await vm.guest.run(["true"])
            await templates.write_back(vm)
            await _wait_until_calm(vm)
            await vm.monitor.execute("stop")
            await write_state(vm, draft / "state", with_memory=False)
            version = await query_version(vm)
            await vm.kill()
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    plain = to_plain(spec)
    ground = await templates.find_ground(plain, draft)
    machine = templates.digest_machine(plain)
    return Template(name, NAME, made_at, version, templates.measure(draft), plain, ground, machine)


async def _wait_until_up(vm: VM, boot: _Boot) -> None:
    """Wait for the agent, and for the end of all that the guest does at its start.

    Raises:
        BootError: It seems to have failed.
        WaitTimeout: It takes too long.
    """
    ready = asyncio.ensure_future(vm.agent.ready.wait())
    try:
        await asyncio.wait((ready, vm.ended), timeout=BOOT_WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        if vm.ended.done():
            raise vm.ended.result().error or StateError("the guest has ended", state="STOPPED", required=("RUNNING",))
        if not ready.done():
            hint = (
                "a machine that commands are run in needs our agent (docs/agent.md), and a kernel with virtio-console"
            )
            raise WaitTimeout("the guest's agent", BOOT_WAIT_S, last_seen=vm.watch.last_lines(8), hint=hint)
    finally:
        ready.cancel()
    if await _has(vm, "/run/systemd/system"):
        await vm.guest.run(["systemctl", "is-system-running", "--wait"], check=False, timeout_s=BOOT_WAIT_S)
    elif await _has(vm, "/usr/lib/unhinged/report"):
        try:
            async with asyncio.timeout(BOOT_WAIT_S):
                await boot.is_finished.wait()
        except TimeoutError:
            raise WaitTimeout("the guest to come up", BOOT_WAIT_S, last_seen=vm.watch.last_lines(8)) from None


async def _has(vm: VM, path: str) -> bool:
    return (await vm.guest.run(["test", "-e", path], check=False)).exit_code == 0


async def _wait_until_calm(vm: VM) -> None:
    """What a guest has still to do when it is frozen, each clone has to do; one that is never calm is frozen so."""
    for _ in range(CALM_LOOKS):
        before = vm.process.cpu_seconds()
        await asyncio.sleep(CALM_LOOK_S)
        if vm.process.cpu_seconds() - before < CALM_SHARE * CALM_LOOK_S:
            return
