"""Keeps an instance's logs from filling the host's disk (floor 3): QEMU writes without end, the guest says how much.

A log's name, offsets and newest bytes stay as they are; the disk blocks of its oldest bytes are given back. So nothing
that is being written at that moment can be lost.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from control.log import LOG
from control.units import GIB, MIB, format_size

KEPT_BYTES = 1 * GIB
"""What is kept of each log. A virtio console under TCG was measured at 17 MB/s: that much comes in a minute."""

SLACK_BYTES = 256 * MIB
CHECK_S = 5.0

# linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH_HOLE = 0x01 | 0x02


async def bound_logs(logs: tuple[Path, ...]) -> None:
    """Give back the oldest blocks of each log that grows beyond `KEPT_BYTES`; runs until it is cancelled."""
    punched = dict.fromkeys(logs, 0)
    while True:
        await asyncio.sleep(CHECK_S)  # a size has no event; the slack is what can come in between
        for log in logs:
            punched[log] = _punch(log, punched[log])


def _punch(log: Path, punched_bytes: int) -> int:
    """Free what is older than the kept part, and return up to where the log has been freed."""
    try:
        end = log.stat().st_size - KEPT_BYTES
    except FileNotFoundError:
        return punched_bytes
    if end < punched_bytes + SLACK_BYTES:
        return punched_bytes
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CLOEXEC)
    try:
        result = libc.fallocate(
            ctypes.c_int(descriptor), ctypes.c_int(_PUNCH_HOLE), ctypes.c_int64(0), ctypes.c_int64(end)
        )
    finally:
        os.close(descriptor)
    if result != 0:
        LOG.debug("the log %s cannot be bounded: %s", log, os.strerror(ctypes.get_errno()))
        return punched_bytes
    LOG.debug("gave back the oldest %s of %s", format_size(end), log)
    return end
