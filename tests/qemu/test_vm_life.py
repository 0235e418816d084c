"""The life of a VM on the real QEMU, without a guest: start, detach, adopt, stop, and every way to die (floor 3)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from control.errors import EXIT_QEMU_DIED, ControlError, LaunchError, MonitorError, StateError, WaitTimeout
from control.monitor import open_monitor
from control.paths import InstanceFiles, open_instance_files
from control.process.handle import ProcessHandle
from control.spec.vm_spec import Disk, DiskBoot, VMSpec
from control.units import MIB
from control.vm import shutdown
from control.vm.freeze import standing_still
from control.vm.instance import claim_instance, find_running, read_record
from control.vm.screen import save_screenshot
from control.vm.states import State
from control.vm.vm import VM, adopt_vm, open_vm
from tests.qemu.ear import Ear


@pytest.fixture
def files(runtime: Path) -> InstanceFiles:
    return open_instance_files(runtime, "one")


@pytest.fixture
def spec(workdir: Path) -> VMSpec:
    """A VM with a blank disk and no guest: the firmware finds nothing to boot and says so."""
    disk = workdir / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    return VMSpec(name="one", boot=DiskBoot(), accelerator="tcg", memory_bytes=64 * MIB, cpus=1,
                  disks=(Disk(disk, "qcow2"),))  # fmt: skip


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no guest that could answer the power button."""
    monkeypatch.setattr(shutdown, "POWERDOWN_WAIT_S", 0.2)


def running(files: InstanceFiles) -> ProcessHandle:
    found = find_running(files, read_record(files))
    assert found is not None
    return found


async def ending_of(vm: VM) -> Any:
    async with asyncio.timeout(20):
        return await asyncio.shield(vm.ended)


def record_state(files: InstanceFiles) -> str:
    record = read_record(files)
    assert record is not None
    return record.state


async def reaches(vm: VM, state: State) -> None:
    async with asyncio.timeout(10):
        while vm.state is not state:  # noqa: ASYNC110 - the state has no event of its own
            await asyncio.sleep(0.005)


async def test_from_start_to_stop(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear()) as vm:
        assert (vm.state, record_state(files)) == (State.STARTING, "STARTING")
        assert await vm.monitor.query_runstate() == "prelaunch"
        assert json.loads(files.argv.read_text())[0] == spec.qemu
        await vm.resume()
        assert (vm.state, record_state(files)) == (State.RUNNING, "RUNNING")
        with running(files) as process:
            assert process.pid == vm.process.pid
        assert await vm.stop() in ("power button", "quit")
        ending = await ending_of(vm)
        assert ending.error is None
    assert record_state(files) == "STOPPED"
    record = read_record(files)
    assert record is not None
    assert find_running(files, record) is None
    assert record.ended
    assert not any(path.exists() for path in files.fleeting)
    assert files.serial_log.exists()


async def test_every_byte_of_the_console_is_heard_and_kept(spec: VMSpec, files: InstanceFiles) -> None:
    ear = Ear()
    files.serial_log.write_bytes(b"of the run before")
    async with open_vm(spec, files, ear) as vm:
        await vm.resume()
        async with asyncio.timeout(20):
            while b"No bootable device" not in ear.console:  # noqa: ASYNC110 - the firmware writes it when it likes
                await asyncio.sleep(0.01)
        assert (await ending_of(vm)).error.code == "no-bootable-device"
    assert files.serial_log.read_bytes() == ear.console


async def test_a_qemu_that_somebody_else_ends_has_died(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        await vm.resume()
        os.kill(vm.process.pid, signal.SIGTERM)
        error = (await ending_of(vm)).error
        assert isinstance(error, LaunchError)
        assert "signal" in str(error)


async def test_a_vm_whose_directory_is_gone_comes_down_all_the_same(spec: VMSpec, files: InstanceFiles) -> None:
    ear = Ear()
    async with open_vm(spec, files, ear, for_person=True) as vm:
        await vm.resume()
        pid = vm.process.pid
        shutil.rmtree(files.directory)
    assert not Path(f"/proc/{pid}").exists()
    assert any("state.json" in note for note in ear.notes)


async def test_a_vm_that_was_left_running_is_taken_over(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        await vm.resume()
        pid = vm.process.pid
        vm.detach()
    assert record_state(files) == "RUNNING"
    for again in (True, False):
        record = read_record(files)
        assert record is not None
        process = find_running(files, record)
        assert process is not None
        assert process.pid == pid
        async with adopt_vm(record, files, process, Ear()) as vm:
            assert await vm.monitor.query_runstate() == "running"
            if again:
                vm.detach()
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended; it was a child of this very process, which lives on
    assert record_state(files) == "STOPPED"
    assert find_running(files, read_record(files)) is None


async def test_two_cannot_hold_one_vm(spec: VMSpec, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU takes one client for each socket: the second one is told, and the VM runs on."""
    monkeypatch.setattr(open_monitor.__wrapped__, "__kwdefaults__", {"timeout_s": 0.3})  # type: ignore[attr-defined]
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        await vm.resume()
        record = read_record(files)
        assert record is not None
        with pytest.raises((MonitorError, WaitTimeout)):
            async with adopt_vm(record, files, running(files), Ear()):
                pytest.fail("two clients")
        assert await vm.monitor.query_runstate() == "running"


async def test_an_error_in_the_body_ends_the_vm(spec: VMSpec, files: InstanceFiles) -> None:
    with pytest.raises(KeyError):
        async with open_vm(spec, files, Ear()) as vm:
            await vm.resume()
            raise KeyError
    assert record_state(files) == "STOPPED"


async def test_cancelling_ends_the_vm(spec: VMSpec, files: InstanceFiles) -> None:
    started = asyncio.Event()

    async def live() -> None:
        async with open_vm(spec, files, Ear()) as vm:
            await vm.resume()
            started.set()
            await asyncio.Event().wait()

    work = asyncio.create_task(live())
    async with asyncio.timeout(20):
        await started.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert find_running(files, read_record(files)) is None


@pytest.mark.parametrize("resumed", [True, False])
async def test_a_qemu_that_is_killed_is_a_launch_error(spec: VMSpec, files: InstanceFiles, resumed: bool) -> None:
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        if resumed:
            await vm.resume()
        os.kill(vm.process.pid, signal.SIGKILL)
        ending = await ending_of(vm)
        assert isinstance(ending.error, LaunchError)
        assert ending.error.exit_code == EXIT_QEMU_DIED
        assert ending.error.return_code == -signal.SIGKILL
        assert "SIGKILL" in str(ending.error)
        assert ending.error.argv[0] == spec.qemu
        assert ending.error.hint
        with pytest.raises(MonitorError):
            await vm.monitor.execute("query-status")
    assert record_state(files) == "FAILED"
    assert not any(path.exists() for path in files.fleeting)


async def test_a_qemu_that_leaves_by_itself_was_told_to(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        await vm.resume()
        with contextlib.suppress(ControlError):
            await vm.monitor.execute("quit")
        assert (await ending_of(vm)).error is None
    assert record_state(files) == "STOPPED"


async def test_a_locked_disk_is_named(spec: VMSpec, files: InstanceFiles, runtime: Path) -> None:
    other = open_instance_files(runtime, "two")
    async with open_vm(spec, files, Ear()):
        for _ in range(5):  # QEMU dies while we connect: whatever is seen first, its words must come out
            with pytest.raises(LaunchError, match="in use by another VM") as caught:
                async with open_vm(replace(spec, name="two"), other, Ear()):
                    pytest.fail("two VMs on one disk")
            assert caught.value.exit_code == EXIT_QEMU_DIED
            assert any("lock" in line for line in caught.value.evidence)
        assert record_state(other) == "FAILED"
        assert record_state(files) == "STARTING"


@pytest.mark.parametrize("memory", [4 * 1024 * 1024 * MIB])
async def test_memory_the_host_does_not_have_is_named(spec: VMSpec, files: InstanceFiles, memory: int) -> None:
    greedy = replace(spec, memory_bytes=memory, extra_args=("-mem-prealloc",))
    with pytest.raises(LaunchError) as caught:
        async with open_vm(greedy, files, Ear()):
            pytest.fail("that much memory")
    assert "memory" in str(caught.value)


async def test_a_qemu_that_is_none_is_named(spec: VMSpec, files: InstanceFiles) -> None:
    with pytest.raises(ControlError, match="no-such-qemu"):
        async with open_vm(replace(spec, qemu="no-such-qemu"), files, Ear()):
            pytest.fail("no QEMU")
    with pytest.raises(LaunchError) as caught:
        async with open_vm(replace(spec, qemu="false"), files, Ear()):
            pytest.fail("no QEMU")
    assert caught.value.return_code == 1


async def test_two_vms_of_one_name(spec: VMSpec, runtime: Path) -> None:
    with claim_instance(runtime, "one", or_next=False) as files:
        async with open_vm(spec, files, Ear()) as vm:
            await vm.resume()
            vm.detach()
    with pytest.raises(StateError, match="already running"), claim_instance(runtime, "one", or_next=False):
        pytest.fail("two of one name")
    with claim_instance(runtime, "one", or_next=True) as other:
        assert other.directory.name == "vm.one-2"
    with running(files) as process:
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            await process.wait()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)  # noqa: ASYNC222 - the same
    with claim_instance(runtime, "one", or_next=False) as again:
        async with open_vm(replace(spec, name="one"), again, Ear()):
            pass  # what the killed one left is no obstacle


async def test_the_monitor_refuses_in_qemus_own_words(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear()) as vm:
        with pytest.raises(MonitorError, match="no-such-command"):
            await vm.monitor.execute("no-such-command")
        with pytest.raises(MonitorError, match="Device 'nothing' not found"):
            await vm.monitor.execute("device_del", {"id": "nothing"})
        assert "unknown command" in await vm.monitor.human("nonsense")
        assert await vm.monitor.query_runstate() == "prelaunch"


async def test_events_come_until_the_end(spec: VMSpec, files: InstanceFiles) -> None:
    seen: list[str] = []
    async with open_vm(spec, files, Ear(), for_person=True) as vm:

        async def follow() -> None:
            async for event in vm.monitor.events():
                assert event.timestamp_s > 1e9
                seen.append(event.name)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await vm.resume()
        await vm.monitor.execute("stop")
        await reaches(vm, State.PAUSED)
        await vm.monitor.execute("cont")
        await reaches(vm, State.RUNNING)
        await vm.monitor.execute("system_reset")
        await vm.stop(gently=False)
        async with asyncio.timeout(10):
            await following
    assert [name for name in seen if name in ("RESUME", "STOP", "RESET")][:4] == ["RESUME", "STOP", "RESUME", "RESET"]
    assert seen.index("SHUTDOWN") > seen.index("RESET")


async def test_a_reset_before_the_agent_was_up_does_not_lose_it(spec: VMSpec, files: InstanceFiles) -> None:
    ear = Ear()
    async with open_vm(spec, files, ear, for_person=True) as vm:
        await vm.resume()
        await vm.monitor.execute("system_reset")
        async with asyncio.timeout(10):
            while not ear.notes or not vm.agent._pending:  # noqa: ASYNC110 - nobody answers here, so nothing happens
                await asyncio.sleep(0.005)
        assert [pending.method for pending in vm.agent._pending.values()] == ["hello"]


async def test_screenshots(spec: VMSpec, files: InstanceFiles, workdir: Path) -> None:
    async with open_vm(spec, files, Ear()) as vm:
        await save_screenshot(vm.monitor, workdir / "a, 'b' ü.png")
        assert (workdir / "a, 'b' ü.png").read_bytes().startswith(b"\x89PNG")
        await save_screenshot(vm.monitor, workdir / "x.ppm")
        assert (workdir / "x.ppm").read_bytes().startswith(b"P6")
        with pytest.raises(MonitorError):
            await save_screenshot(vm.monitor, workdir / "missing" / "x.png")
    async with open_vm(replace(spec, display="none"), files, Ear()) as vm:
        with pytest.raises(MonitorError):
            await save_screenshot(vm.monitor, workdir / "none.png")


async def test_a_qemu_that_stands_still_is_killed(
    spec: VMSpec, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POWERDOWN_WAIT_S", "QUIT_WAIT_S", "SIGNAL_WAIT_S", "AGENT_WAIT_S"):
        monkeypatch.setattr(shutdown, name, 0.3)
    async with open_vm(spec, files, Ear(), for_person=True) as vm:
        await vm.resume()
        os.kill(vm.process.pid, signal.SIGSTOP)
        async with asyncio.timeout(25):
            assert await vm.stop() == "SIGKILL"
        assert not vm.process.running
    assert record_state(files) == "STOPPED"


async def test_a_vm_that_was_never_started_is_not_asked(spec: VMSpec, files: InstanceFiles) -> None:
    async with open_vm(spec, files, Ear()) as vm:
        assert await vm.stop() == "quit"
        assert await vm.stop() == "gone"


# -- the monitor against peers that are no QEMU ------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def peer_that_says(words: bytes | None) -> AsyncIterator[socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        if words is None:
            theirs.close()
        else:
            theirs.sendall(words)
        yield ours
    ours.close()


@pytest.mark.parametrize("words", [None, b"login: \n", b"{}\n", b"\xff\xfe\n", b'{"QMP": 7}\n'])
async def test_what_is_no_monitor_is_an_error(words: bytes | None) -> None:
    async with peer_that_says(words) as connection:
        with pytest.raises(MonitorError):
            async with open_monitor(connection, timeout_s=5):
                pytest.fail("that was no monitor")


async def test_a_monitor_that_says_nothing_is_given_up() -> None:
    async with peer_that_says(b"") as connection:
        with pytest.raises(WaitTimeout, match="greeting"):
            async with open_monitor(connection, timeout_s=0.2):
                pytest.fail("that was no monitor")


@pytest.mark.parametrize("answered", [False, True])
async def test_it_goes_on_although_who_had_it_stand_still_is_gone(
    spec: VMSpec, files: InstanceFiles, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    async with open_vm(spec, files, Ear()) as vm:
        await vm.resume()
        execute = vm.monitor.execute

        async def interrupted(command: str, *given: Any, **more: Any) -> Any:
            if command != "stop":
                return await execute(command, *given, **more)
            task = asyncio.ensure_future(execute(command, *given, **more))
            await (task if answered else asyncio.sleep(0))
            raise asyncio.CancelledError

        monkeypatch.setattr(vm.monitor, "execute", interrupted)
        with pytest.raises(asyncio.CancelledError):
            async with standing_still(vm):
                raise AssertionError("whoever wanted it is gone")
        assert await vm.query_runstate() == "running"
