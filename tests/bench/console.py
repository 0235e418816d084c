"""How fast the console's bytes come through, and that none is lost: real ones, from a guest, through QEMU's chardev.

A UART carries 0.3 MB/s, a virtio console 17 MB/s, so neither can show what the host's side takes. The VM's console
chardev, otherwise unchanged, is therefore put behind a virtio-serial port, and a second one like it is for the peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shlex
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from control.console.channel import CHUNK_BYTES
from control.console.sink import open_output_sink
from control.enhanced_vm_launcher import EnhancedVMLauncher
from control.launch.session import View
from control.simple_vm_launcher import ConsoleView
from control.vm.listener import Carrier
from control.vm.sockets import connect_socket
from control.vm.vm import VM
from control.wire import Message
from tests.bench import payload
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import Instance, QuietView, make_instance, open_guest
from tests.bench.registry import Settings, benchmark

PORT = "org.unhinged.bench.{}"
BURST_BLOCKS = 1526
"""100 MB, in blocks of 64 KiB."""

QUICK_BLOCKS = 320
"""Enough for its 5120 messages to push each other out of the 4096 identities the host remembers: a burst that is sent
again would otherwise be taken for the first one."""

MESSAGES_PER_BLOCK = 16
"""One message in 4 KiB: at 80 MB/s these are 20 000 messages in a second."""

BURST_TIMEOUT_S = 120.0
MEGABYTE = 1e6

WRAPPER = """#!{python} -IS
# Puts the console's chardev behind a virtio-serial port; all else is as the launcher wrote it.
import os, sys
argv = sys.argv[1:]
at = argv.index("chardev:serial")
argv[at] = "null"
argv += ["-device", '{{"driver":"virtserialport","bus":"ports.0","chardev":"serial","name":"{port}"}}']
os.execv({qemu!r}, [{qemu!r}, *argv])
"""


@dataclass(frozen=True)
class Burst:
    """What the guest sends in one go, and what it must look like when it arrives.

    Attributes:
        guest_path: Where it lies in the guest.
        text_bytes: What remains of it when its messages are taken out; `text_digest` is of that.
    """

    guest_path: str
    blocks: int
    messages_per_block: int
    bytes: int
    digest: str
    text_bytes: int
    text_digest: str

    @property
    def messages(self) -> int:
        return self.blocks * self.messages_per_block


def build_burst(guest_path: str, blocks: int, messages_per_block: int) -> Burst:
    """Work out what the guest's `payload.py` will make of the same arguments."""
    text = payload.build_text()
    whole, rest = hashlib.sha256(), hashlib.sha256()
    rest_bytes = 0
    for number in range(blocks):
        block = payload.build_block(number, text, messages_per_block)
        whole.update(block)
        remaining = b"".join(line for line in block.splitlines(keepends=True) if not line.startswith(b'{"timestamp"'))
        rest.update(remaining)
        rest_bytes += len(remaining)
    return Burst(
        guest_path, blocks, messages_per_block, blocks * payload.BLOCK_BYTES, whole.hexdigest(), rest_bytes,
        rest.hexdigest(),
    )  # fmt: skip


class Recorder(QuietView):
    """Passes everything on to a launcher's view, and notes when a burst began to come and when it was dealt with."""

    def __init__(self) -> None:
        super().__init__()
        self._view = View()
        self._text_left = self._messages_left = 0
        self._first = 0.0
        self._done: asyncio.Future[float] | None = None

    def expect(self, view: View, burst: Burst) -> asyncio.Future[float]:
        """From now on pass to `view`; the future gives the seconds from the burst's first byte to its last."""
        self._view = view
        self._text_left, self._messages_left, self._first = burst.text_bytes, burst.messages, 0.0
        self._done = asyncio.get_running_loop().create_future()
        return self._done

    async def on_console(self, chunk: bytes) -> None:
        if not self._first:
            self._first = time.monotonic()
        await self._view.on_console(chunk)

    async def on_text(self, text: bytes) -> None:
        await self._view.on_text(text)
        self._text_left -= len(text)
        self._look()

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        await super().on_message(message, carrier)
        if carrier == "console":  # what else the guest says comes over the agent's port, and is not part of the burst
            await self._view.on_message(message, carrier)
            self._messages_left -= 1
            self._look()

    def describe_missing(self) -> str:
        return f"{self._text_left} bytes of text and {self._messages_left} messages are missing"

    def _look(self) -> None:
        if self._text_left <= 0 and self._messages_left <= 0 and self._done is not None and not self._done.done():
            self._done.set_result(time.monotonic() - self._first)


@benchmark("console")
def measure_console(settings: Settings) -> list[Figure]:
    """A burst of 100 MB over the console through QEMU's chardev, beside a bare reader of an equal one."""
    return asyncio.run(_measure(settings))


async def _measure(settings: Settings) -> list[Figure]:
    blocks = QUICK_BLOCKS if settings.quick else BURST_BLOCKS
    plain = build_burst("/tmp/plain", blocks, 0)
    mixed = build_burst("/tmp/mixed", blocks, MESSAGES_PER_BLOCK)
    instance = await asyncio.to_thread(make_console_instance, settings, "console")
    recorder = Recorder()
    rates: dict[str, list[float]] = {"one way": [], "bare": [], "two ways": [], "messages": []}
    cpu: dict[str, list[float]] = {name: [] for name in rates}
    async with open_guest(instance, recorder) as vm:
        await recorder.wait_until_booted()
        for burst in (plain, mixed):
            await _run_in_guest(vm, build_making_argv(burst))
        peer = await connect_socket(_bare_socket(instance), vm.process, timeout_s=10.0)
        with contextlib.closing(peer):
            for number in range(settings.runs):
                settings.say(f"console: round {number + 1} of {settings.runs}")
                for name, burst in (("one way", plain), ("bare", plain), ("two ways", plain), ("messages", mixed)):
                    log_begin = instance.files.serial_log.stat().st_size
                    if name == "bare":
                        seconds, used = await _read_bare(vm, peer, burst)
                    else:
                        seconds, used = await _take_burst(vm, recorder, burst, one_way=name == "one way")
                        _check_log(instance.files.serial_log, log_begin, burst)
                    cpu[name].append(used)
                    rates[name].append(burst.bytes / MEGABYTE / seconds)
    bare = Samples("bare socket reader", tuple(rates["bare"]))
    size = f"{blocks * payload.BLOCK_BYTES / MEGABYTE:.0f} MB"
    two_ways = Samples("two ways, text", tuple(rates["two ways"]))
    return [
        Figure(
            f"burst of {size}, one way",
            "MB/s",
            Samples("view of start-simple", tuple(rates["one way"])),
            bare,
            (Target(80.0, "higher"),),
            (
                "every burst arrived with the SHA-256 it was made with.",
                "so was it in the console's file.",
                "our CPU time for one burst: "
                + ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in cpu.items())
                + ".",
            ),
        ),
        Figure(f"burst of {size}, two ways", "MB/s", two_ways, bare, (Target(80.0, "higher"),)),
        Figure(
            f"burst of {size} with {mixed.messages} messages in it",
            "MB/s",
            Samples("two ways, text and messages", tuple(rates["messages"])),
            two_ways,
        ),
    ]


def make_console_instance(settings: Settings, name: str) -> Instance:
    """An instance whose console is a virtio-serial port, with a second port like it that nothing of ours reads."""
    instance = make_instance(settings, name)
    wrapper = instance.files.directory / "qemu-with-fast-console"
    wrapper.write_text(WRAPPER.format(python=sys.executable, port=PORT.format("console"), qemu=instance.spec.qemu))
    wrapper.chmod(0o700)
    log = instance.files.directory / "bare.log"
    extra = (
        "-chardev",
        f"socket,id=bare,path={_bare_socket(instance)},server=on,wait=off,logfile={log},logappend=off",
        "-device",
        json.dumps({"driver": "virtserialport", "bus": "ports.0", "chardev": "bare", "name": PORT.format("bare")}),
    )
    instance.spec = replace(instance.spec, qemu=str(wrapper), extra_args=extra)
    return instance


def _bare_socket(instance: Instance) -> Path:
    return instance.files.sockets / "bare.socket"


def build_making_argv(burst: Burst) -> list[str]:
    """The guest's command that makes the burst, as a file, and fails when it is not the one we expect."""
    source = Path(payload.__file__).read_text(encoding="utf-8")
    make = shlex.join(["python3", "-ISc", source, burst.guest_path, str(burst.blocks), str(burst.messages_per_block)])
    return ["sh", "-c", f"{make} && echo '{burst.digest}  {burst.guest_path}' | sha256sum -c"]


def build_sending_argv(burst: Burst, port: str) -> list[str]:
    """The guest's command that writes the burst into a virtio-serial port; it ends when QEMU has all of it."""
    find = f"for port in /sys/class/virtio-ports/*; do grep -qx {PORT.format(port)} $port/name && break; done"
    return ["sh", "-c", f"{find}; dd if={burst.guest_path} of=/dev/${{port##*/}} bs=64k"]


async def _run_in_guest(vm: VM, argv: list[str]) -> None:
    """Run a command in the guest. Raises RuntimeError when it fails."""
    done = await vm.agent.call("exec_command", {"argv": argv}, timeout_s=BURST_TIMEOUT_S)
    if done["exit_code"] != 0:
        raise RuntimeError(f"in the guest, {argv[-1][-100:]!r} failed: {done['stderr']}")


async def _take_burst(vm: VM, recorder: Recorder, burst: Burst, *, one_way: bool) -> tuple[float, float]:
    """Let a burst come through the console of the VM into the sink of a launcher.

    Returns:
        Seconds by the clock, from the first byte to the last, and seconds of our CPU time.
    """
    with _open_memory_file() as file, open_output_sink(file) as sink:
        view = ConsoleView(sink) if one_way else EnhancedVMLauncher().make_view(sink)
        done = recorder.expect(view, burst)
        before = time.process_time()
        try:
            async with asyncio.timeout(BURST_TIMEOUT_S):
                await _run_in_guest(vm, build_sending_argv(burst, "console"))
                seconds = await done
        except TimeoutError:
            raise RuntimeError(f"a burst did not arrive: {recorder.describe_missing()}") from None
        used = time.process_time() - before
        if one_way or not burst.messages:
            _check_copy(file, burst)
        else:
            _check_rendered(file, burst)
    return seconds, used


async def _read_bare(vm: VM, connection: socket.socket, burst: Burst) -> tuple[float, float]:
    """The peer: a thread that does nothing but read from the socket and write to a file."""
    connection.settimeout(BURST_TIMEOUT_S)
    with _open_memory_file() as file:
        before = time.process_time()
        reading = asyncio.create_task(asyncio.to_thread(_copy_bare, connection, file, burst.bytes))
        await _run_in_guest(vm, build_sending_argv(burst, "bare"))
        seconds = await reading
        used = time.process_time() - before
        _check_copy(file, burst)
    return seconds, used


def _copy_bare(connection: socket.socket, file: int, size: int) -> float:
    started = 0.0
    while size:
        chunk = connection.recv(min(size, CHUNK_BYTES))
        started = started or time.monotonic()
        if not chunk:
            raise ConnectionError("QEMU hung up")
        size -= os.write(file, chunk)
    return time.monotonic() - started


@contextlib.contextmanager
def _open_memory_file() -> Iterator[int]:
    """A file that no disk is behind: what is measured is not the disk."""
    file = os.memfd_create("burst")
    try:
        yield file
    finally:
        os.close(file)


def _digest_file(file: int) -> str:
    with Path(f"/proc/self/fd/{file}").open("rb") as copy:
        return hashlib.file_digest(copy, "sha256").hexdigest()


def _check_log(log_path: Path, begin: int, burst: Burst) -> None:
    """See that the console's file holds the burst and nothing else. Raises RuntimeError."""
    with log_path.open("rb") as log:
        log.seek(begin)
        found = hashlib.file_digest(log, "sha256").hexdigest()
    if found != burst.digest:
        size = log_path.stat().st_size - begin
        raise RuntimeError(f"the console's file holds another burst than was sent: {size} bytes, {burst.bytes} due")


def _check_rendered(file: int, burst: Burst) -> None:
    """See that the two-way view showed each message, and the text between them unchanged."""
    with Path(f"/proc/self/fd/{file}").open("rb") as shown:
        digest, messages = hashlib.sha256(), 0
        for line in shown:
            if line.startswith(b"[vm status] "):
                messages += 1
            else:
                digest.update(line)
    if messages != burst.messages:
        raise RuntimeError(f"of {burst.messages} messages {messages} were shown")
    if digest.hexdigest() != burst.text_digest:
        raise RuntimeError("the text between the messages arrived changed, or not all of it did")


def _check_copy(file: int, burst: Burst) -> None:
    """See that the file holds the burst and nothing else.

    Raises:
        RuntimeError: It does not; says where the first difference is, and how many bytes there are.
    """
    if _digest_file(file) == burst.digest:
        return
    text = payload.build_text()
    with Path(f"/proc/self/fd/{file}").open("rb") as copy:
        for number in range(burst.blocks):
            found = copy.read(payload.BLOCK_BYTES)
            expected = payload.build_block(number, text, burst.messages_per_block)
            if found != expected:
                at = next((at for at, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), 0)
                raise RuntimeError(
                    f"the burst arrived changed: {os.fstat(file).st_size} bytes where {burst.bytes} were due; the first"
                    f" difference is {at} bytes into block {number}, where there is {found[at : at + 40]!r}"
                )
    raise RuntimeError(f"the burst arrived with {os.fstat(file).st_size - burst.bytes} bytes too many")
