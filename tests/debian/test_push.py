"""The agent typed into a guest over its serial console: a Debian with cloud-init and a Python, and no agent."""

from __future__ import annotations

from pathlib import Path

from control.agent.push import Login, push_agent
from control.console.channel import ConsoleChannel
from guest.agent import VERSION
from iso.agent.pyz import make_pyz
from tests.debian.debianvm import BOOT_S, DebianVM


async def test_a_guest_without_agent_gets_one_over_its_console(cloud_image: Path, directory: Path) -> None:
    with DebianVM(directory, disk=cloud_image) as vm:
        console = ConsoleChannel(vm.connect_console())
        try:
            vm.qmp("cont")
            await push_agent(console, make_pyz(VERSION), login=Login("root"), shell_timeout_s=BOOT_S)
        finally:
            console.close()
        vm.wait_for(vm.connect())
        assert vm.call("get_agent_info")["version"] == VERSION
        assert vm.run("stat --format=%a /run/unhinged-agent.pyz") == "700\n"
