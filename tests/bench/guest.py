"""The built-in guest as the launchers boot it, and the same QEMU command line run bare: the two sides of most pairs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from control.argv import build_argv
from control.console.sink import open_output_sink
from control.launch.options import LaunchOptions
from control.launch.prepare import prepare
from control.launch.session import View
from control.paths import InstanceFiles, open_instance_files, runtime_directory
from control.simple_vm_launcher import ConsoleView
from control.spec.vm_spec import VMSpec
from control.vm.instance import remove_stale_files
from control.vm.listener import Carrier
from control.vm.vm import VM, open_vm
from control.wire import Message
from tests.bench.registry import Settings

UP_TIMEOUT_S = 180.0
"""Far above any healthy boot, also beside busy loops: a boot that takes longer counts as failed."""

RETRY_S = 0.001
BOOT_FINISHED = "boot finished"


class Instance:
    """An instance of the built-in guest whose every boot finds the same data disk.

    The disk is formatted by a first boot and then put back before each of the others: what the boot before left on it
    must not weigh on the next one.
    """

    def __init__(self, spec: VMSpec, files: InstanceFiles) -> None:
        self.spec = spec
        self.files = files
        self._template = files.directory / "template.qcow2"

    def reset(self) -> None:
        """Put the data disk back, and clear what the last boot left."""
        if self._template.exists():
            shutil.copyfile(self._template, self.files.data_disk)
        remove_stale_files(self.files)

    def keep_disk(self) -> None:
        """Let each boot from now on find the disk as it is now."""
        shutil.copyfile(self.files.data_disk, self._template)

    @property
    def bare_argv(self) -> tuple[str, ...]:
        """The launcher's own command line, but that the CPUs run at once."""
        return tuple(word for word in build_argv(self.spec, self.files) if word != "-S")


def make_instance(settings: Settings, name: str, *, warm: bool = True) -> Instance:
    """Prepare an instance as the launchers do; with `warm`, boot it once, so that its disk is formatted."""
    files = open_instance_files(runtime_directory(settings.directory), name)
    options = LaunchOptions(name=name, accel=settings.accelerator)
    instance = Instance(asyncio.run(prepare(options, files, with_agent=True)).spec, files)
    if warm:
        settings.say(f"{name}: first boot, which formats the disk")
        asyncio.run(_boot_and_shut_down(instance))
        instance.keep_disk()
    return instance


async def _boot_and_shut_down(instance: Instance) -> None:
    async with open_vm(instance.spec, instance.files, View()) as vm:
        await vm.resume()
        await vm.agent.wait_until_ready(UP_TIMEOUT_S)


class QuietView(View):
    """Shows nothing, and knows when the guest has come to rest. Make it where an event loop runs."""

    def __init__(self) -> None:
        self._booted = asyncio.Event()

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        if message.text == BOOT_FINISHED:
            self._booted.set()

    async def wait_until_booted(self) -> None:
        """Wait until the guest's services are up too: until then it is busy with itself, and says so."""
        async with asyncio.timeout(UP_TIMEOUT_S):
            await self._booted.wait()


@contextlib.contextmanager
def open_null_view() -> Iterator[ConsoleView]:
    """The view of `make start-simple`, its stdout being /dev/null."""
    with Path(os.devnull).open("wb") as null, open_output_sink(null.fileno()) as sink:
        yield ConsoleView(sink)


@contextlib.asynccontextmanager
async def open_guest(instance: Instance, view: View) -> AsyncIterator[VM]:
    """Boot the instance until its agent answers; on leaving it is told to quit."""
    instance.reset()
    async with open_vm(instance.spec, instance.files, view) as vm:
        await vm.resume()
        await vm.agent.wait_until_ready(UP_TIMEOUT_S)
        yield vm
        await vm.stop(gently=False)


class BareGuest:
    """A QEMU without any of our code around it: a child process, and a socket to its agent port."""

    def __init__(self, child: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.child = child
        self._connection = connection
        self._received = bytearray()
        self._prefix = secrets.token_hex(6)
        self._count = 0

    def call(self, method: str) -> object:
        """Send one JSON-RPC request and block until its answer has come."""
        self._count += 1
        request_id = f"{self._prefix}-{self._count}"
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {}}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        while True:
            value = json.loads(self._read_line())
            if value.get("id") == request_id:
                return value["result"]

    def shake_hands(self) -> None:
        """Ask the agent who it is: answered as soon as there is one."""
        self._connection.sendall(b"\n")
        self.call("get_agent_info")

    def wait_until_booted(self) -> None:
        """Block until the guest has said that its services are up; call it right after `shake_hands`."""
        while True:
            params = json.loads(self._read_line()).get("params", {})
            if params.get("data", {}).get("message") == BOOT_FINISHED:
                return

    def _read_line(self) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            chunk = self._connection.recv(65536)
            if not chunk:
                raise ConnectionError("QEMU hung up")
            self._received += chunk
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


@contextlib.contextmanager
def open_bare_guest(argv: Sequence[str], files: InstanceFiles) -> Iterator[BareGuest]:
    """Start `argv` and connect to its agent port; on leaving QEMU is ended.

    Raises:
        TimeoutError: QEMU does not listen, or nothing answers, within `UP_TIMEOUT_S`; it was killed.
    """
    with files.qemu_log.open("wb") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        with _connect(files.agent_socket, child) as connection:
            connection.settimeout(UP_TIMEOUT_S)
            yield BareGuest(child, connection)
    finally:
        child.kill()
        child.wait()


def _connect(path: Path, child: subprocess.Popen[bytes]) -> socket.socket:
    deadline = time.monotonic() + UP_TIMEOUT_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
        if child.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"QEMU does not listen on {path}; exit code {child.poll()}")
        time.sleep(RETRY_S)  # a socket that is not there yet has no event to wait for
