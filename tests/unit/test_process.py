"""Child processes: run to their end or deadline, held by a pidfd, and never orphaned (floor 2)."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from control.errors import HostError
from control.process.collector import OUTPUT_LIMIT_BYTES
from control.process.handle import ProcessHandle, find_process, read_start_ticks, start_keeper, start_process
from control.process.run import run

PYTHON = sys.executable


def wait_for_end(pid: int, timeout_s: float) -> bool:
    """Wait until the process `pid`, no child of ours, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    try:
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def wait_for_text(path: Path, timeout_s: float = 10.0) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()).endswith("\n"):
            return text
        time.sleep(0.005)
    raise AssertionError(f"{path} was not written")


# -- run ---------------------------------------------------------------------------------------------------------------


async def test_what_a_program_leaves() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=10)
    assert (done.return_code, done.stdout, done.stderr, done.timed_out) == (3, b"out\n", b"err\n", False)


async def test_stdin_is_empty_and_nothing_goes_through_a_shell(tmp_path: Path) -> None:
    assert (await run(["cat"], timeout_s=10)).stdout == b""
    done = await run(["pwd"], timeout_s=10, cwd=tmp_path)
    assert done.stdout.decode().strip() == str(tmp_path)
    assert (await run(["echo", "$HOME; 'x"], timeout_s=10)).stdout == b"$HOME; 'x\n"
    assert (await run(["env"], timeout_s=10, env={"ONLY": "this"})).stdout == b"ONLY=this\n"


async def test_a_program_is_given_something_to_read_and_need_not_read_it() -> None:
    text = b"x" * (1 << 20)
    assert (await run(["cat", "/dev/stdin"], timeout_s=10, stdin=text)).stdout == text
    assert (await run(["true"], timeout_s=10, stdin=text)).return_code == 0


async def test_what_a_program_writes_is_told_at_once_and_can_be_enough() -> None:
    said: list[bytes] = []
    script = "echo err >&2; echo one; echo two; exec sleep 600"
    done = await run(
        ["sh", "-c", script], timeout_s=30, on_stdout=lambda data: data.endswith(b"two\n"), on_stderr=said.append
    )
    assert done.return_code == -signal.SIGKILL and done.stdout == b"one\ntwo\n" and done.seconds < 20
    assert said == [b"err\n"]


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no-such-program"):
        await run(["no-such-program"], timeout_s=10)
    (tmp_path / "file").write_text("x")
    with pytest.raises(HostError, match="Permission denied"):
        await run([str(tmp_path / "file")], timeout_s=10)


async def test_output_beyond_the_bound_is_read_and_dropped() -> None:
    done = await run(["head", "-c", str(3 * OUTPUT_LIMIT_BYTES), "/dev/zero"], timeout_s=30)
    assert done.return_code == 0
    assert len(done.stdout) == OUTPUT_LIMIT_BYTES


async def test_the_deadline_kills_grandchildren_and_keeps_the_output(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"echo before; sleep 600 & echo $! > {pids}; wait"
    done = await run(["sh", "-c", script], timeout_s=0.5)
    assert done.timed_out
    assert done.stdout == b"before\n"
    assert wait_for_end(int(wait_for_text(pids)), 5)


async def test_a_grandchild_in_a_session_of_its_own_cannot_hold_us(tmp_path: Path) -> None:
    """It is out of reach of a signal to the group, and keeps our pipe open: the deadline holds all the same."""
    pids = tmp_path / "pids"
    script = f"setsid sh -c 'echo $$ > {pids}; exec sleep 20' & while ! [ -s {pids} ]; do :; done; echo before"
    started = time.monotonic()
    done = await run(["sh", "-c", script], timeout_s=10)
    took = time.monotonic() - started
    os.kill(int(wait_for_text(pids)), signal.SIGKILL)
    assert took < 10
    assert done.stdout == b"before\n"
    assert done.return_code == 0


async def test_cancelling_kills_the_group(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    work = asyncio.create_task(run(["sh", "-c", f"sleep 600 & echo $! > {pids}; wait"], timeout_s=600))
    pid = int(await asyncio.to_thread(wait_for_text, pids))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert wait_for_end(pid, 5)


# -- the handle --------------------------------------------------------------------------------------------------------


async def test_a_process_that_ends_wakes_everybody(tmp_path: Path) -> None:
    with start_process(
        ["sh", "-c", "echo said; echo meant >&2; exit 7"],
        output=tmp_path / "out",
        errors=tmp_path / "log",
        cwd=tmp_path,
    ) as process:
        async with asyncio.timeout(10):
            assert await asyncio.gather(*(process.wait() for _ in range(3))) == [7, 7, 7]
        assert (process.running, process.return_code) == (False, 7)
        process.send_signal(signal.SIGTERM)  # nobody there: fine
        assert process.cpu_seconds() == 0.0
    assert ((tmp_path / "out").read_text(), (tmp_path / "log").read_text()) == ("said\n", "meant\n")


async def test_a_killed_process_shows_its_signal(tmp_path: Path) -> None:
    with start_process(["sleep", "600"], output=tmp_path / "out", errors=tmp_path / "log", cwd=tmp_path) as process:
        assert process.running
        assert process.start_ticks == read_start_ticks(process.pid)
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            assert await process.wait() == -signal.SIGKILL


async def test_a_process_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no-such"):
        start_process(["no-such-program"], output=tmp_path / "out", errors=tmp_path / "log", cwd=tmp_path)
    with pytest.raises(HostError):
        start_process(["true"], output=tmp_path / "no" / "out", errors=tmp_path / "log", cwd=tmp_path)


async def test_an_adopted_process_is_watched_and_ended(tmp_path: Path) -> None:
    with start_process(["sleep", "600"], output=tmp_path / "out", errors=tmp_path / "log", cwd=tmp_path) as process:
        adopted = find_process(process.pid, process.start_ticks)
        assert adopted is not None
        with adopted:
            assert (adopted.running, adopted.return_code) == (True, None)
            waiting = [asyncio.create_task(adopted.wait()) for _ in range(2)]
            await asyncio.sleep(0)
            adopted.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await asyncio.gather(*waiting) == [None, None]
            assert not adopted.running
        assert await process.wait() == -signal.SIGTERM


def test_a_number_that_was_used_again_is_not_adopted(tmp_path: Path) -> None:
    """Our own number, with the start time of another: what a reused pid looks like."""
    ticks = read_start_ticks(os.getpid())
    assert ticks is not None
    assert find_process(os.getpid(), ticks - 1) is None
    with find_process(os.getpid(), ticks) or pytest.fail("we run") as found:
        assert found.running


def test_numbers_of_nobody_are_not_adopted() -> None:
    assert find_process(2**22 + 1, 1) is None
    assert find_process(0, 0) is None
    assert find_process(-1, 0) is None


def test_a_zombie_does_not_count_as_running(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    try:
        assert wait_for_end(child.pid, 10)
        assert read_start_ticks(child.pid) is None
        assert find_process(child.pid, 1) is None
    finally:
        child.wait()


def test_a_name_with_blanks_and_parentheses_does_not_shift_the_fields(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with start_process(
        [str(program), "600"], output=tmp_path / "out", errors=tmp_path / "log", cwd=tmp_path
    ) as process:
        try:
            assert process.start_ticks > 0
            assert process.start_ticks == read_start_ticks(process.pid)
            mine = read_start_ticks(os.getpid())
            assert mine is not None
            assert mine <= process.start_ticks
        finally:
            process.send_signal(signal.SIGKILL)
            asyncio.run(process.wait())


# -- the keeper --------------------------------------------------------------------------------------------------------

# A launcher as small as can be: keeps a process that, like QEMU, names its pid file on its command line.
LAUNCHER = """
import asyncio, sys
from pathlib import Path
from control.process.handle import start_keeper, start_process
folder, then = Path(sys.argv[1]), sys.argv[2]
pid_file = folder / "pid"
kept = "import os,sys,time; open(sys.argv[1],'w').write(str(os.getpid())+chr(10)); time.sleep(600)"
with start_keeper(pid_file) as keeper:
    argv = [sys.executable, "-c", kept, str(pid_file)]
    process = start_process(argv, output=folder / "out", errors=folder / "log", cwd=folder)
    while not (pid_file.exists() and pid_file.read_text().endswith(chr(10))):
        pass
    print(process.pid, flush=True)
    sys.stdin.readline()
    if then == "release":
        process.release()
        keeper.release()
    process.close()
"""


def start_launcher(folder: Path, then: str) -> tuple[subprocess.Popen[str], int]:
    script = folder / "launcher.py"
    script.write_text(textwrap.dedent(LAUNCHER))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    launcher = subprocess.Popen(
        [PYTHON, str(script), str(folder), then], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    assert launcher.stdout is not None
    return launcher, int(launcher.stdout.readline())


def finish(launcher: subprocess.Popen[str]) -> None:
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.close()
    launcher.stdout.close()
    launcher.wait(10)


def test_killing_the_launcher_ends_what_it_kept(tmp_path: Path) -> None:
    launcher, kept = start_launcher(tmp_path, "never")
    launcher.kill()
    try:
        assert wait_for_end(kept, 10)
    finally:
        finish(launcher)


def test_what_was_released_lives_on(tmp_path: Path) -> None:
    launcher, kept = start_launcher(tmp_path, "release")
    finish(launcher)
    alive = not wait_for_end(kept, 0.3)
    os.kill(kept, signal.SIGKILL)
    assert alive
    assert launcher.returncode == 0


def test_a_number_in_the_pid_file_that_means_another_by_now_is_left_alone(tmp_path: Path) -> None:
    """QEMU was killed and left its pid file; its number was used again before the launcher was killed too."""
    launcher, kept = start_launcher(tmp_path, "never")
    os.kill(kept, signal.SIGKILL)
    innocent = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (tmp_path / "pid").write_text(f"{innocent.pid}\n")
    launcher.kill()
    finish(launcher)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            innocent.wait(1)
    finally:
        innocent.kill()
        innocent.wait()


def test_the_keeper_goes_when_it_is_dismissed(tmp_path: Path) -> None:
    with start_keeper(tmp_path / "pid"):
        pass  # that nothing is left is what every test is asked


def test_the_keeper_goes_when_there_was_nothing_to_keep(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from control.process.handle import start_keeper\n"
        "with start_keeper(Path(sys.argv[1])) as keeper: print(keeper._child.pid, flush=True); os._exit(1)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    launcher = subprocess.run(
        [PYTHON, "-c", script, str(tmp_path / "pid")], stdout=subprocess.PIPE, env=env, check=False, timeout=30
    )
    assert wait_for_end(int(launcher.stdout), 10)


def test_a_handle_is_a_context_manager(tmp_path: Path) -> None:
    process = start_process(["true"], output=tmp_path / "out", errors=tmp_path / "log", cwd=tmp_path)
    assert isinstance(process, ProcessHandle)
    asyncio.run(process.wait())
    process.close()
    process.close()
