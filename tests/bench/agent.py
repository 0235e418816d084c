"""The guest agent beside QEMU's own, in one guest at the same time: calls, commands, files, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from control.spec.vm_spec import DirectBoot
from control.vm.vm import VM
from tests.bench import qemu_ga
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import QuietView, make_instance, open_guest
from tests.bench.registry import Settings, benchmark

CALLS = 300
QUICK_CALLS = 30
AT_ONCE = 1000
FILE_BYTES = 100_000_000
QUICK_FILE_BYTES = 10_000_000
GUEST_FILE = "/tmp/bench-{}"
PEER_TIMEOUT_S = 120.0
MEGABYTE = 1e6
MILLISECOND = 1000.0

_SPAWN = """
import os, time
times = []
for _ in range(100):
    began = time.perf_counter()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    times.append(time.perf_counter() - began)
print(sorted(times)[50] * 1000)
"""

_FIND_PORT = f"""
for port in /sys/class/virtio-ports/*; do grep -qx {qemu_ga.PORT} $port/name && break; done
exec "$@" --path "/dev/${{port##*/}}"
"""


@dataclass(frozen=True)
class Pair:
    """Both agents of one guest."""

    vm: VM
    peer: qemu_ga.QemuGA


@benchmark("agent")
def measure_agent(settings: Settings) -> list[Figure]:
    """Calls, commands and files through the guest agent, beside qemu-ga in the same guest."""
    return asyncio.run(_measure(settings))


async def _measure(settings: Settings) -> list[Figure]:
    calls = QUICK_CALLS if settings.quick else CALLS
    async with _open_pair(settings) as pair:
        client, guest, peer = pair.vm.agent, pair.vm.guest, pair.peer

        async def run_true() -> None:
            await client.call("exec_command", {"argv": ["true"]})

        async def run_streamed() -> None:
            await guest.run(["true"])

        settings.say("agent: calls")
        ping = await _time_in_turn(
            settings, calls, lambda: client.call("ping"), lambda: peer.execute("guest-ping"), "guest-ping"
        )
        settings.say("agent: commands")
        command = await _time_in_turn(settings, calls, run_true, peer.run_true, "guest-exec and -exec-status")
        streamed = await _time_in_turn(settings, calls, run_streamed, peer.run_true, "guest-exec and -exec-status")
        alone = [float((await guest.run(["python3", "-I", "-S", "-c", _SPAWN])).stdout) for _ in range(settings.runs)]
        settings.say("agent: files")
        put_rates, get_rates = await _time_files(settings, pair)
        settings.say(f"agent: {AT_ONCE} calls at once")
        at_once = await _call_many_at_once(settings, pair.vm)
        memory = await _read_memory(pair.vm)
        started = [_read_start(pair.vm)]
    return [
        Figure("ping", "ms", *_sides("AgentClient.call", ping), (Target(0.5), Target(1.0, basis="ratio"))),
        Figure("exec_command true", "ms", *_sides("exec_command", command), (Target(8.0), Target(0.5, basis="ratio"))),
        Figure("true started in the guest itself", "ms", Samples("posix_spawn and waitpid", tuple(alone))),
        Figure("exec true with its streams", "ms", *_sides("Guest.run", streamed)),
        _file_figure(settings, "put", put_rates),
        _file_figure(settings, "get", get_rates),
        Figure(f"{AT_ONCE} pings at once, all answered", "ms", Samples("asyncio.gather", tuple(at_once))),
        Figure("resident memory after all that", "MB", Samples("agent", tuple(memory)), None, (Target(25.0),)),
        Figure(
            "from init's first line to the agent", "s", Samples("agent ready", tuple(started)), None, (Target(0.5),)
        ),
    ]


Turns = tuple[list[float], list[float], str]


async def _time_in_turn(
    settings: Settings, calls: int, ours: Callable[[], Awaitable[object]], theirs: Callable[[], object], label: str
) -> Turns:
    """Medians in milliseconds of as many rounds as there are runs, both sides in each."""
    medians: Turns = ([], [], label)
    for _ in range(settings.runs):
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            await ours()
            times.append(time.perf_counter() - began)
        medians[0].append(statistics.median(times) * MILLISECOND)
        medians[1].append(await asyncio.to_thread(_time_blocking, calls, theirs) * MILLISECOND)
    return medians


def _time_blocking(calls: int, call: Callable[[], object]) -> float:
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _time_files(settings: Settings, pair: Pair) -> tuple[Turns, Turns]:
    """Megabytes a second, to the guest and back, of a file that does not compress; each copy is compared."""
    guest = pair.vm.guest
    size = QUICK_FILE_BYTES if settings.quick else FILE_BYTES
    source = settings.directory / "source"
    # Not random but without repetition, and made quickly: the digests of a counter.
    source.write_bytes(b"".join(hashlib.sha512(b"%d" % n).digest() for n in range(size // 64)))
    digest = _digest(source)
    puts: Turns = ([], [], "guest-file-write")
    gets: Turns = ([], [], "guest-file-read")
    for _ in range(settings.runs):
        for turns, rate in (
            (puts, await _rate(source, guest.put(source, GUEST_FILE.format("ours")))),
            (gets, await _rate(source, guest.get(GUEST_FILE.format("ours"), settings.directory / "ours"))),
        ):
            turns[0].append(rate)
        guest_path, back = GUEST_FILE.format("theirs"), settings.directory / "theirs"
        puts[1].append(await _rate(source, asyncio.to_thread(pair.peer.put, source, guest_path)))
        gets[1].append(await _rate(source, asyncio.to_thread(pair.peer.get, guest_path, back)))
        for copy in (settings.directory / "ours", back):
            if _digest(copy) != digest:
                raise RuntimeError(f"{copy.name} came back changed")
            copy.unlink()
    return puts, gets


async def _rate(source: Path, work: Awaitable[object]) -> float:
    began = time.perf_counter()
    await work
    return source.stat().st_size / MEGABYTE / (time.perf_counter() - began)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _call_many_at_once(settings: Settings, vm: VM) -> list[float]:
    times = []
    for _ in range(settings.runs):
        began = time.perf_counter()
        answers = await asyncio.gather(*(vm.agent.call("ping") for _ in range(AT_ONCE)))
        times.append((time.perf_counter() - began) * MILLISECOND)
        if answers != [{}] * AT_ONCE:
            raise RuntimeError("a ping was not answered")
    return times


async def _read_memory(vm: VM) -> list[float]:
    status = await vm.guest.run(["cat", f"/proc/{vm.agent.info['pid']}/status"])
    found = re.search(rb"VmRSS:\s+(\d+) kB", status.stdout)
    if found is None:
        raise RuntimeError("the guest's kernel does not tell how much memory the agent has")
    return [int(found[1]) * 1024 / MEGABYTE]


def _read_start(vm: VM) -> float:
    return vm.phases["agent"] - vm.phases["init"]


def _sides(label: str, turns: Turns) -> tuple[Samples, Samples]:
    return Samples(label, tuple(turns[0])), Samples(turns[2], tuple(turns[1]))


def _file_figure(settings: Settings, name: str, turns: Turns) -> Figure:
    size = (QUICK_FILE_BYTES if settings.quick else FILE_BYTES) / MEGABYTE
    targets = (Target(60.0, "higher"), Target(5.0, "higher", "ratio"))
    return Figure(f"{name} of {size:.0f} MB, verified", "MB/s", *_sides(name, turns), targets)


@contextlib.asynccontextmanager
async def _open_pair(settings: Settings) -> AsyncIterator[Pair]:
    """Boot a guest that has both agents, and wait until it has come to rest."""
    instance = await asyncio.to_thread(make_instance, settings, "agent")
    boot = instance.spec.boot
    assert isinstance(boot, DirectBoot) and boot.initrd is not None
    initrd = await asyncio.to_thread(qemu_ga.write_initrd, boot.initrd, instance.files.directory)
    socket = instance.files.sockets / "qemu-ga.socket"
    extra = (
        "-chardev",
        f"socket,id=qga,path={socket},server=on,wait=off",
        "-device",
        json.dumps({"driver": "virtserialport", "bus": "ports.0", "chardev": "qga", "name": qemu_ga.PORT}),
    )
    instance.spec = replace(instance.spec, boot=replace(boot, initrd=initrd), extra_args=extra)
    view = QuietView()
    async with open_guest(instance, view) as vm:
        await view.wait_until_booted()
        started = await vm.agent.call(
            "exec_command", {"argv": ["sh", "-c", _FIND_PORT, "qemu-ga", *qemu_ga.COMMAND], "timeout_s": 30}
        )
        if started["exit_code"] != 0:
            raise RuntimeError(f"qemu-ga does not start: {started['stderr']}")
        with qemu_ga.open_qemu_ga(socket, PEER_TIMEOUT_S) as peer:
            await asyncio.to_thread(peer.execute, "guest-sync", id=1)
            yield Pair(vm, peer)
