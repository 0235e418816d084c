"""Every method for commands, jobs and files, its errors and its limits, through the host's own client and over the real
ports, on both guests. `tests/guest/conformance` does the same for the methods about the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from control.agent import Guest
from control.agent.process import ExecProcess, Terminal
from control.errors import AgentCallError, AgentProtocolError, ExecError, ExecTimeout, TransferError, WaitTimeout
from control.paths import ROOT
from control.vm.vm import VM, build_command
from tests.boot.guests import (
    KINDS,
    SOON_S,
    check,
    check_refusal,
    instance_directory,
    open_guest_vm,
    open_second_agent,
    refused,
    wait_until,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

NOT_FOUND, NOT_PERMITTED, BUSY, FAILED, CANCELLED = -32002, -32003, -32004, -32005, -32006
TOO_LARGE, EXISTS, NOT_SUPPORTED, INVALID, TOO_LONG = -32007, -32008, -32009, -32602, -32001


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vm(kind: str) -> AsyncIterator[VM]:
    """One boot for all tests, which leave the guest as they found it."""
    with instance_directory() as directory:
        async with open_guest_vm(kind, directory) as vm:
            yield vm


@pytest.fixture
def guest(vm: VM) -> Guest:
    return vm.guest


@pytest_asyncio.fixture(loop_scope="module")
async def there(guest: Guest) -> AsyncIterator[str]:
    """An empty directory in the guest, of the test's own; the agent answers at the end, and no job is left."""
    path = f"/tmp/test-{os.urandom(6).hex()}"
    await guest.mkdir(path)
    yield path
    await guest.remove(path, recursive=True)
    await check(guest)
    assert (await guest.client.call("job_list"))["jobs"] == []


async def wait_until_gone(guest: Guest, pid: int) -> None:
    """Wait until a process of the guest has ended; one that nobody has waited for yet counts."""

    async def gone() -> bool:
        return not await is_alive(guest, pid)

    await wait_until(gone, f"the end of process {pid}")


async def is_alive(guest: Guest, pid: int) -> bool:
    try:
        status = await guest.read_text(f"/proc/{pid}/status")
    except AgentCallError:
        return False
    return "State:\tZ" not in status


async def read_until(running: ExecProcess, what: bytes) -> bytes:
    """What the program wrote up to `what`."""
    assert running.stdout is not None
    seen = b""
    async with asyncio.timeout(SOON_S):
        while what not in seen:
            data = await running.stdout.read()
            assert data, f"it ended before {what!r}: {seen!r}"
            seen += data
    return seen


# -- programs ----------------------------------------------------------------------------------------------------------


async def test_arguments_arrive_as_they_are(guest: Guest) -> None:
    words = ["a b", "$HOME", "*", "", "é\n", "--", "'\"\\", "x" * 100_000]
    result = await guest.run(["sh", "-c", "printf '%s\\0' \"$@\"", "sh", *words])
    assert result.stdout.decode().split("\0")[:-1] == words


async def test_environment_directory_and_user(guest: Guest, there: str) -> None:
    await guest.client.call("file_mkdir", {"path": f"{there}/é", "mode": 0o777})
    script = 'echo "$WORD|$HOME|$USER"; pwd; id -u; id -g; echo mine > file'
    where = f"{there}/é"
    result = await guest.run(["sh", "-c", script], env={"WORD": "w = \n"}, cwd=where, user="nobody")
    lines = result.stdout.decode().split("\n")
    assert lines[:2] == ["w = ", "|/nonexistent|nobody"]
    assert lines[2:4] == [where, "65534"]
    assert (await guest.stat(f"{where}/file"))["uid"] == 65534
    assert b"WORD=" not in (await guest.run(["env"])).stdout


async def test_input_of_megabytes_and_bytes_of_any_value(guest: Guest) -> None:
    data = os.urandom(3_000_000) + bytes(range(256))
    assert (await guest.run(["cat"], stdin=data)).stdout == data


async def test_both_outputs_apart_and_as_they_come(guest: Guest) -> None:
    script = "echo one; echo first >&2; read x; echo $x; echo second >&2; read x; exit 5"
    async with await guest.exec(["sh", "-c", script], stdin=True) as running:
        assert running.stdin is not None and running.stdout is not None and running.stderr is not None
        assert (await running.stdout.read(), await running.stderr.read()) == (b"one\n", b"first\n")
        running.stdin.write(b"two\n")
        assert (await running.stdout.read(), await running.stderr.read()) == (b"two\n", b"second\n")
        assert running.running
        running.stdin.close()
        result = await running.wait_output(timeout_s=SOON_S)
    assert (result.exit_code, result.stdout, result.stderr) == (5, b"", b"")


@pytest.mark.parametrize(
    "script, code, number", [("exit 0", 0, 0), ("exit 255", 255, 0), ("kill -9 $$", 137, 9), ("kill -15 $$", 143, 15)]
)
async def test_how_programs_end(guest: Guest, script: str, code: int, number: int) -> None:
    result = await guest.run(["sh", "-c", script], check=False)
    assert (result.exit_code, result.signal) == (code, number)
    if code:
        with pytest.raises(ExecError) as caught:
            result.check()
        assert caught.value.exit_code == code


async def test_a_time_limit_kills_the_group_and_returns_what_there_was(guest: Guest) -> None:
    script = "echo so far; echo errors >&2; sleep 1000 & echo $!; wait"
    with pytest.raises(ExecTimeout) as caught:
        await guest.run(["sh", "-c", script], timeout_s=1.0)
    words = caught.value.stdout.split()
    assert (words[:2], caught.value.stderr, caught.value.killed) == ([b"so", b"far"], b"errors\n", True)
    await wait_until_gone(guest, int(words[2]))


async def test_signals_and_the_group(guest: Guest) -> None:
    script = "trap 'echo got it; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    async with await guest.exec(["sh", "-c", script]) as running:
        await read_until(running, b"ready\n")
        with refused(INVALID, key="signal"):
            await running.send_signal("BLOCK")
        await running.send_signal(signal.SIGUSR1)
        result = await running.wait_output(timeout_s=SOON_S)
        assert result.stdout.endswith(b"got it\n") and result.exit_code == 7
        with refused(NOT_FOUND):
            await running.send_signal("TERM")
    async with await guest.exec(["sh", "-c", "sleep 1000 & echo $!; wait"]) as group:
        child = int(await read_until(group, b"\n"))
        await group.send_signal("KILL")
        assert (await group.wait(SOON_S)).signal == 9
    await wait_until_gone(guest, child)


async def test_a_terminal(guest: Guest) -> None:
    """Its size and another one, Ctrl-C, Ctrl-Z and `fg`, the end of the input, and what is refused."""
    terminal = Terminal(rows=33, columns=99, term="dumb")
    async with await guest.exec(["sh", "-i"], stdin=True, terminal=terminal, env={"PS1": "$ "}) as shell:
        assert shell.stdin is not None and shell.stderr is None

        async def type_line(line: bytes, answer: bytes) -> bytes:
            assert shell.stdin is not None
            shell.stdin.write(line + b"\n")
            return await read_until(shell, answer)

        # What is waited for is never in the echo of what was typed.
        await type_line(b"stty size; echo $TERM; tty", b"33 99\r\ndumb\r\n/dev/pts/")
        await type_line(b"trap 'echo re''sized' WINCH; echo go''od", b"good\r\n")
        await shell.resize(44, 111)
        await type_line(b"stty size", b"44 111\r\n")
        await type_line(b"sleep 1000; echo fin''ished", b"sleep")
        await wait_for_process(guest, "sleep 1000")
        shell.stdin.write(b"\x03")
        await type_line(b"echo al''ive $?", b"alive ")
        await type_line(b"sleep 1001", b"sleep")
        await wait_for_process(guest, "sleep 1001")
        shell.stdin.write(b"\x1a")
        await read_until(shell, b"Stopped")
        # A terminal that is switched while a Ctrl-D waits in it makes a NUL of that: it is typed at the prompt only.
        # Source: Linux, drivers/tty/n_tty.c, n_tty_set_termios.
        await type_line(b"jobs; kill %1; fg; echo ba''ck", b"back\r\n$ ")
        shell.stdin.close()  # typed as Ctrl-D
        assert (await shell.wait_output(timeout_s=SOON_S)).exit_code < 128
    async with await guest.exec(["sleep", "1000"]) as plain:
        with refused(NOT_SUPPORTED):
            await plain.resize(10, 10)
    assert not await find_process(guest, "sleep 1001")


async def find_process(guest: Guest, command: str) -> int:
    """The number of the process with this command line; 0 when there is none."""
    async for process in guest.processes():
        if process["command"] == command:
            return int(process["pid"])
    return 0


async def wait_for_process(guest: Guest, command: str) -> None:
    await wait_until(lambda: find_process(guest, command), f"the start of {command}")


async def has_job(guest: Guest) -> bool:
    return bool((await guest.client.call("job_list"))["jobs"])


async def has_no_job(guest: Guest) -> bool:
    return not await has_job(guest)


async def test_a_terminal_that_is_let_go_of_takes_its_programs_with_it(guest: Guest) -> None:
    async with await guest.exec(["sh", "-i"], stdin=True, terminal=Terminal()) as shell:
        assert shell.stdin is not None
        shell.stdin.write(b"sleep 1002 &\n")
        await wait_for_process(guest, "sleep 1002")
        pid = await find_process(guest, "sleep 1002")
    await wait_until_gone(guest, pid)


async def test_fifty_at_once_and_no_more_than_are_allowed(vm: VM, guest: Guest) -> None:
    """32 by default; the host may have more."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(32):
            await stack.enter_async_context(await guest.exec(["sleep", "1000"]))
        with refused(BUSY):
            await guest.exec(["true"])
        with refused(BUSY):
            await guest.client.call("exec_command", {"argv": ["true"]})
    await set_configuration(vm, "exec_concurrent", 50)
    try:
        results = await asyncio.gather(
            *(guest.run(["sh", "-c", f"cat; echo {n} >&2"], stdin=b"x" * n * 100) for n in range(50))
        )
        assert [(result.stdout, result.stderr) for result in results] == [
            (b"x" * n * 100, b"%d\n" % n) for n in range(50)
        ]
    finally:
        await set_configuration(vm, "exec_concurrent", 32)


async def set_configuration(vm: VM, key: str, value: int) -> None:
    command = build_command("command", "set configuration", {"key": key, "value": value})
    assert (await vm.send(command, timeout_s=SOON_S)).text == "set configuration done"


async def test_a_slow_reader_holds_up_its_program_only(guest: Guest) -> None:
    async with await guest.exec(["cat", "/dev/zero"]) as endless:
        assert (await guest.run(["echo", "free"])).stdout == b"free\n"
        endless.cancel()
        with pytest.raises(AgentCallError) as caught:
            await endless.wait(SOON_S)
        assert caught.value.code == CANCELLED
    assert endless.pid is not None
    await wait_until_gone(guest, endless.pid)


async def test_what_is_given_up_is_stopped_in_the_guest(guest: Guest) -> None:
    run = asyncio.create_task(guest.run(["sleep", "1003"]))
    await wait_for_process(guest, "sleep 1003")
    pid = await find_process(guest, "sleep 1003")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await wait_until_gone(guest, pid)
    with pytest.raises(WaitTimeout):
        await guest.client.call("exec_command", {"argv": ["sleep", "1004"]}, timeout_s=2)

    async def gone() -> bool:
        return not await find_process(guest, "sleep 1004")

    await wait_until(gone, "the end of what was cancelled")


async def test_exec_command_keeps_so_much_and_says_so(guest: Guest) -> None:
    call = guest.client.call
    result = await call("exec_command", {"argv": ["sh", "-c", "echo out; echo err >&2; exit 4"], "stdin": ""})
    assert (result["exit_code"], result["signal"], result["stdout"], result["stderr"]) == (4, None, "out\n", "err\n")
    long = await call(
        "exec_command", {"argv": ["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' x; printf 'a\\377'>&2"]}
    )
    assert (len(long["stdout"]), long["truncated"], long["stderr"]) == (262144, True, "a\ufffd")
    assert long["stderr_base64"] == "Yf8="
    late = await call("exec_command", {"argv": ["sh", "-c", "echo early; sleep 1000"], "timeout_s": 0.5})
    assert (late["timed_out"], late["stdout"], late["signal"]) == (True, "early\n", 9)


REFUSED_COMMANDS: list[tuple[dict[str, Any], int, dict[str, str]]] = [
    ({"argv": ["/no/such/program"]}, NOT_FOUND, {}),
    ({"argv": ["no-such-program"]}, NOT_FOUND, {}),
    ({"argv": ["true"], "cwd": "/no/such/directory"}, NOT_FOUND, {}),
    ({"argv": ["/etc/passwd"]}, NOT_PERMITTED, {}),
    ({"argv": ["/etc"]}, NOT_PERMITTED, {}),
    ({"argv": ["true"], "user": "no-such-user"}, NOT_FOUND, {}),
    ({"argv": []}, INVALID, {"key": "argv"}),
    ({"argv": ["a\0b"]}, INVALID, {"key": "argv"}),
    ({"argv": "true"}, INVALID, {"key": "argv"}),
    ({"argv": ["true"], "cwd": "relative"}, INVALID, {"key": "cwd"}),
    ({"argv": ["true"], "env": {"A=B": "c"}}, INVALID, {"key": "env"}),
    ({"argv": ["true"], "timeout_s": 0}, INVALID, {"key": "timeout_s"}),
    ({"argv": ["true"], "timeout_s": 86401}, INVALID, {"key": "timeout_s"}),
    ({"argv": ["true"], "shell": True}, INVALID, {"key": "shell"}),
    ({}, INVALID, {"key": "argv"}),
]


async def test_commands_that_cannot_be_run(guest: Guest) -> None:
    for method in ("exec_command", "exec_start"):
        for params, code, data in REFUSED_COMMANDS:
            with refused(code, **data):
                await guest.client.call(method, params)
                pytest.fail(f"{method} took {params}")
    for pty in ({"rows": 0, "columns": 80}, {"rows": 24}, {"rows": 24, "columns": 80, "term": "a\nb"}):
        with refused(INVALID, key="pty"):
            await guest.client.call("exec_start", {"argv": ["true"], "pty": pty, "stdout": 4000})
    with refused(INVALID, key="pty"):
        await guest.client.call("exec_start", {"argv": ["true"], "pty": {"rows": 24, "columns": 80}})
    with refused(TOO_LONG):
        await guest.client.call("exec_command", {"argv": ["cat"], "stdin": "x" * 4_200_000})
    assert guest.client.streams._open == {}


# -- sessions and jobs -------------------------------------------------------------------------------------------------


async def test_jobs(guest: Guest) -> None:
    client = guest.client
    job = await client.start_job("exec_start", {"argv": ["sleep", "1005"]})
    listed = (await client.call("job_list"))["jobs"]
    assert [(entry["job"], entry["method"]) for entry in listed] == [(job.number, "exec_start")]
    assert await client.call("job_cancel", {"job": job.number}) == {}
    with refused(CANCELLED) as caught:
        await job.wait(SOON_S)
    assert caught.error is not None and isinstance(caught.error.data, dict) and caught.error.data["signal"] == 9
    for method, params in (
        ("job_cancel", {}),
        ("exec_signal", {"signal": "TERM"}),
        ("exec_resize", {"rows": 1, "columns": 1}),
    ):
        with refused(NOT_FOUND):
            await client.call(method, {"job": job.number, **params})
    again = await client.start_job("exec_start", {"argv": ["true"]})
    assert again.number > job.number and (await again.wait(SOON_S))["exit_code"] == 0


async def test_batches_and_a_thousand_calls_at_once(guest: Guest, there: str) -> None:
    client = guest.client
    assert await client.call_many([("ping", {})] * 2500) == [{}] * 2500
    assert await asyncio.gather(*(client.call("ping") for _ in range(1000))) == [{}] * 1000
    good, bad, unknown = await client.call_many(
        [("file_stat", {"path": there}), ("file_stat", {"path": f"{there}/none"}), ("no_such_method", {})]
    )
    assert good["type"] == "directory"
    check_refusal(bad, NOT_FOUND, {"errno": "ENOENT", "path": f"{there}/none"})
    check_refusal(unknown, -32601, {})


async def test_a_new_session_ends_the_one_before(guest: Guest, there: str) -> None:
    client = guest.client
    before = client.info["session"]
    script = f"trap 'echo hung up > {there}/mark; exit' HUP; echo up; sleep 1006 & wait"
    async with await guest.exec(["sh", "-c", script]) as running:
        await read_until(running, b"up\n")
        assert running.pid is not None
        client._begin_session("the test wants another one")
        with pytest.raises(AgentProtocolError):
            await running.wait(SOON_S)
    await client.wait_until_ready(SOON_S)
    assert client.info["session"] != before
    await wait_until_gone(guest, running.pid)
    assert await guest.read_text(f"{there}/mark") == "hung up\n"


# -- files and trees ---------------------------------------------------------------------------------------------------

ODD_NAMES = (b"new\nline", b"not \xff\xfe utf-8", "é".encode(), b" ", b"-rf", b"\\", b"~", b"*", b"a" * 255, b"..x")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path


def make_tree(top: Path) -> Path:
    """A tree with everything in it that a copy must keep."""
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "empty directory").mkdir(mode=0o711)
    (top / "empty").touch(mode=0o600)
    (top / "content").write_bytes(os.urandom(300_000))
    (top / "tool").write_bytes(b"#!/bin/sh\necho it runs\n")
    (top / "tool").chmod(0o755)
    (top / "sub" / "read-only").write_bytes(b"r")
    (top / "sub" / "read-only").chmod(0o444)
    (top / "sub" / "hard").hardlink_to(top / "content")
    (top / "sub" / "link").symlink_to("../tool")
    (top / "dangling").symlink_to("/no/such/thing")
    os.mkfifo(top / "fifo", 0o640)
    with (top / "sparse").open("wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
        file.truncate(100 << 20)
    for odd in ODD_NAMES:
        (top / "sub" / "deeper" / os.fsdecode(odd)).write_bytes(odd)
    (top / "sub").chmod(0o2750)
    for number, (directory, names, files) in enumerate(os.walk(top, topdown=False)):
        for name in (*files, *names):
            when = 1_500_000_000_123_456_789 + number * 1_000_000_007
            os.utime(Path(directory) / name, ns=(when, when), follow_symlinks=False)
    os.utime(top, ns=(1, 987_654_321))
    return top


def describe_tree(top: Path) -> dict[str, tuple[Any, ...]]:
    """What a copy keeps of each thing in a tree."""
    found: dict[str, tuple[Any, ...]] = {}
    links: dict[int, str] = {}
    for directory, names, files in os.walk(top):
        for path in sorted(Path(directory) / name for name in ("", *names, *files)):
            status = path.lstat()
            name = str(path.relative_to(top))
            content: Any = None
            if stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = (hashlib.sha256(path.read_bytes()).digest(), links.setdefault(status.st_ino, name))
            mode = 0 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
            found[name] = (stat.S_IFMT(status.st_mode), mode, status.st_mtime_ns, content)
    return found


async def test_a_tree_there_and_back_is_the_same(guest: Guest, there: str, here: Path) -> None:
    tree = make_tree(here / "tree")
    told = await guest.put(tree, f"{there}/copy")
    await guest.get(f"{there}/copy", here / "back", keep_special=True)
    expected = describe_tree(tree)
    assert describe_tree(here / "back") == expected
    assert told.entries == len(expected) and told.skipped == 0 and told.changed == []
    assert (here / "back" / "sparse").stat().st_blocks * 512 < 1 << 20
    # And in the guest it is what came back.
    assert (await guest.run([f"{there}/copy/sub/link"])).stdout == b"it runs\n"
    sparse = await guest.stat(f"{there}/copy/sparse")
    assert (sparse["size"], sparse["allocated_bytes"] < 1 << 20) == (100 << 20, True)
    content, hard = [await guest.stat(f"{there}/copy/{name}") for name in ("content", "sub/hard")]
    assert (content["inode"], content["links"]) == (hard["inode"], 2)
    assert (await guest.stat(f"{there}/copy/tool"))["mtime_ns"] == (tree / "tool").stat().st_mtime_ns
    names = {entry["name"] async for entry in guest.list(f"{there}/copy/sub/deeper")}
    assert names == {name.decode("utf-8", "replace") for name in ODD_NAMES}
    digest = (await guest.run(["sha256sum", f"{there}/copy/content"])).stdout.split()[0].decode()
    assert digest == hashlib.sha256((tree / "content").read_bytes()).hexdigest()


async def test_a_copy_means_what_cp_r_means(guest: Guest, there: str, here: Path) -> None:
    """Into an existing directory, as a new name, over a file, several at once, and what cp refuses."""
    (here / "a").mkdir()
    (here / "a" / "one").write_text("1")
    (here / "file").write_text("new")

    async def look() -> list[str]:
        return (await guest.run(["sh", "-c", f"cd {there} && find . | sort"])).stdout.decode().split()[1:]

    await guest.put(here / "a", f"{there}/b")
    assert await look() == ["./b", "./b/one"]
    (here / "a" / "two").write_text("2")
    await guest.put(f"{here}/a/", f"{there}/b/")
    assert await look() == ["./b", "./b/a", "./b/a/one", "./b/a/two", "./b/one"]
    await guest.put([here / "a", here / "file"], f"{there}/b")
    assert await guest.read_text(f"{there}/b/file") == "new"
    await guest.write_text(f"{there}/old", "old", mode=0o640)
    await guest.put(here / "file", f"{there}/old")
    assert await guest.read_text(f"{there}/old") == "new"
    for sources, target in (
        (here / "file", f"{there}/none/"),
        (here / "a", f"{there}/old"),
        ([here / "a", here / "file"], f"{there}/none"),
        ([here / "file"], f"{there}/b/a/../.."),
        (here / "missing", f"{there}/x"),
    ):
        if str(target).endswith(".."):
            await guest.put(sources, target)
            assert await guest.read_text(f"{there}/file") == "new"
            continue
        with pytest.raises(TransferError) as caught:
            await guest.put(sources, target)
        assert caught.value.path and str(caught.value).isprintable()
    with refused(NOT_FOUND, errno="ENOENT"):
        await guest.put(here / "file", f"{there}/no/such/place")
    # And the other way.
    (here / "c").mkdir()
    await guest.get(f"{there}/b", here / "c")
    assert sorted(str(path.relative_to(here)) for path in (here / "c").rglob("*"))[:3] == ["c/b", "c/b/a", "c/b/a/one"]
    await guest.get([f"{there}/old", f"{there}/b/one"], here / "c")
    assert (here / "c" / "old").read_text() == "new"
    with refused(NOT_FOUND, errno="ENOENT", path=f"{there}/none"):
        await guest.get(f"{there}/none", here / "d")
    assert not (here / "d").exists()


async def test_many_small_files(guest: Guest, there: str, here: Path) -> None:
    await copy_many(guest, there, here, 300)


@pytest.mark.slow
async def test_ten_thousand_small_files(guest: Guest, there: str, here: Path) -> None:
    await copy_many(guest, there, here, 10_000)


async def copy_many(guest: Guest, there: str, here: Path, count: int) -> None:
    for number in range(count):
        directory = here / "many" / str(number % 100)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).write_bytes(b"%d" % number)
    copied = await guest.put(here / "many", f"{there}/many")
    assert copied.entries == count + min(count, 100) + 1
    await guest.get(f"{there}/many", here / "back")
    assert describe_tree(here / "back") == describe_tree(here / "many")


@pytest.mark.slow
async def test_a_large_file_there_and_back(guest: Guest, kind: str, here: Path) -> None:
    block = os.urandom(1 << 20)
    with (here / "large").open("wb") as file:
        for number in range(200):
            file.write(number.to_bytes(8, "little") + block[8:])
    place = "/data/large" if kind == "built-in" else "/var/tmp/large"
    seen: list[int] = []
    await guest.put(here / "large", place, durable=True, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 200 << 20
    await guest.get(place, here / "back")
    await guest.remove(place)
    assert (here / "back").read_bytes() == (here / "large").read_bytes()
    await check(guest)


async def test_a_source_that_changes_while_it_is_read(guest: Guest, there: str, here: Path) -> None:
    source = here / "log"
    source.write_bytes(os.urandom(8_000_000))

    def grow(_: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    assert (await guest.put(source, f"{there}/log", progress=grow)).changed == [str(source)]
    whole = await guest.read_bytes(f"{there}/log")
    assert whole[:8_000_000] == source.read_bytes()[:8_000_000]
    script = f"echo go; while :; do echo more >> {there}/log; done"
    async with await guest.exec(["sh", "-c", script]) as writer:
        await read_until(writer, b"go\n")
        copied = await guest.get(f"{there}/log", here / "back")
    assert copied.changed == [f"{there}/log"]
    assert (here / "back").read_bytes().startswith(whole)


async def test_a_full_disk_in_the_guest(guest: Guest, there: str, here: Path) -> None:
    (here / "large").write_bytes(os.urandom(6_000_000))
    await guest.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", there])
    try:
        with refused(FAILED, errno="ENOSPC"):
            await guest.put(here / "large", f"{there}/large")
        with refused(FAILED, errno="ENOSPC"):
            await guest.write_bytes(f"{there}/large", b"x" * 6_000_000)
        assert (await guest.run(["ls", "-A", there])).stdout == b"", "half a file was left"
        await guest.write_text(f"{there}/small", "fits")
        assert await guest.read_text(f"{there}/small") == "fits"
    finally:
        await guest.run(["umount", there])


async def test_a_copy_that_is_given_up_leaves_nothing(guest: Guest, there: str, here: Path) -> None:
    (here / "large").write_bytes(os.urandom(30_000_000))
    begun = asyncio.Event()
    copy = asyncio.create_task(guest.put(here / "large", f"{there}/large", progress=lambda _: begun.set()))
    await begun.wait()
    copy.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copy
    await wait_until(lambda: has_no_job(guest), "the end of the copy")
    assert (await guest.run(["ls", "-A", there])).stdout == b""


async def test_contents_read_and_written(guest: Guest, there: str) -> None:
    path = f"{there}/file"
    call = guest.client.call
    data = os.urandom(2_000_000)
    await guest.write_bytes(path, data, mode=0o640)
    assert await guest.read_bytes(path) == data
    assert (await guest.stat(path))["mode"] == 0o640
    await guest.write_bytes(path, b"")
    assert ((await guest.stat(path))["size"], (await guest.stat(path))["mode"]) == (0, 0o640)
    await guest.write_text(path, "ä€\n", mode=0o600)
    assert (await guest.stat(path))["mode"] == 0o600
    await guest.write_text(path, "more\n", append=True)
    assert await guest.read_text(path) == "ä€\nmore\n"
    part = await call("file_read", {"path": path, "offset": 0, "length": 3})
    assert (part["text"], part["bytes"], part["size"], part["end"]) == ("ä", 2, 11, False)
    assert (await call("file_read", {"path": path, "offset": 6}))["text"] == "more\n"
    assert (await call("file_write", {"path": path, "text": "M", "offset": 6})) == {"bytes": 1, "size": 11}
    assert await guest.read_text(path) == "ä€\nMore\n"
    with refused(EXISTS, errno="EEXIST", path=path):
        await call("file_write", {"path": path, "text": "", "exclusive": True})
    with refused(NOT_FOUND, errno="ENOENT", path=f"{there}/none"):
        await call("file_write", {"path": f"{there}/none", "text": "", "create": False})
    await call("file_write", {"path": path, "text": "d", "durable": True, "create": False})
    with pytest.raises(TransferError):
        await guest.read_bytes("/dev/../proc/kallsyms", limit_bytes=1000)
    assert "MemTotal" in await guest.read_text("/proc/meminfo")
    swappiness = await guest.read_text("/proc/sys/vm/swappiness")
    await guest.write_text("/proc/sys/vm/swappiness", "33", append=True)
    assert await guest.read_text("/proc/sys/vm/swappiness") == "33\n"
    await guest.write_text("/proc/sys/vm/swappiness", swappiness, append=True)


async def test_names_made_changed_and_removed(guest: Guest, there: str) -> None:
    await guest.mkdir(f"{there}/a/b/c", parents=True, mode=0o700)
    assert (await guest.stat(f"{there}/a/b/c"))["mode"] == 0o700
    await guest.mkdir(f"{there}/a/b/c", parents=True)
    with refused(EXISTS, errno="EEXIST", path=f"{there}/a"):
        await guest.mkdir(f"{there}/a")
    await guest.write_text(f"{there}/one", "1")
    await guest.write_text(f"{there}/two", "2")
    with refused(EXISTS, errno="EEXIST"):
        await guest.rename(f"{there}/one", f"{there}/two", replace=False)
    await guest.rename(f"{there}/one", f"{there}/two")
    assert await guest.read_text(f"{there}/two") == "1"
    await guest.run(["ln", "-s", "two", f"{there}/link"])
    assert (await guest.stat(f"{there}/link"))["type"] == "file"
    link = await guest.stat(f"{there}/link", follow=False)
    assert (link["type"], link["target"]) == ("symlink", "two")
    for number in range(450):
        await guest.client.call("file_write", {"path": f"{there}/a/{number:03}", "text": ""})
    names = [entry["name"] async for entry in guest.list(f"{there}/a")]
    assert names == sorted([*(f"{number:03}" for number in range(450)), "b"])
    with refused(FAILED, errno="ENOTEMPTY", path=f"{there}/a"):
        await guest.remove(f"{there}/a")
    await guest.run(["ln", "-s", f"{there}/two", f"{there}/a/out"])
    assert await guest.remove(f"{there}/a", recursive=True) == 454
    assert await guest.read_text(f"{there}/two") == "1"


async def test_changes_are_told(guest: Guest, there: str) -> None:
    await guest.mkdir(f"{there}/sub")
    watch = guest.watch(there, recursive=True)
    async with contextlib.aclosing(watch), asyncio.timeout(SOON_S):  # type: ignore[type-var]
        first = asyncio.ensure_future(anext(watch))
        await wait_until(lambda: has_job(guest), "the watch")
        await guest.write_text(f"{there}/sub/new", "x")
        change = await first
        seen = [(change["change"], change["path"])]
        await guest.rename(f"{there}/sub/new", f"{there}/moved")
        await guest.remove(f"{there}/moved")
        while ("deleted", "moved") not in seen:
            change = await anext(watch)
            seen.append((change["change"], change["path"]))
    assert any(path == "sub/new" for _, path in seen), seen
    doomed = guest.watch(f"{there}/sub")
    waiting = asyncio.ensure_future(anext(doomed))
    await wait_until(lambda: has_job(guest), "the watch")
    await guest.remove(f"{there}/sub")
    with refused(NOT_FOUND):
        await waiting
        async for _ in doomed:
            pass


REFUSED_FILES: list[tuple[str, dict[str, Any], int, dict[str, str]]] = [
    ("file_read", {"path": "T/none"}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
    ("file_read", {"path": "T"}, FAILED, {"errno": "EISDIR", "path": "T"}),
    ("file_read", {"path": "T/file/x"}, NOT_FOUND, {"errno": "ENOTDIR"}),
    ("file_read", {"path": "T/loop"}, FAILED, {"errno": "ELOOP"}),
    ("file_read", {"path": "T/" + "n" * 256}, FAILED, {"errno": "ENAMETOOLONG"}),
    ("file_read", {"path": "relative"}, INVALID, {"key": "path"}),
    ("file_read", {"path": "/nul\0"}, INVALID, {"key": "path"}),
    ("file_read", {"path": "/" + "x" * 4095}, INVALID, {"key": "path"}),
    ("file_read", {"path": "T/file", "offset": -1}, INVALID, {"key": "offset"}),
    ("file_read", {}, INVALID, {"key": "path"}),
    ("file_read", {"path": "/dev/zero"}, FAILED, {"path": "/dev/zero"}),
    ("file_read", {"path": "T/fifo"}, FAILED, {"path": "T/fifo"}),
    ("file_write", {"path": "T", "text": ""}, FAILED, {"errno": "EISDIR", "path": "T"}),
    ("file_write", {"path": "T/none/x", "text": ""}, NOT_FOUND, {"errno": "ENOENT"}),
    ("file_write", {"path": "/sys/kernel/uevent_seqnum", "text": "1", "append": True}, NOT_PERMITTED, {}),
    ("file_write", {"path": "T/x"}, INVALID, {}),
    ("file_write", {"path": "T/x", "text": "", "mode": 0o10000}, INVALID, {"key": "mode"}),
    ("file_stat", {"path": "T/none"}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
    ("file_list", {"path": "T/none"}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
    ("file_list", {"path": "T/file"}, NOT_FOUND, {"errno": "ENOTDIR", "path": "T/file"}),
    ("file_list", {"path": "T", "limit": 1001}, INVALID, {"key": "limit"}),
    ("file_mkdir", {"path": "T/none/x"}, NOT_FOUND, {"errno": "ENOENT"}),
    ("file_mkdir", {"path": "T/file"}, EXISTS, {"errno": "EEXIST", "path": "T/file"}),
    ("file_rename", {"path": "T/none", "to": "T/x"}, NOT_FOUND, {"errno": "ENOENT"}),
    ("file_rename", {"path": "T/file", "to": "/proc/x"}, FAILED, {"errno": "EXDEV"}),
    ("file_remove", {"path": "T/none"}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
    ("file_remove", {"path": "/"}, FAILED, {"errno": "EINVAL", "path": "/"}),
    ("file_watch", {"path": "T/none"}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
    ("file_put", {"path": "T/x", "stream": 0}, INVALID, {"key": "stream"}),
    ("file_get", {"path": "T/none", "stream": 4001}, NOT_FOUND, {"errno": "ENOENT", "path": "T/none"}),
]


async def test_files_that_cannot_be_had(guest: Guest, there: str, here: Path) -> None:
    await guest.write_text(f"{there}/file", "x")
    await guest.run(["sh", "-c", f"cd {there}; ln -s loop loop; mkfifo fifo"])

    def place(value: Any) -> Any:
        return there + value[1:] if isinstance(value, str) and value[:1] == "T" else value

    for method, params, code, data in REFUSED_FILES:
        with refused(code, **{key: place(value) for key, value in data.items()}):
            await guest.client.call(method, {key: place(value) for key, value in params.items()})
            pytest.fail(f"{method} took {params}")
    with refused(FAILED):
        await guest.get("/dev/zero", here / "back")
    assert not list(here.iterdir())


async def test_a_read_only_file_system(guest: Guest, there: str, here: Path) -> None:
    (here / "file").write_text("x")
    await guest.run(["mount", "-t", "tmpfs", "-o", "ro", "still", there])
    try:
        for attempt in (
            guest.put(here / "file", f"{there}/file"),
            guest.write_text(f"{there}/file", "x"),
            guest.mkdir(f"{there}/new"),
        ):
            with refused(NOT_PERMITTED, errno="EROFS"):
                await attempt
    finally:
        await guest.run(["umount", there])


# -- configurations ----------------------------------------------------------------------------------------------------


async def test_an_agent_that_works_as_somebody_else(vm: VM, kind: str, guest: Guest, there: str, here: Path) -> None:
    """What the user may not, the host may not; what it makes belongs to the user."""
    (here / "file").write_text("x")
    await guest.write_text(f"{there}/secret", "root's", mode=0o600)
    await guest.client.call("file_mkdir", {"path": f"{there}/open", "mode": 0o777})
    async with open_second_agent(vm, kind, {"run_as": "nobody"}) as nobody:
        with refused(NOT_PERMITTED, errno="EACCES", path=f"{there}/secret"):
            await nobody.read_text(f"{there}/secret")
        with refused(NOT_PERMITTED, errno="EACCES"):
            await nobody.get(f"{there}/secret", here / "secret")
        with refused(NOT_PERMITTED, errno="EACCES"):
            await nobody.put(here / "file", f"{there}/new")
        with refused(NOT_PERMITTED, errno="EACCES"):
            await nobody.remove(f"{there}/secret")
        with refused(NOT_PERMITTED):
            await nobody.run(["true"], user="root")
        await nobody.put(here / "file", f"{there}/open")
        assert (await nobody.run(["id", "-u"])).stdout == b"65534\n"
    assert (await guest.stat(f"{there}/open/file"))["uid"] == 65534
    assert await guest.read_text(f"{there}/secret") == "root's"


LIMITS: dict[str, Any] = {
    "exec_concurrent": 2,
    "exec_output_bytes": 1000,
    "exec_max_timeout_s": 2,
    "file_text_bytes": 100,
    "transfer_bytes": 100_000,
    "transfer_entries": 5,
    "transfers_concurrent": 1,
    "watch_directories": 2,
}


async def test_limits_of_a_configuration(vm: VM, kind: str, guest: Guest, there: str, here: Path) -> None:
    (here / "large").write_bytes(bytes(range(256)) * 1000)
    for number in range(9):
        (here / "many" / str(number)).mkdir(parents=True)
    async with open_second_agent(vm, kind, LIMITS) as limited:
        call = limited.client.call
        with refused(TOO_LARGE):
            await limited.put(here / "large", f"{there}/large")
        with refused(TOO_LARGE):
            await limited.put(here / "many", f"{there}/many")
        await guest.put([here / "large", here / "many"], there)
        with refused(TOO_LARGE):
            await limited.get(f"{there}/large", here / "back")
        with refused(TOO_LARGE):
            await limited.get(f"{there}/many", here / "back")
        with refused(TOO_LARGE):
            await call("file_write", {"path": f"{there}/text", "text": "x" * 101})
        assert (await call("file_read", {"path": "/proc/cpuinfo"}))["bytes"] <= 100
        with refused(BUSY):
            async for _ in limited.watch(f"{there}/many", recursive=True):
                pass
        async with await limited.exec(["sleep", "1000"]), await limited.exec(["sleep", "1000"]):
            with refused(BUSY):
                await limited.exec(["true"])
        ended = await call("exec_command", {"argv": ["sh", "-c", "head -c 5000 /dev/zero | tr '\\0' x; sleep 1000"]})
        assert (ended["timed_out"], len(ended["stdout"]), ended["truncated"]) == (True, 1000, True)
        stream = limited.client.streams.open_outgoing()
        held = await limited.client.start_job("file_put", {"path": f"{there}/held", "stream": stream.number})
        with refused(BUSY):
            await limited.get(f"{there}/many/1", here / "back")
        stream.give_up("the test has seen it")
        with pytest.raises(AgentCallError):
            await held.wait(SOON_S)
        await check(limited)
    names = sorted([entry["name"] async for entry in guest.list(there)])
    assert names == ["large", "many"], names


async def test_a_rate_limit(vm: VM, kind: str) -> None:
    async with open_second_agent(vm, kind, {"calls_per_second": 5, "calls_burst": 10}) as slow:
        answers = await slow.client.call_many([("ping", {})] * 40)
        busy = [answer for answer in answers if isinstance(answer, AgentCallError)]
        assert 25 <= len(busy) <= 35
        check_refusal(busy[0], BUSY, {})
        assert isinstance(busy[0].data, dict) and 0 < busy[0].data["retry_after_s"] <= 1
        await asyncio.sleep(busy[0].data["retry_after_s"] + 0.1)  # that is what the answer asked for
        assert await slow.client.call("ping") == {}


STRICT = json.loads((ROOT / "guest" / "packaging" / "strict.json").read_text()) | {
    "audit_log": "/run/strict-audit.log",
    "calls_per_second": 0,
}
INSIDE = "/srv/unhinged"


async def test_a_hostile_host_and_the_strict_profile(vm: VM, kind: str, guest: Guest, here: Path) -> None:
    """No call gets out of the configured paths, whatever leads there; only questions and files are answered."""
    script = f"mkdir -p {INSIDE}/sub /var/lib/unhinged-agent; cd {INSIDE}; ln -s /etc out; ln -s /etc/passwd file"
    script += "; ln -s ../../etc up; ln -s /proc/self/root root; ln -s sub good; echo mine > sub/mine; mkfifo fifo"
    await guest.run(["sh", "-c", script])
    await guest.write_text("/tmp/victim", "untouched")
    before = await guest.read_text("/etc/passwd")
    (here / "tree" / "sub").mkdir(parents=True)
    (here / "tree" / "sub" / "escape").write_text("escaped")
    async with open_second_agent(vm, kind, STRICT) as strict:
        call = strict.client.call
        assert await strict.read_text(f"{INSIDE}/good/mine") == "mine\n"
        link = f"{INSIDE}/file"
        ways = [link, f"{INSIDE}/out/passwd", f"{INSIDE}/up/passwd", f"{INSIDE}/root/etc/passwd"]
        ways += [f"{INSIDE}/../../etc/passwd", f"{INSIDE}/sub/../../../etc/passwd"]
        ways += [
            "/etc/passwd",
            "/proc/self/root/etc/passwd",
            "/proc/1/cwd/etc/passwd",
            "/tmp/victim",
            "/srv/unhinged-not/x",
        ]
        for path in ways:
            for method, params in (
                ("file_read", {}),
                ("file_write", {"text": "x"}),
                ("file_write", {"text": "x", "append": True}),
                ("file_stat", {}),
                ("file_list", {}),
                ("file_remove", {"recursive": True}),
                ("file_watch", {}),
                ("file_get", {"stream": 9001}),
                ("file_put", {"stream": 9002}),
            ):
                if (path, method) == (link, "file_remove"):
                    continue  # removes the link itself, which lies inside
                with refused(NOT_PERMITTED):
                    answer = await call(method, {"path": path, **params})
                    pytest.fail(f"{method} took {path}: {answer}")
            with refused(NOT_PERMITTED):
                await call("file_mkdir", {"path": f"{path}/new", "parents": True})
            if path == link:
                continue  # it is the link itself that is renamed and replaced
            with refused(NOT_PERMITTED):
                await call("file_rename", {"path": f"{INSIDE}/sub/mine", "to": path})
            with refused(NOT_PERMITTED):
                await call("file_rename", {"path": path, "to": f"{INSIDE}/stolen"})
        for target in (f"{INSIDE}/out", f"{INSIDE}/root/tmp", "/tmp"):
            with refused(NOT_PERMITTED):
                await strict.put(here / "tree", target)
        # A tree whose own link leads out: what comes behind it in another copy does not follow it.
        (here / "link").mkdir()
        (here / "link" / "sub").symlink_to("/tmp")
        await strict.put(here / "link", f"{INSIDE}/planted")
        with pytest.raises((AgentCallError, TransferError)):
            await strict.put(here / "tree" / "sub", f"{INSIDE}/planted/sub/sub")
        for method, params in OTHER_METHODS:
            with refused(NOT_PERMITTED, key="method_allow"):
                await call(method, params)
        assert not {"exec_command", "exec_start", "shutdown", "user_create"} & set(strict.client.info["capabilities"])
        await strict.put(here / "tree", INSIDE)
        await strict.get(f"{INSIDE}/tree", here / "back")
        assert describe_tree(here / "back") == describe_tree(here / "tree")
        await check_audit(guest)
    assert await guest.read_text("/etc/passwd") == before
    assert await guest.read_text("/tmp/victim") == "untouched"
    names = (await guest.run(["sh", "-c", "ls -A /tmp /etc; ls -A /srv"])).stdout.decode()
    assert "escape" not in names and "stolen" not in names and "unhinged-part" not in names
    await guest.run(["rm", "-rf", INSIDE, "/tmp/victim", "/run/strict-audit.log"])


OTHER_METHODS: list[tuple[str, dict[str, Any]]] = [
    ("exec_command", {"argv": ["true"]}),
    ("exec_start", {"argv": ["true"]}),
    ("process_signal", {"pid": 1, "signal": "TERM"}),
    ("service_start", {"name": "network"}),
    ("user_create", {"name": "mallory"}),
    ("ssh_key_add", {"user": "root", "keys": ["ssh-ed25519 AAAA"]}),
    ("set_hostname", {"hostname": "owned"}),
    ("set_time", {}),
    ("package_install", {"names": ["hello"]}),
    ("log_follow", {"path": "/etc/passwd", "output": 9003}),
    ("cloud_init_apply", {"directives": {"runcmd": ["id"]}}),
    ("filesystem_freeze", {}),
    ("shutdown", {}),
    ("reboot", {}),
]


async def check_audit(guest: Guest) -> None:
    """Every call is written down: what was refused, what was done, and nothing of a file's content."""

    async def written() -> bool:
        _, refused_last, after = (await guest.read_text("/run/strict-audit.log")).rpartition('"reboot"')
        return bool(refused_last) and "file_get" in after

    await wait_until(written, "the last call in the audit log")
    text = await guest.read_text("/run/strict-audit.log")
    lines = [json.loads(line) for line in text.splitlines()]
    assert {line["method"] for line in lines} >= {"exec_command", "file_read", "file_put", "reboot", "hello"}
    assert {line["code"] for line in lines if line["method"] == "exec_command"} == {NOT_PERMITTED}
    assert "escaped" not in text
    assert (await guest.stat("/run/strict-audit.log"))["mode"] == 0o600
