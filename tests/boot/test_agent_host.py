"""The host's client and the built-in guest over both real ports: programs, copies, and all that can befall them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from control.errors import AgentProtocolError, WaitTimeout
from control.launch.options import LaunchOptions
from control.launch.prepare import prepare
from control.paths import InstanceFiles, open_instance_files
from control.vm.instance import find_running, read_record
from control.vm.vm import VM, adopt_vm, open_vm
from tests.qemu.ear import Ear

UP_S = 90.0


@asynccontextmanager
async def open_guest(files: InstanceFiles) -> AsyncIterator[VM]:
    options = LaunchOptions(name=files.directory.name.removeprefix("vm."), accel="tcg")
    prepared = await prepare(options, files, with_agent=True)
    async with open_vm(prepared.spec, files, Ear()) as vm:
        await vm.resume()
        await vm.agent.wait_until_ready(UP_S)
        yield vm


@pytest.fixture
def files(runtime: Path, need: Callable[[str], None]) -> InstanceFiles:
    need("image")
    return open_instance_files(runtime, "agent")


async def check(vm: VM) -> None:
    """The guest gives back a nonce, over both ports."""
    nonce = os.urandom(16)
    assert (await vm.guest.run(["cat"], stdin=nonce, timeout_s=60)).stdout == nonce


@pytest.mark.timeout(300)
@pytest.mark.slow
async def test_a_guest_is_worked_with_whatever_happens_to_it(files: InstanceFiles, workdir: Path) -> None:
    async with open_guest(files) as vm:
        await check(vm)
        await copy_there_and_back(vm, workdir)
        await pause(vm)
        await kill_the_agent(vm)
        await reset(vm)
        vm.detach()
    record = read_record(files)
    process = find_running(files, record)
    assert record is not None and process is not None
    async with adopt_vm(record, files, process, Ear()) as vm:
        await vm.agent.wait_until_ready(UP_S)
        await check(vm)
    os.waitpid(record.pid, 0)  # noqa: ASYNC222 - it has ended; it was a child of this very process, which lives on


async def copy_there_and_back(vm: VM, workdir: Path) -> None:
    here = workdir / "here"
    (here / "sub").mkdir(parents=True)
    (here / "big").write_bytes(os.urandom(20_000_000))
    (here / "sub" / "link").symlink_to("../big")
    await vm.guest.put(here, "/tmp")
    await vm.guest.get("/tmp/here", workdir / "back")
    assert (workdir / "back" / "big").read_bytes() == (here / "big").read_bytes()
    assert (workdir / "back" / "sub" / "link").readlink() == Path("../big")


async def pause(vm: VM) -> None:
    """With its ports full, and calls that time out meanwhile."""
    await vm.monitor.execute("stop")
    for size in (3_000_000, 10, 10):
        with pytest.raises(WaitTimeout):
            await vm.agent.call("exec_command", {"argv": ["cat"], "stdin": "x" * size}, timeout_s=0.5)
    await vm.monitor.execute("cont")
    await check(vm)


async def kill_the_agent(vm: VM) -> None:
    pid = vm.agent.info["pid"]
    async with await vm.guest.exec(["sleep", "1000"]) as running:
        with pytest.raises(AgentProtocolError):
            await vm.agent.call("exec_command", {"argv": ["kill", "-9", str(pid)]})
        with pytest.raises(AgentProtocolError):
            await running.wait(10)
    await vm.agent.wait_until_ready(UP_S)
    assert vm.agent.info["pid"] != pid
    await check(vm)


async def reset(vm: VM) -> None:
    boot = vm.agent.info["boot_id"]
    waiting = asyncio.create_task(vm.guest.run(["sleep", "1000"]))
    while not (await vm.agent.call("job_list"))["jobs"]:
        pass
    await vm.monitor.execute("system_reset")
    async with asyncio.timeout(20):
        with pytest.raises(AgentProtocolError):
            await waiting
    await vm.agent.wait_until_ready(UP_S)
    assert vm.agent.info["boot_id"] != boot
    await check(vm)
