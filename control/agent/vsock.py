"""A guest agent over a vsock (floor 2)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from control.agent.client import AgentClient, Notification, serve_agent
from control.errors import HostError, WaitTimeout

CONNECT_TIMEOUT_S = 10.0


@asynccontextmanager
async def open_vsock(
    cid: int, port: int, on_notification: Notification, *, timeout_s: float = CONNECT_TIMEOUT_S
) -> AsyncIterator[AgentClient]:
    """Talk to the agent that listens on `port` in the guest `cid` while the body runs.

    Raises:
        HostError: This host has no vsock, or nobody listens there.
        WaitTimeout: There was no connection within `timeout_s`.

    Source: vsock(7).
    """
    try:
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        raise HostError(f"this host has no vsock: {error.strerror}", hint="load the module vhost_vsock") from error
    try:
        connection.setblocking(False)
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(connection, (cid, port))
    except TimeoutError:
        connection.close()
        raise WaitTimeout(f"a connection to port {port} of the guest {cid}", timeout_s) from None
    except OSError as error:
        connection.close()
        raise HostError(
            f"port {port} of the guest {cid} cannot be reached: {error.strerror}",
            hint="does its agent run with --vsock, and has the VM a vhost-vsock device with this number?",
        ) from error
    except BaseException:
        connection.close()
        raise
    async with serve_agent(AgentClient(connection, on_notification)) as client:
        yield client
