"""How long a call of the guest agent takes, and what our client adds to it."""

from __future__ import annotations

import asyncio
import statistics
import time

from control.vm.vm import VM
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import BareGuest, QuietView, make_instance, open_bare_guest, open_guest
from tests.bench.registry import Settings, benchmark

CALLS = 500
QUICK_CALLS = 50


@benchmark("ping")
def measure_ping(settings: Settings) -> list[Figure]:
    """Round trip of `ping` to the guest agent, beside a blocking socket to an equal guest."""
    return asyncio.run(_measure(settings))


async def _measure(settings: Settings) -> list[Figure]:
    """Both guests run at once, and idle but for the calls: a batch to one, then a batch to the other."""
    instance = await asyncio.to_thread(make_instance, settings, "ping")
    other = await asyncio.to_thread(make_instance, settings, "ping-bare")
    calls = QUICK_CALLS if settings.quick else CALLS
    ours: list[float] = []
    bare: list[float] = []
    view = QuietView()
    with open_bare_guest(other.bare_argv, other.files) as guest:
        await asyncio.to_thread(guest.shake_hands)
        await asyncio.to_thread(guest.wait_until_booted)
        async with open_guest(instance, view) as vm:
            await view.wait_until_booted()
            for number in range(settings.runs):
                settings.say(f"ping: round {number + 1} of {settings.runs}, {calls} calls each")
                ours.append(await _ping_ours(vm, calls))
                bare.append(await asyncio.to_thread(_ping_bare, guest, calls))
    return [
        Figure(
            f"ping, median of each {calls}",
            "ms",
            Samples("AgentClient.call", tuple(ours)),
            Samples("blocking socket", tuple(bare)),
            (Target(0.5),),
        )
    ]


async def _ping_ours(vm: VM, calls: int) -> float:
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        await vm.agent.call("ping")
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def _ping_bare(guest: BareGuest, calls: int) -> float:
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        guest.call("ping")
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000
