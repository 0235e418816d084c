"""Runs a child process to its end or its deadline (floor 2); the accelerator probe, disk tools and faces use it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from control.errors import HostError
from control.log import LOG
from control.streams import Completed

PIPES_WAIT_S = 2.0
"""What a child wrote before its end is read within milliseconds of it, also on a loaded host."""


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    on_stdout: Callable[[bytes], bool] | None = None,
    on_stderr: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run `argv` (no shell, a process group of its own) and return what it left.

    At the deadline, and when the caller is cancelled, the whole process group is killed and reaped.

    Args:
        stdin: What it can read, as a file.
        on_stdout: Told what it writes to stdout, as it comes; the group is killed when it says that this is enough.
        on_stderr: Told what it says on stderr, as it comes.

    Raises:
        HostError: The program cannot be started (missing, not executable); nothing is left running.
    """
    import asyncio  # whoever may have to run something, and does not, must not pay for an event loop

    from control.process.collector import Collector

    LOG.debug("run: %s", " ".join(argv))
    started = time.monotonic()
    try:
        with _open_stdin(stdin) as source:
            starting = asyncio.ensure_future(
                asyncio.get_running_loop().subprocess_exec(
                    lambda: Collector(on_stdout, on_stderr),
                    *argv,
                    stdin=source,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    cwd=cwd,
                    env=env,
                    start_new_session=True,
                )
            )
            try:
                transport, collector = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # Cancelled itself, it would end the program and leave what that has started by then.
                transport, collector = await starting
                kill_group(transport.get_pid())
                await collector.exited.wait()
                transport.close()
                raise
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}", hint="make doctor") from error
    return_code: int | None = None
    try:
        async with asyncio.timeout(timeout_s):
            await collector.exited.wait()
        return_code = transport.get_returncode()
    except TimeoutError:
        LOG.debug("killed at its deadline of %g s: %s", timeout_s, argv[0])
    finally:
        kill_group(transport.get_pid())
        await collector.exited.wait()
        # A descendant in a session of its own is out of our reach, and may hold the pipes open for as long as it likes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PIPES_WAIT_S):
                await collector.drained.wait()
        transport.close()
        await asyncio.sleep(0)  # the pipes close in the next turn of the event loop
    stdout, stderr = bytes(collector.outputs[1]), bytes(collector.outputs[2])
    return Completed(tuple(argv), return_code, stdout, stderr, time.monotonic() - started)


@contextlib.contextmanager
def _open_stdin(data: bytes) -> Iterator[int]:
    """A file, because it cannot be full: a child that does not read it stands in nobody's way."""
    if not data:
        with Path(os.devnull).open("rb") as nothing:
            yield nothing.fileno()
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def kill_group(process_group: int) -> None:
    """Kill what is left of a process group; none left is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_group, signal.SIGKILL)
