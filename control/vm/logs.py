"""Keeps an instance's logs from filling the host's disk (floor 3): QEMU writes without end, the guest says how much."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from control.process.punch import CHECK_S, punch_log


async def bound_logs(logs: tuple[Path, ...], say: Callable[[str], None]) -> None:
    """Give back the oldest blocks of each log that grows too long; runs until it is cancelled.

    A log whose file system cannot do that is named once, and left alone. While a VM is detached its keeper does this.
    """
    punched = dict.fromkeys(logs, 0)
    while punched:
        await asyncio.sleep(CHECK_S)
        for log in list(punched):
            try:
                punched[log] = punch_log(str(log), punched[log])
            except OSError as error:
                del punched[log]
                say(f"the log {log} cannot be kept from growing: {error.strerror}")
