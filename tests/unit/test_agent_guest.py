"""The host's client against the real agent, run as a process of this host: programs, files, watching (floor 2)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.agent import AgentClient, Guest
from control.agent.client import serve_agent
from control.agent.process import Terminal
from control.agent.serial_line import open_serial
from control.agent.trees import Limits
from control.agent.vsock import open_vsock
from control.errors import (
    AgentCallError,
    AgentProtocolError,
    ExecError,
    ExecTimeout,
    HostError,
    TransferError,
    WaitTimeout,
)
from tests.guest.agentprocess import AGENT, AgentProcess


@contextlib.asynccontextmanager
async def open_guest(directory: Path) -> AsyncIterator[tuple[Guest, AgentProcess]]:
    """An agent of its own on a socketpair, and our client at the other end."""
    directory.mkdir()
    agent = AgentProcess(directory)
    try:

        async def take(method: str, params: object) -> None: ...

        async with serve_agent(AgentClient(agent.socket, take)) as client, asyncio.timeout(60):
            await client.wait_until_ready(20)
            yield Guest(client), agent
    finally:
        agent.close()


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    async with open_guest(tmp_path / "agent") as (guest, _):
        yield guest


# -- programs ----------------------------------------------------------------------------------------------------------


async def test_a_program_with_input_and_both_outputs(guest: Guest) -> None:
    result = await guest.run(["sh", "-c", "cat; echo err >&2; exit 3"], stdin=b"in\0\xff", check=False)
    assert (result.stdout, result.stderr, result.exit_code, result.signal) == (b"in\0\xff", b"err\n", 3, 0)
    with pytest.raises(ExecError) as caught:
        result.check()
    assert (caught.value.exit_code, caught.value.evidence) == (3, ("err",))


async def test_a_program_that_a_signal_killed(guest: Guest) -> None:
    with pytest.raises(ExecError, match="killed by signal 9") as caught:
        await guest.run(["sh", "-c", "kill -9 $$"])
    assert (caught.value.exit_code, caught.value.signal) == (137, 9)


async def test_a_program_that_is_not_there(guest: Guest) -> None:
    with pytest.raises(AgentCallError) as caught:
        await guest.run(["/no/such/program"])
    assert caught.value.code == -32002
    assert not guest.client.streams._open


async def test_environment_and_directory(guest: Guest, tmp_path: Path) -> None:
    result = await guest.run(["sh", "-c", "echo $WORD; pwd"], env={"WORD": "é"}, cwd=str(tmp_path))
    assert result.stdout.decode() == f"é\n{tmp_path}\n"


async def test_output_comes_while_the_program_runs(guest: Guest) -> None:
    async with await guest.exec(["sh", "-c", "echo one; read x; echo $x; read x"], stdin=True) as running:
        assert running.stdout is not None and running.stdin is not None
        assert await running.stdout.read() == b"one\n"
        running.stdin.write(b"two\n")
        await running.stdin.drain()
        assert await running.stdout.read() == b"two\n"
        assert running.running
        running.stdin.close()
        assert (await running.wait(20)).exit_code == 1
        assert [chunk async for chunk in running.stdout] == []


async def test_a_time_limit_kills_the_group_and_keeps_the_output(guest: Guest, tmp_path: Path) -> None:
    mark = tmp_path / "survived"
    with pytest.raises(ExecTimeout) as caught:
        await guest.run(["sh", "-c", f"echo so far; (sleep 2; touch {mark}) & wait"], timeout_s=0.3)
    assert (caught.value.stdout, caught.value.killed, caught.value.exit_code) == (b"so far\n", True, 124)
    await asyncio.sleep(2.2)  # the time in which a survivor would have left its mark
    assert not mark.exists()


async def test_a_wait_that_times_out_leaves_the_program_running(guest: Guest) -> None:
    async with await guest.exec(["sh", "-c", "echo here; sleep 60"]) as running:
        with pytest.raises(WaitTimeout):
            await running.wait(0.05)
        with pytest.raises(ExecTimeout) as caught:
            await running.wait_output(timeout_s=0.2)
        assert (caught.value.stdout, caught.value.killed) == (b"here\n", False)
        assert running.running
    with pytest.raises(AgentCallError) as error:
        await running.wait()
    assert error.value.code == -32006


async def is_alive(pid: object) -> bool:
    """Whether a process of this host, on which this agent runs, is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


async def test_leaving_the_context_ends_the_program(guest: Guest) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await guest.exec(["sleep", "600"]) as running:
            raise ZeroDivisionError
    assert not await is_alive(running.pid)


async def test_a_cancelled_run_ends_the_program(guest: Guest) -> None:
    run = asyncio.create_task(guest.run(["sleep", "601"]))
    while not (jobs := (await guest.client.call("job_list"))["jobs"]):
        pass
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert jobs[0]["method"] == "exec_start"
    assert (await guest.client.call("job_list"))["jobs"] == []


async def test_signals_reach_the_program(guest: Guest) -> None:
    script = "trap 'echo got it; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    async with await guest.exec(["sh", "-c", script]) as running:
        assert running.stdout is not None
        assert await running.stdout.read() == b"ready\n"
        await running.send_signal(signal.SIGUSR1)
        result = await running.wait_output(timeout_s=20)
        assert (result.stdout, result.exit_code) == (b"got it\n", 7)
        with pytest.raises(AgentCallError) as caught:
            await running.send_signal("TERM")
        assert caught.value.code == -32002


async def test_a_terminal_has_a_size_and_another_one(guest: Guest) -> None:
    terminal = Terminal(rows=33, columns=99)
    async with await guest.exec(["sh", "-c", "stty size; read x; stty size"], stdin=True, terminal=terminal) as running:
        assert running.stdout is not None and running.stdin is not None and running.stderr is None
        assert bytes(await running.stdout.read()).strip() == b"33 99"
        await running.resize(44, 111)
        running.stdin.write(b"\n")
        rest = b"".join([chunk async for chunk in running.stdout])
        assert b"44 111" in rest
        assert (await running.wait(20)).exit_code == 0


async def test_many_at_once(guest: Guest) -> None:
    results = await asyncio.gather(*(guest.run(["sh", "-c", f"cat; echo {n}"], stdin=b"x" * n) for n in range(30)))
    assert [result.stdout for result in results] == [b"x" * n + f"{n}\n".encode() for n in range(30)]


async def test_a_stream_nobody_reads_holds_up_itself_only(guest: Guest) -> None:
    async with await guest.exec(["cat", "/dev/zero"]) as endless:
        assert (await guest.run(["echo", "free"])).stdout == b"free\n"
        assert endless.stdout is not None
        assert len(endless.stdout._buffer) <= 262144


async def test_more_output_than_is_kept_is_cut_and_says_so(guest: Guest) -> None:
    result = await guest.run(["head", "-c", "3000000", "/dev/zero"], keep_bytes=1000)
    assert (len(result.stdout), result.truncated) == (1000, True)


async def test_input_that_nobody_reads_is_no_error(guest: Guest) -> None:
    assert (await guest.run(["true"], stdin=b"x" * 3_000_000)).exit_code == 0


async def test_an_agent_that_dies_fails_everything_at_once(tmp_path: Path) -> None:
    async with open_guest(tmp_path / "agent") as (guest, agent):
        started = [await guest.exec(["sleep", "60"]) for _ in range(5)]
        waits = [asyncio.create_task(running.wait_output()) for running in started]
        agent.process.kill()
        async with asyncio.timeout(5):
            outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(outcome, AgentProtocolError) for outcome in outcomes), outcomes
        with pytest.raises(AgentProtocolError):
            await guest.run(["true"])
        for running in started:
            assert running.pid is not None
            os.kill(running.pid, signal.SIGKILL)  # the agent had no time to end what it started


# -- files -------------------------------------------------------------------------------------------------------------


def make_tree(root: Path) -> Path:
    """A tree with one of everything."""
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "plain").write_bytes(os.urandom(1_500_000))
    (root / "plain").chmod(0o640)
    (root / "empty").touch()
    (root / "sub" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "sub" / "tool").chmod(0o755)
    (root / "sub" / "link").symlink_to("../plain")
    (root / "sub" / "dangling").symlink_to("/no/such\nplace")
    os.link(root / "plain", root / "sub" / "hard")
    os.mkfifo(root / "fifo", 0o600)
    (root / os.fsdecode(b"bad\xff name")).write_bytes(b"x")
    with (root / "sparse").open("wb") as file:
        file.seek(30_000_000)
        file.write(b"in the middle")
        file.truncate(90_000_000)
    for number in range(300):
        (root / "sub" / "deep" / str(number)).write_bytes(b"%d" % number)
    (root / "sub").chmod(0o555)
    os.utime(root / "plain", ns=(1, 1_600_000_000_123_456_789))
    os.utime(root / "sub", ns=(1, 1_500_000_000_000_000_001))
    return root


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything of a tree that a copy keeps."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        seen = path.lstat()
        content: object = path.readlink() if path.is_symlink() else None
        if stat.S_ISREG(seen.st_mode):
            content = path.read_bytes() if seen.st_size < 10_000_000 else seen.st_size
        linked = seen.st_nlink if not path.is_dir() else 0
        mode = 0 if path.is_symlink() else seen.st_mode
        found[str(path.relative_to(root))] = (stat.S_IFMT(seen.st_mode), mode, seen.st_mtime_ns, linked, content)
    return found


async def test_a_tree_there_and_back_is_the_same(guest: Guest, tmp_path: Path) -> None:
    here = make_tree(tmp_path / "here")
    steps: list[int] = []
    sent = await guest.put(here, str(tmp_path / "there"), progress=steps.append)
    assert describe(tmp_path / "there") == describe(here)
    assert (tmp_path / "there" / "sparse").stat().st_blocks < 1000
    assert steps == sorted(steps) and steps[-1] == sent.content_bytes < 2_000_000
    got = await guest.get(str(tmp_path / "there"), tmp_path / "back")
    assert describe(tmp_path / "back") == describe(here)
    assert (tmp_path / "back" / "sparse").stat().st_blocks < 1000
    assert (got.entries, got.content_bytes) == (sent.entries, sent.content_bytes)
    assert not list(tmp_path.rglob("*unhinged-part"))


@pytest.mark.parametrize("direction", ["put", "get"])
async def test_copies_mean_what_cp_r_means(guest: Guest, tmp_path: Path, direction: str) -> None:
    async def copy(source: object, target: str) -> None:
        if direction == "put":
            await guest.put(source, target)  # type: ignore[arg-type]
        else:
            await guest.get(source, target)  # type: ignore[arg-type]

    at = str(tmp_path)
    (tmp_path / "dir" / "inner").mkdir(parents=True)
    (tmp_path / "dir" / "f").write_text("f")
    (tmp_path / "file").write_text("file")
    (tmp_path / "into").mkdir()
    await copy(f"{at}/file", f"{at}/new")
    assert (tmp_path / "new").read_text() == "file"
    await copy(f"{at}/file", f"{at}/into")
    await copy(f"{at}/dir", f"{at}/into/")
    await copy(f"{at}/dir/", f"{at}/fresh/")
    assert (tmp_path / "fresh" / "f").exists() and (tmp_path / "into" / "dir" / "f").exists()
    await copy([f"{at}/file", f"{at}/dir/f"], f"{at}/into")
    assert sorted(path.name for path in (tmp_path / "into").iterdir()) == ["dir", "f", "file"]
    (tmp_path / "into" / "dir" / "kept").write_text("kept")
    await copy(f"{at}/dir", f"{at}/into")
    assert (tmp_path / "into" / "dir" / "kept").exists(), "an existing directory is merged into"
    for source, target in (
        (f"{at}/dir", f"{at}/file"),  # a directory onto a file
        (f"{at}/file", f"{at}/nothing/"),  # a file into a directory that is not there
        ([f"{at}/file", f"{at}/dir"], f"{at}/nothing"),
        ([f"{at}/file", f"{at}/dir"], f"{at}/file"),
    ):
        with pytest.raises((TransferError, AgentCallError)):
            await copy(source, target)
    (tmp_path / "into" / "file").unlink()
    (tmp_path / "into" / "file").mkdir()
    with pytest.raises((TransferError, AgentCallError)):
        await copy(f"{at}/file", f"{at}/into")  # a file onto a directory
    with pytest.raises((TransferError, AgentCallError)):
        await copy(f"{at}/no such", f"{at}/into")
    assert (tmp_path / "file").read_text() == "file"
    assert not list(tmp_path.rglob("*unhinged-part"))


async def test_a_put_that_is_cancelled_leaves_nothing_and_the_next_one_works(guest: Guest, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(20_000_000))
    begun = asyncio.Event()
    copy = asyncio.create_task(guest.put(big, str(tmp_path / "copy"), progress=lambda _: begun.set()))
    await begun.wait()
    copy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copy
    while (await guest.client.call("job_list"))["jobs"]:
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent", "big"]
    await guest.put(big, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == big.read_bytes()


@pytest.mark.parametrize("direction", ["put", "get"])
async def test_an_interrupted_copy_is_gone_on_with(guest: Guest, tmp_path: Path, direction: str) -> None:
    big, copied = tmp_path / "big", tmp_path / "copy"
    big.write_bytes(os.urandom(20_000_000))
    begun = asyncio.Event()

    async def copy(progress: object) -> object:
        if direction == "put":
            return await guest.put(big, str(copied), resume=True, progress=progress)  # type: ignore[arg-type]
        return await guest.get(str(big), copied, resume=True, progress=progress)  # type: ignore[arg-type]

    first = asyncio.create_task(copy(lambda done: begun.set() if done > 3_000_000 else None))
    await begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    while (await guest.client.call("job_list"))["jobs"]:
        pass
    (part,) = tmp_path.glob(".copy*")
    assert part.stat().st_size > 1_000_000 and not copied.exists()
    done = await copy(None)
    assert copied.read_bytes() == big.read_bytes()
    assert done.content_bytes < 19_000_000, "what was there already was not sent again"  # type: ignore[attr-defined]
    assert not part.exists()


async def test_limits_of_a_get(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    for name in "abc":
        (tmp_path / "from" / name).write_bytes(bytes(1000))
    with pytest.raises(TransferError, match="more than 3 files"):
        await guest.get(str(tmp_path / "from"), tmp_path / "to", limits=Limits(entries=3))
    with pytest.raises(TransferError, match="more than 999 bytes"):
        await guest.get(str(tmp_path / "from" / "a"), tmp_path / "x", limits=Limits(content_bytes=999))
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TransferError, match="bytes, the limit"):
        await guest.get(str(tmp_path / "hole"), tmp_path / "x", limits=Limits(content_bytes=10_000))
    assert not (tmp_path / "x").exists()


async def test_setuid_is_taken_over_only_when_asked(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    (tmp_path / "s").chmod(0o4755)
    await guest.get(str(tmp_path / "s"), tmp_path / "a")
    await guest.get(str(tmp_path / "s"), tmp_path / "b", keep_special=True)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"] == [0o755, 0o4755]


async def test_small_things_about_files(guest: Guest, tmp_path: Path) -> None:
    path = str(tmp_path / "x" / "y")
    await guest.mkdir(path, parents=True)
    await guest.write_text(f"{path}/t", "é\n", mode=0o600)
    await guest.write_bytes(f"{path}/t", b"more", append=True)
    assert await guest.read_text(f"{path}/t") == "é\nmore"
    assert (await guest.stat(f"{path}/t"))["size"] == 7
    assert [entry["name"] async for entry in guest.list(path)] == ["t"]
    await guest.rename(f"{path}/t", f"{path}/u")
    with pytest.raises(AgentCallError):
        await guest.remove(str(tmp_path / "x"))
    assert await guest.remove(str(tmp_path / "x"), recursive=True) == 3
    with pytest.raises(AgentCallError) as caught:
        await guest.read_bytes(path)
    assert caught.value.code == -32002
    content = os.urandom(3_000_000)
    await guest.write_bytes(str(tmp_path / "z"), content)
    assert await guest.read_bytes(str(tmp_path / "z")) == content
    with pytest.raises(TransferError, match="more than 10 bytes"):
        await guest.read_bytes(str(tmp_path / "z"), limit_bytes=10)
    with pytest.raises(TransferError, match="not UTF-8"):
        await guest.read_text(str(tmp_path / "z"))


async def test_a_directory_is_watched(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    watching = guest.watch(str(tmp_path / "w"))
    async with contextlib.aclosing(watching) as changes:  # type: ignore[type-var]
        first = asyncio.ensure_future(anext(changes))
        while not first.done() and not (await guest.client.call("job_list"))["jobs"]:
            pass
        (tmp_path / "w" / "new").touch()
        assert "new" in str(await first)
    while (await guest.client.call("job_list"))["jobs"]:
        pass


# -- the rest ----------------------------------------------------------------------------------------------------------


async def test_lists_come_whole(guest: Guest) -> None:
    assert os.getpid() in [process["pid"] async for process in guest.processes()]
    assert (await guest.system_info())["kernel"] == os.uname().release
    assert any(interface["name"] == "lo" for interface in (await guest.network_info())["interfaces"])
    assert any(user["name"] == "root" for user in [user async for user in guest.users()])


async def test_metrics_are_pushed(guest: Guest) -> None:
    assert [metrics["job"] async for metrics in guest.watch_metrics(0.1, count=2)] == [1, 1]


async def test_a_log_is_followed(guest: Guest, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n")
    async with contextlib.aclosing(guest.log(str(log), lines=1)) as lines:  # type: ignore[type-var]
        assert await anext(lines) == b"old\n"
        with log.open("a") as file:
            file.write("new\n")
        assert await anext(lines) == b"new\n"
    while (await guest.client.call("job_list"))["jobs"]:
        pass


async def test_a_log_that_is_not_there(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(AgentCallError) as caught:
        async for _ in guest.log(str(tmp_path / "nothing")):
            pass
    assert caught.value.code == -32002


# -- other lines than QEMU's sockets -----------------------------------------------------------------------------------


async def take(method: str, params: object) -> None: ...


async def test_a_serial_line(tmp_path: Path) -> None:
    """Two pseudo-terminals joined by hand stand for the cable; what is sent before the agent listens is lost there."""
    ours, our_end = os.openpty()
    theirs, their_end = os.openpty()
    loop = asyncio.get_running_loop()
    plugged = False

    def carry(source: int, target: int) -> None:
        with contextlib.suppress(OSError):
            data = os.read(source, 4096)
            if plugged:
                os.write(target, data)

    loop.add_reader(ours, carry, ours, theirs)
    loop.add_reader(theirs, carry, theirs, ours)
    config = tmp_path / "config.json"
    config.write_text('{"console": null, "share": null, "events": null, "heartbeat_s": 0}')
    argv = [sys.executable, "-I", "-S", "-B", str(AGENT / "__main__.py"), "--config", str(config), "--port"]
    try:
        async with open_serial(os.ttyname(our_end), take) as client, asyncio.timeout(30):
            with pytest.raises(HostError, match="cannot be used"):
                async with open_serial(os.ttyname(our_end), take):
                    pass
            agent = await asyncio.create_subprocess_exec(*argv, os.ttyname(their_end))
            try:
                with pytest.raises(WaitTimeout):
                    await client.wait_until_ready(0.2)
                plugged = True
                await client.wait_until_ready(20)
                guest = Guest(client)
                data = bytes(range(256)) * 40
                assert (await guest.run(["cat"], stdin=data)).stdout == data
                agent.kill()
                await agent.wait()
                agent = await asyncio.create_subprocess_exec(*argv, os.ttyname(their_end))
                while client.info["pid"] != agent.pid:  # noqa: ASYNC110 - it has no event, and this is a test
                    await asyncio.sleep(0.01)
                await client.wait_until_ready(20)
                assert (await guest.run(["echo", "again"])).stdout == b"again\n"
            finally:
                agent.kill()
                await agent.wait()
    finally:
        for master in (ours, theirs):
            loop.remove_reader(master)
        for end in (ours, our_end, theirs, their_end):
            os.close(end)


async def test_a_vsock_without_a_guest_is_a_clear_error() -> None:
    with pytest.raises((HostError, WaitTimeout)):
        async with open_vsock(2**31, 5000, take, timeout_s=0.5):
            pass
