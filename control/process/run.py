"""Runs a child process to its end or its deadline (floor 2); the accelerator probe, disk tools and faces use it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from control.errors import HostError
from control.log import LOG
from control.streams import Completed

OUTPUT_LIMIT_BYTES = 1024 * 1024
"""What is kept of each of stdout and stderr; the rest is read and dropped, so the child never blocks."""


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run `argv` (no shell, stdin empty, a process group of its own) and return what it left.

    At the deadline, and when the caller is cancelled, the whole process group is killed and reaped.

    Raises:
        HostError: The program cannot be started (missing, not executable); nothing is left running.
    """
    LOG.debug("run: %s", " ".join(argv))
    started = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}", hint="make doctor") from error
    outputs = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    readers = [asyncio.create_task(_read_bounded(stream)) for stream in outputs]
    return_code: int | None = None
    try:
        async with asyncio.timeout(timeout_s):
            return_code = await process.wait()
    except TimeoutError:
        LOG.debug("killed at its deadline of %g s: %s", timeout_s, argv[0])
    finally:
        kill_group(process.pid)
        await process.wait()
        stdout, stderr = await asyncio.gather(*readers)
    return Completed(tuple(argv), return_code, stdout, stderr, time.monotonic() - started)


def kill_group(process_group: int) -> None:
    """Kill what is left of a process group; none left is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process_group, signal.SIGKILL)


async def _read_bounded(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: max(0, OUTPUT_LIMIT_BYTES - len(kept))]
    return bytes(kept)
