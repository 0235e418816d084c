"""A console's log whose oldest blocks were given back: what is read of it has no zeros that nobody said."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from control.console.channel import ConsoleChannel
from control.console.follow import REST_S, follow

HOLE = 300 << 20


def make_log(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(HOLE)
        file.seek(HOLE)
        file.write(b"what is left")
    return path


async def test_a_channel_goes_on_behind_the_hole(tmp_path: Path) -> None:
    channel = ConsoleChannel(make_log(tmp_path / "serial"))
    channel.finish()
    assert b"".join([chunk async for chunk in channel.chunks()]) == b"what is left"
    assert channel.missed == HOLE
    channel.close()


def test_who_follows_goes_on_behind_the_hole(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    writer = os.pidfd_open(child)
    with make_log(tmp_path / "serial").open("rb") as log:
        assert b"".join(follow(log.fileno(), writer)) == b"what is left"
    os.close(writer)
    os.waitpid(child, 0)


async def test_zeros_that_were_said_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "serial"
    log.write_bytes(bytes(100_000) + b"end")
    channel = ConsoleChannel(log)
    channel.finish()
    assert b"".join([chunk async for chunk in channel.chunks()]) == bytes(100_000) + b"end"
    assert channel.missed == 0
    channel.close()


BYTE_BY_BYTE = """
import sys, time
with open(sys.argv[1], "ab", buffering=0) as log:
    for _ in range(2000):
        log.write(b"x")
        time.sleep(0.0001)
"""
"""As QEMU does for a serial port. It sleeps so that whoever reads keeps up with each byte, and would look for each."""


async def test_a_channel_is_not_woken_for_each_byte(tmp_path: Path) -> None:
    log = tmp_path / "serial"
    log.touch()
    channel = ConsoleChannel(log)
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", BYTE_BY_BYTE, str(log))

    async def finish() -> None:
        assert await writer.wait() == 0
        channel.finish()

    began = time.monotonic()
    ending = asyncio.create_task(finish())
    chunks = [chunk async for chunk in channel.chunks()]
    looks = (time.monotonic() - began) / REST_S
    await ending
    channel.close()
    assert b"".join(chunks) == b"x" * 2000
    assert 10 < len(chunks) <= looks + 2, "as it comes, and not a chunk for each byte"


def test_who_follows_is_not_woken_for_each_byte(tmp_path: Path) -> None:
    log = tmp_path / "serial"
    log.touch()
    began = time.monotonic()
    writer = subprocess.Popen([sys.executable, "-c", BYTE_BY_BYTE, str(log)])
    process = os.pidfd_open(writer.pid)
    with log.open("rb") as file:
        pieces = list(follow(file.fileno(), process))
    looks = (time.monotonic() - began) / REST_S
    os.close(process)
    assert writer.wait() == 0
    assert b"".join(pieces) == b"x" * 2000
    assert 10 < len(pieces) <= looks + 2
