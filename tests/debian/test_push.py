"""The agent typed into a guest over its serial console: a Debian with cloud-init and a Python, and no agent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from control.agent.push import Login, push_agent
from guest.agent import VERSION
from iso.agent.pyz import make_pyz
from tests.debian.debianvm import BOOT_S, DebianVM


class SocketConsole:
    """A console behind a socket, as the VMs of these tests have theirs."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection

    def close(self) -> None:
        self._connection.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        while chunk := await asyncio.get_running_loop().sock_recv(self._connection, 65536):
            yield chunk

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, data)


async def test_a_guest_without_agent_gets_one_over_its_console(cloud_image: Path, directory: Path) -> None:
    with DebianVM(directory, disk=cloud_image) as vm:
        console = SocketConsole(vm.connect_console())
        try:
            vm.qmp("cont")
            await push_agent(console, make_pyz(VERSION), login=Login("root"), shell_timeout_s=BOOT_S)
        finally:
            console.close()
        vm.wait_for(vm.connect())
        assert vm.call("get_agent_info")["version"] == VERSION
        assert vm.run("stat --format=%a /run/unhinged-agent.pyz") == "700\n"
