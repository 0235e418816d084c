"""Reaches the sockets of a QEMU that is just starting (floor 3)."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from control.errors import LaunchError, WaitTimeout
from control.process.handle import ProcessHandle

RETRY_S = 0.003
"""QEMU needs about 25 ms to listen. A socket that is not there yet has no event to wait for, so it is tried again."""


async def connect_socket(path: Path, process: ProcessHandle, *, timeout_s: float) -> socket.socket:
    """Connect to the UNIX socket at `path` as soon as QEMU listens on it.

    Raises:
        LaunchError: QEMU ended first.
        WaitTimeout: It does not listen within `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, str(path))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
        if not process.running:
            raise LaunchError("QEMU ended at once", argv=(), return_code=process.return_code, output_tail=())
        if loop.time() > deadline:
            raise WaitTimeout(f"QEMU to listen on {path.name}", timeout_s)
        await asyncio.sleep(RETRY_S)
