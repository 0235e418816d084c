"""Guests that are worked with through `vm.guest`, and a second agent in them whose configuration a test chooses.

Both guests of this project can be had: the built-in one, and Debian on an overlay over its image.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from control.agent import AgentClient, Guest
from control.agent.client import serve_agent
from control.errors import AgentCallError
from control.launch.options import LaunchOptions
from control.launch.prepare import prepare
from control.paths import IMAGE, InstanceFiles, open_instance_files, runtime_directory
from control.vm.vm import VM, open_vm
from tests.qemu.ear import Ear

UP_S = 240.0
"""From start to agent: some 3 seconds for the built-in guest, up to a minute for a Debian; more on a busy host."""

SOON_S = 60.0
"""What a guest does in a moment, on a host that does much else beside it."""

KINDS = ("built-in", pytest.param("debian", marks=[pytest.mark.slow, pytest.mark.timeout(900)]))
"""What a fixture is parametrised with whose tests run on both guests."""

DEBIAN = IMAGE / "debian.qcow2"
START_AGENT = {
    "built-in": ["/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/unhinged/agent/__main__.pyc"],
    "debian": ["/usr/sbin/unhinged-agent"],
}
BOOTED = {
    "built-in": ["sh", "-c", "until [ -d /dev/shm ]; do sleep 0.1; done"],
    "debian": ["systemctl", "is-system-running", "--wait"],
}
"""What ends when the rest of the guest is up: the agent is there long before."""

SECOND_PORT = "/dev/hvc1"
SECOND_SOCKET = "second.socket"


@contextmanager
def instance_directory() -> Iterator[Path]:
    """A directory with a short path for the instances of several tests; kept when the VM did not come up."""
    path = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    yield path
    sockets = [str(found) for found in path.rglob("*") if stat.S_ISSOCK(found.lstat().st_mode)]
    shutil.rmtree(path)
    assert not sockets, f"sockets were left behind: {sockets}"


@asynccontextmanager
async def open_guest_vm(kind: str, directory: Path, *, name: str = "agent") -> AsyncIterator[VM]:
    """Boot a guest, with its instance below `directory`, and wait for its agent."""
    files = open_instance_files(runtime_directory(directory), name)
    options = await build_options(kind, files)
    try:
        async with open_vm((await prepare(options, files, with_agent=True)).spec, files, Ear()) as vm:
            await vm.resume()
            await vm.agent.wait_until_ready(UP_S)
            await vm.guest.run(BOOTED[kind], check=False, timeout_s=UP_S)
            await _plug_second_console(vm)
            yield vm
    finally:
        # No file of the product: a QEMU that is killed leaves it, and nobody else knows of it.
        (files.sockets / SECOND_SOCKET).unlink(missing_ok=True)


async def build_options(kind: str, files: InstanceFiles) -> LaunchOptions:
    """What to launch; a Debian gets a disk of its own over the image, which is never written to."""
    disk = None
    if kind == "debian":
        if not DEBIAN.is_file():
            pytest.skip("the Debian image is not built: make image-debian")
        disk = files.directory / "overlay.qcow2"
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(DEBIAN), str(disk)]
        await asyncio.to_thread(subprocess.run, argv, check=True, timeout=60)
    return LaunchOptions(name=files.directory.name.removeprefix("vm."), accel="tcg", disk=disk)


async def _plug_second_console(vm: VM) -> None:
    """Give the guest one more console, on which a test may run an agent of its own."""
    address = {"type": "unix", "data": {"path": str(vm.files.sockets / SECOND_SOCKET)}}
    backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
    await vm.monitor.execute("chardev-add", {"id": "second", "backend": backend})
    await vm.monitor.execute("device_add", {"driver": "virtconsole", "bus": "ports.0", "chardev": "second"})


async def check(guest: Guest) -> None:
    """The agent answers, and the guest gives back a nonce over the port for streams."""
    assert await guest.client.call("ping", timeout_s=60) == {}
    nonce = os.urandom(16)
    assert (await guest.run(["cat"], stdin=nonce, timeout_s=60)).stdout == nonce


async def wait_until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Ask again and again until it is so, for what has no event.

    Raises:
        AssertionError: It has not come to be within `SOON_S`.
    """
    deadline = asyncio.get_running_loop().time() + SOON_S
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"waited {SOON_S:g} s for {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def open_second_agent(vm: VM, kind: str, settings: dict[str, Any]) -> AsyncIterator[Guest]:
    """An agent with these `settings` beside the guest's own, on the second console, and a client of its own for it."""

    async def take(method: str, params: object) -> None: ...

    config = f"/run/second-{os.urandom(4).hex()}.json"
    quiet = {"console": None, "share": None, "events": None, "heartbeat_s": 0}
    await vm.guest.write_text(config, json.dumps({**quiet, **settings}))
    argv = [*START_AGENT[kind], "--config", config, "--port", SECOND_PORT]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(vm.files.sockets / SECOND_SOCKET))
    async with await vm.guest.exec(argv) as second:
        # A console echoes, and loses what comes before somebody listens.
        client = AgentClient(connection, take, may_lose=True)
        async with serve_agent(client):
            await client.wait_until_ready(60)
            assert client.info["transport"] == "terminal"
            yield Guest(client)
        await second.send_signal("TERM")
    await vm.guest.remove(config)


class refused:  # noqa: N801 - reads like pytest.raises
    """The body is refused by the agent with this `code`; its words are one clear sentence, with `path` in them.

    Attributes:
        error: What it was, after the body.
    """

    def __init__(self, code: int, *, errno: str = "", path: str = "", key: str = "") -> None:
        self._code = code
        self._expected = {key: value for key, value in {"errno": errno, "path": path, "key": key}.items() if value}
        self.error: AgentCallError | None = None

    def __enter__(self) -> refused:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"it was not refused with {self._code}"
        if not isinstance(error, AgentCallError):
            return False
        check_refusal(error, self._code, self._expected)
        self.error = error
        return True


def check_refusal(error: AgentCallError, code: int, expected: dict[str, str]) -> None:
    text = str(error)
    data = error.data if isinstance(error.data, dict) else {}
    assert error.code == code, f"{error.code} and not {code}: {text} {data}"
    assert expected.items() <= data.items(), f"{data} lacks {expected}: {text}"
    assert 10 < len(text) < 500 and text.isprintable(), text
    assert "Traceback" not in text and "Errno" not in text, text
    if "path" in expected:
        assert expected["path"] in text, f"{text} does not name {expected['path']}"
