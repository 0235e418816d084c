"""A console's log whose oldest blocks were given back: what is read of it has no zeros that nobody said."""

from __future__ import annotations

import os
from pathlib import Path

from control.console.channel import ConsoleChannel
from control.console.follow import follow

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
