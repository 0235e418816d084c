"""Whatever befalls the channel, the host or the VM: the agent answers again without help, on both guests.

First the seven failures of an agent's channel, over the real port with a bare socket; then pauses, snapshots, and hosts
and agents that are killed in the middle of their work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from control.agent import AgentClient, Guest
from control.agent.client import serve_agent
from control.agent.files import find_type
from control.errors import AgentCallError, AgentProtocolError, ControlError, ExecTimeout, WaitTimeout
from control.paths import InstanceFiles, runtime_directory
from control.vm.instance import find_running, read_record
from control.vm.vm import VM, adopt_vm
from tests.boot.guests import KINDS, SOON_S, check, instance_directory, open_guest_vm, wait_until
from tests.guest.agentprocess import DATA, encode_frame
from tests.qemu.ear import Ear

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

WORK = "/tmp/work"
LINE_LIMIT_BYTES = 4 * 1024 * 1024


class Detached:
    """A VM that runs without any host, to which each test comes as it likes."""

    def __init__(self, kind: str, directory: Path, files: InstanceFiles) -> None:
        self.kind = kind
        self.directory = directory
        self.files = files

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[VM]:
        """The product's own host, which finds the VM as it is, and leaves it running."""
        async with self._adopted() as vm:
            vm.detach()
            await vm.agent.wait_until_ready(SOON_S)
            yield vm

    async def end(self) -> None:
        """End the VM, in whatever state a test left it."""
        async with self._adopted() as vm:
            pid = vm.process.pid
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended; it was a child of this very process, which lives on

    @asynccontextmanager
    async def _adopted(self) -> AsyncIterator[VM]:
        record = read_record(self.files)
        process = find_running(self.files, record)
        assert record is not None and process is not None
        async with adopt_vm(record, self.files, process, Ear()) as vm:
            await vm.monitor.execute("cont")  # a test that failed may have left it paused
            yield vm

    async def check(self) -> None:
        """A new host finds an agent that answers and a guest that gives back a nonce."""
        async with self.attached() as vm:
            deadline = time.monotonic() + SOON_S
            while True:
                try:
                    return await check(vm.guest)
                except AgentProtocolError as error:
                    # A guest that is slow may hear only now that the host before has left its bulk port. The session
                    # then begins anew by itself, some time later, which nothing here is told of.
                    if "the host has gone" not in str(error) or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)

    @contextmanager
    def raw(self, name: str = "agent") -> Iterator[socket.socket]:
        """The host's end of a port, with nothing that knows the protocol."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.files.sockets / f"{name}.socket"))
            connection.settimeout(SOON_S)
            yield connection


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def detached(request: pytest.FixtureRequest) -> AsyncIterator[Detached]:
    """One boot for all tests, which leave the guest running."""
    with instance_directory() as directory:
        async with open_guest_vm(request.param, directory) as vm:
            vm.detach()
        it = Detached(request.param, directory, vm.files)
        yield it
        await it.end()


def ask(connection: socket.socket, method: str, **params: Any) -> dict[str, Any]:
    """Call a method over a bare socket, and return the answer."""
    return answer_to(connection, send_request(connection, method, **params))


def send_request(connection: socket.socket, method: str, **params: Any) -> str:
    id_ = secrets.token_hex(8)
    connection.sendall(b"\n" + json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode())
    connection.sendall(b"\n")
    return id_


def answer_to(connection: socket.socket, id_: str | None) -> dict[str, Any]:
    for value in read_lines(connection):
        if "id" in value and value["id"] == id_:
            return value
    raise AssertionError("the port was closed")


def read_lines(connection: socket.socket) -> Iterator[dict[str, Any]]:
    """What the guest says, without what is no line of JSON: the rest of something for the host before."""
    kept = b""
    while data := connection.recv(1 << 16):
        *lines, kept = (kept + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value


# -- the seven failures ------------------------------------------------------------------------------------------------


async def test_a_partial_write(detached: Detached) -> None:
    """A host that is gone in the middle of a request, at every kind of place; nothing of it is carried out."""
    request = b'{"jsonrpc":"2.0","id":1,"method":"exec_command","params":{"argv":["touch","/tmp/half"]}}'
    for length in (1, 30, len(request) - 1):
        with detached.raw() as connection:
            connection.sendall(b"\n" + request[:length])
        with detached.raw("bulk") as bulk:
            bulk.sendall(encode_frame(DATA, 1, b"x" * 1000)[: length * 10])
        await detached.check()
    async with detached.attached() as vm:
        with pytest.raises(AgentCallError):
            await vm.guest.stat("/tmp/half")


async def test_an_oversize_length(detached: Detached) -> None:
    """A line without an end, and a frame that claims 4 GiB: both are refused, and what follows is answered."""
    with detached.raw() as connection:
        connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"')
        for _ in range(LINE_LIMIT_BYTES // 65536 + 16):
            connection.sendall(b"x" * 65536)
        connection.sendall(b"\n")
        assert answer_to(connection, None)["error"]["code"] == -32001
        assert ask(connection, "ping")["result"] == {}
        session = secrets.token_hex(16)
        assert ask(connection, "hello", session=session)["result"]["session"] == session
        with detached.raw("bulk") as bulk:
            seen = b""
            while session.encode() not in seen:
                seen += bulk.recv(65536)
            bulk.sendall(encode_frame(1, 0, session.encode()))
            bulk.sendall(bytes.fromhex("F5756231") + b"\x02\0\0\0" + b"\x01\0\0\0" + b"\xff\xff\xff\xff" + b"x" * 100)
            # That an earlier host has gone may be told as well, and first.
            reasons = (
                line["params"]["reason"] for line in read_lines(connection) if line.get("method") == "bulk_broken"
            )
            assert any("bytes" in reason for reason in reasons)
        assert ask(connection, "ping")["result"] == {}
    await detached.check()


async def test_garbage_before_a_message(detached: Detached) -> None:
    with detached.raw() as connection:
        connection.sendall(os.urandom(200_000) + b"\xf5\xf5ub1" + b"[" * 100_000)
        assert ask(connection, "ping")["result"] == {}
    with detached.raw("bulk") as bulk:
        bulk.sendall(os.urandom(200_000))
    await detached.check()


async def test_the_guest_speaks_first(detached: Detached) -> None:
    """What the guest had to say while nobody was there comes before any answer, and a host finds its own answers."""
    async with detached.attached() as vm:
        events = "/run/unhinged-agent/events"
        script = f"exec setsid sh -c 'sleep 2; echo service late started 1<>{events}; touch /tmp/said' < /dev/null &"
        await vm.guest.run(["sh", "-c", script])
    with detached.raw() as connection:
        first = next(line for line in read_lines(connection) if "service late" in json.dumps(line))
        assert first["method"] == "message" and first["params"]["data"]["details"]["service"] == "late"
        assert ask(connection, "ping")["result"] == {}
    await detached.check()


async def test_a_host_that_comes_and_goes(detached: Detached) -> None:
    """Often, with questions it does not wait for, large answers it does not read, and sessions it leaves."""
    for turn in range(12):
        with detached.raw() as connection, detached.raw("bulk") as bulk:
            if turn % 3 == 0:
                send_request(connection, "exec_command", argv=["cat", "/proc/kallsyms"])
            if turn % 3 == 1:
                send_request(connection, "hello", session=secrets.token_hex(16))
                bulk.recv(1)
            if turn % 3 == 2:
                send_request(connection, "exec_command", argv=["sleep", "1"])
    await detached.check()
    for _ in range(3):
        await detached.check()


async def test_a_second_client(detached: Detached) -> None:
    """QEMU lets it wait: the first one is not disturbed, and what the second wrote spoils nothing after it."""
    async with detached.attached() as vm, await vm.guest.exec(["cat"], stdin=True) as running:
        with detached.raw() as second, detached.raw("bulk") as bulk:
            second.sendall(b'garbage\n{"jsonrpc":"2.0","id":1,"method":"hello","params":{"session":"' + b"0" * 20)
            bulk.sendall(os.urandom(1000))
            assert running.stdin is not None and running.stdout is not None
            running.stdin.write(b"undisturbed")
            assert await running.stdout.read() == b"undisturbed"
            await check(vm.guest)
    await detached.check()


@pytest.mark.slow
async def test_the_socket_of_another_vm(detached: Detached) -> None:
    """Both sockets of it are another guest; one of each is an error in time and no hang, and then all is well."""
    with instance_directory() as directory:
        async with open_guest_vm("built-in", directory) as other:
            here = other.agent.info["boot_id"]
            other.detach()
        stranger = Detached("built-in", directory, other.files)
        try:
            async with open_client(stranger, stranger) as guest:
                assert guest.client.info["boot_id"] == here
                await check(guest)
            for agent, bulk in ((detached, stranger), (stranger, detached)):
                async with open_client(agent, bulk) as guest:
                    assert await guest.client.call("ping") == {}
                    with pytest.raises((AgentProtocolError, ExecTimeout)):
                        await guest.run(["echo", "to whom?"], timeout_s=1.0)
            async with serve_agent(AgentClient(connect(stranger.files.monitor_socket), ignore)) as console:
                with pytest.raises((WaitTimeout, AgentProtocolError)) as caught:
                    await console.wait_until_ready(3)
                assert str(caught.value).isprintable()
            await stranger.check()
        finally:
            await stranger.end()
    await detached.check()


def connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


async def ignore(method: str, params: object) -> None: ...


@asynccontextmanager
async def open_client(agent: Detached, bulk: Detached) -> AsyncIterator[Guest]:
    """A client of ours on the agent's port of one VM and the port for streams of one VM."""
    client = AgentClient(connect(agent.files.agent_socket), ignore, bulk=connect(bulk.files.bulk_socket))
    async with serve_agent(client):
        await client.wait_until_ready(SOON_S)
        yield Guest(client)


async def test_a_write_that_is_cancelled_in_the_middle(detached: Detached) -> None:
    """Calls and a copy that are given up while the guest stands still, with half of them in its port."""
    async with detached.attached() as vm:
        await vm.monitor.execute("stop")
        params = {"argv": ["sh", "-c", "cat > /tmp/cancelled"], "stdin": "x" * 3_000_000}
        calls = [asyncio.create_task(vm.agent.call("exec_command", params)) for _ in range(3)]
        writing = asyncio.create_task(vm.guest.write_bytes("/tmp/cancelled-too", b"x" * 5_000_000))

        async def full() -> int:
            return vm.agent._outbox.waiting_bytes

        await wait_until(full, "the port to be full")
        for task in (*calls, writing):
            task.cancel()
        results = await asyncio.gather(*calls, writing, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        await vm.monitor.execute("cont")
        await check(vm.guest)
        names = [entry["name"] async for entry in vm.guest.list("/tmp")]
        assert not [name for name in names if "cancelled-too" in name], names
    await detached.check()


# -- pauses, snapshots, deaths -----------------------------------------------------------------------------------------


async def start_work(vm: VM, here: Path) -> list[asyncio.Task[Any]]:
    """A command that counts, a copy into the guest, and a watch, all in the middle."""
    if await find_type(vm.agent, WORK):
        await vm.guest.remove(WORK, recursive=True)
    await vm.guest.mkdir(WORK)
    (here / "large").write_bytes(os.urandom(40_000_000))
    begun = asyncio.Event()

    async def watch() -> None:
        async for change in vm.guest.watch(WORK):
            if "last" in (change["path"], change.get("to")):
                return

    script = "n=0; while [ $n -lt 100 ]; do n=$((n+1)); echo $n; sleep 0.05; done"
    tasks = [
        asyncio.create_task(vm.guest.run(["sh", "-c", script])),
        asyncio.create_task(vm.guest.put(here / "large", f"{WORK}/large", progress=lambda _: begun.set())),
        asyncio.create_task(watch()),
    ]
    await begun.wait()

    async def all_begun() -> bool:
        return len((await vm.agent.call("job_list"))["jobs"]) == 3 or any(task.done() for task in tasks)

    await wait_until(all_begun, "all three jobs")
    return tasks


@pytest.mark.slow
async def test_a_minute_of_pause(detached: Detached, tmp_path: Path) -> None:
    """What has no deadline goes on where it stood; what has one fails in time; the agent answers at once."""
    async with detached.attached() as vm:
        command, copy, watch = await start_work(vm, tmp_path)
        await vm.monitor.execute("stop")
        with pytest.raises(WaitTimeout):
            await vm.agent.call("ping", timeout_s=2)
        with pytest.raises((WaitTimeout, ExecTimeout)):
            async with asyncio.timeout(25):
                await vm.guest.run(["true"], timeout_s=1)
        pending = asyncio.create_task(vm.agent.call("get_agent_info", timeout_s=120))
        await asyncio.sleep(60)  # the minute itself
        assert not (command.done() or copy.done() or watch.done() or pending.done())
        await vm.monitor.execute("cont")
        async with asyncio.timeout(SOON_S):
            assert (await pending)["session"] == vm.agent.info["session"]
            assert (await command).stdout.split() == [b"%d" % n for n in range(1, 101)]
            assert (await copy).content_bytes == 40_000_000
            await vm.guest.write_text(f"{WORK}/last", "")
            await watch
        await check(vm.guest)
        await vm.guest.remove(WORK, recursive=True)


@pytest.mark.slow
async def test_a_snapshot_that_is_restored(detached: Detached, tmp_path: Path) -> None:
    """Taken in the middle of work, restored twice: what was pending fails, and the agent answers without help."""
    async with detached.attached() as vm:
        tasks = await start_work(vm, tmp_path)
        session = vm.agent.info["session"]
        assert await vm.monitor.human("savevm middle", timeout_s=SOON_S) == ""
        # Taking it disturbs nothing.
        async with asyncio.timeout(SOON_S):
            await tasks[0]
            await tasks[1]
        await vm.guest.write_text(f"{WORK}/last", "")
        await tasks[2]
        assert vm.agent.info["session"] == session
        async with contextlib.AsyncExitStack() as stack:
            for turn in range(2):
                # Another session than the one in the snapshot, with work of its own.
                vm.agent._begin_session("the test wants another one")
                await vm.agent.wait_until_ready(SOON_S)
                running = await stack.enter_async_context(await vm.guest.exec(["sleep", "1000"]))
                await vm.guest.write_text(f"{WORK}/later-{turn}", "")
                assert await vm.monitor.human("loadvm middle", timeout_s=SOON_S) == ""
                with pytest.raises(AgentProtocolError):
                    await running.wait(SOON_S)
                await vm.agent.wait_until_ready(SOON_S)
                await check(vm.guest)
                with pytest.raises(AgentCallError):
                    await vm.guest.stat(f"{WORK}/later-{turn}")
                assert (await vm.agent.call("job_list"))["jobs"] == []
        await vm.monitor.human("delvm middle", timeout_s=SOON_S)
        await vm.guest.remove(WORK, recursive=True)
    await detached.check()


@pytest.mark.slow
async def test_a_host_that_is_killed_in_the_middle_and_a_new_one(detached: Detached, tmp_path: Path) -> None:
    """The program goes with its session, no half file has the final name, and the copy goes on where it was."""
    source = tmp_path / "large"
    source.write_bytes(os.urandom(150_000_000))
    target = "/data/large" if detached.kind == "built-in" else "/var/tmp/large"
    argv = ["-m", "tests.boot.adopter", str(runtime_directory(detached.directory)), "agent", str(source), target]
    root = Path(__file__).parents[2]
    host = await asyncio.create_subprocess_exec(sys.executable, *argv, cwd=root, stdout=asyncio.subprocess.PIPE)
    assert host.stdout is not None
    async with asyncio.timeout(SOON_S):
        pid = int((await host.stdout.readline()).split()[1])
        while int(await host.stdout.readline() or b"0") < 30_000_000:
            assert host.returncode is None
    host.send_signal(signal.SIGKILL)
    await host.wait()
    async with detached.attached() as vm:
        await check(vm.guest)
        with pytest.raises(AgentCallError):
            await vm.guest.stat(target)

        async def gone() -> bool:
            return not [process async for process in vm.guest.processes() if process["pid"] == pid]

        await wait_until(gone, "the end of the program, which got SIGHUP and will get SIGKILL")
        copied = await vm.guest.put(source, target, resume=True)
        assert 0 < copied.content_bytes < 150_000_000 - 10_000_000
        await vm.guest.get(target, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        await vm.guest.remove(target)
        await check(vm.guest)


@pytest.mark.slow
async def test_an_agent_that_is_killed_with_jobs_running(detached: Detached, tmp_path: Path) -> None:
    """Everything pending fails at once; what watches over the agent starts it again, and it answers without help."""
    async with detached.attached() as vm:
        for _ in range(2):
            tasks = await start_work(vm, tmp_path)
            pid = vm.agent.info["pid"]
            with contextlib.suppress(ControlError):
                await vm.agent.call("exec_command", {"argv": ["kill", "-9", str(pid)]})
            async with asyncio.timeout(SOON_S):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, AgentProtocolError) for result in results), results
            await vm.agent.wait_until_ready(SOON_S)
            assert vm.agent.info["pid"] != pid
            await check(vm.guest)
            with pytest.raises(AgentCallError):
                await vm.guest.stat(f"{WORK}/large")
            await vm.guest.remove(WORK, recursive=True)
    await detached.check()
