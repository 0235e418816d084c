"""Runs a child process to its end or its deadline (floor 2); the accelerator probe, disk tools and faces use it."""

from __future__ import annotations

import asyncio
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

OUTPUT_LIMIT_BYTES = 1024 * 1024
"""What is kept of each of stdout and stderr; the rest is read and dropped, so the child never blocks."""


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
    LOG.debug("run: %s", " ".join(argv))
    started = time.monotonic()
    try:
        with _open_stdin(stdin) as source:
            starting = asyncio.ensure_future(
                asyncio.get_running_loop().subprocess_exec(
                    lambda: _Collector(on_stdout, on_stderr),
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
        yield asyncio.subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def kill_group(process_group: int) -> None:
    """Kill what is left of a process group; none left is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_group, signal.SIGKILL)


class _Collector(asyncio.SubprocessProtocol):
    """Keeps the beginning of what a child process writes, and knows when it has ended and when its pipes have."""

    def __init__(self, on_stdout: Callable[[bytes], bool] | None, on_stderr: Callable[[bytes], None] | None) -> None:
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self.outputs = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self._open = {1, 2}
        self._pid = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.outputs[fd]
        kept += data[: max(0, OUTPUT_LIMIT_BYTES - len(kept))]
        enough = fd == 1 and self._on_stdout is not None and self._on_stdout(data)
        if enough and not self.exited.is_set():
            kill_group(self._pid)
        if fd == 2 and self._on_stderr is not None:
            self._on_stderr(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()
