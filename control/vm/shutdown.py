"""The one way a VM is brought down (floor 3): each rung harder than the one before, each with its own wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from control.agent.client import AgentClient
from control.errors import ControlError
from control.log import LOG
from control.monitor import Monitor
from control.process.handle import ProcessHandle

AGENT_ANSWER_S = 10.0
AGENT_WAIT_S = 40.0
"""A guest that has said yes is on its way down. Under emulation on a busy host a healthy one has taken 20 seconds; one
with systemd takes longer than the built-in one."""

AGENT_GRACE_S = 0.5
PRESS_AGAIN_S = 1.0
POWERDOWN_WAIT_S = 5.0
"""A guest without ACPI support never answers the power button; one with it takes a second or two, also under TCG."""

QUIT_WAIT_S = 10.0
"""QEMU flushes its disks before it goes."""

SIGNAL_WAIT_S = 5.0


@dataclass(frozen=True)
class Rung:
    """One attempt: what it is called, what it does, and how long the VM then has (seconds)."""

    name: str
    act: Callable[[], Awaitable[object]]
    wait_s: float


async def shut_down(
    process: ProcessHandle,
    monitor: Monitor | None,
    agent: AgentClient | None,
    *,
    gently: bool,
    hurry: asyncio.Event,
    patience_s: float | None = None,
) -> str:
    """End the VM, however it takes, and return the name of the rung that did it.

    A rung that fails is logged and the next one is tried; after the last one the process is gone.

    Args:
        gently: Ask the guest first (agent, then power button). Without it, or when nobody can be asked, QEMU is told
            to quit.
        hurry: Once it is set, the guest is not waited for any longer.
        patience_s: How long each way of asking may take; None for what is known to be enough.
    """
    if gently:
        for rung in await _asking_rungs(monitor, agent, patience_s):
            if not hurry.is_set() and await _try_rung(process, rung, hurry):
                return rung.name
    return await _end(process, _ending_rungs(process, monitor))


async def end_holder(
    process: ProcessHandle, *, gently: bool, hurry: asyncio.Event, patience_s: float | None = None
) -> str:
    """End a holder and what it holds, and return the name of the rung that did it; as `shut_down` otherwise."""
    if gently:
        asking = _signal_rung(process, signal.SIGTERM, patience_s)
        if not hurry.is_set() and await _try_rung(process, asking, hurry):
            return asking.name
    return await _end(process, [_signal_rung(process, number) for number in (signal.SIGQUIT, signal.SIGKILL)])


async def _end(process: ProcessHandle, rungs: Sequence[Rung]) -> str:
    for rung in rungs:
        if await _try_rung(process, rung, asyncio.Event()):
            return rung.name
    await process.wait()  # nothing survives SIGKILL; only the kernel's clean-up is waited for
    return "SIGKILL"


async def _asking_rungs(monitor: Monitor | None, agent: AgentClient | None, patience_s: float | None) -> list[Rung]:
    rungs: list[Rung] = []
    if agent is not None and await _is_there(agent):
        rungs.append(
            Rung("agent", lambda: agent.call("shutdown", timeout_s=AGENT_ANSWER_S), patience_s or AGENT_WAIT_S)
        )
    if monitor is not None:
        rungs.append(Rung("power button", lambda: _press_power_button(monitor), patience_s or POWERDOWN_WAIT_S))
    return rungs


async def _is_there(agent: AgentClient) -> bool:
    """Whether an agent answers; one that has just said on the console that it is ready is about to."""
    try:
        async with asyncio.timeout(AGENT_GRACE_S):
            await agent.ready.wait()
    except TimeoutError:
        return False
    return True


async def _press_power_button(monitor: Monitor) -> None:
    """Press it again and again: a guest that is still booting takes notice only once something listens for it."""
    while True:
        await monitor.execute("system_powerdown")
        await asyncio.sleep(PRESS_AGAIN_S)


def _ending_rungs(process: ProcessHandle, monitor: Monitor | None) -> list[Rung]:
    rungs = [_signal_rung(process, signal.SIGTERM), _signal_rung(process, signal.SIGKILL)]
    if monitor is not None:
        rungs.insert(0, Rung("quit", lambda: monitor.execute("quit"), QUIT_WAIT_S))
    return rungs


async def _try_rung(process: ProcessHandle, rung: Rung, hurry: asyncio.Event) -> bool:
    """Do what the rung does; whether the process has ended by it, within its time and before there is a hurry."""
    if not process.running:
        return True
    LOG.debug("shutdown: %s, then up to %g s", rung.name, rung.wait_s)
    ended = asyncio.ensure_future(process.wait())
    hurried = asyncio.ensure_future(hurry.wait())
    acted = asyncio.ensure_future(rung.act())
    try:
        async with asyncio.timeout(rung.wait_s):
            # The act may never be answered, because QEMU is gone before it could.
            await asyncio.wait((ended, hurried, acted), return_when=asyncio.FIRST_COMPLETED)
            if acted.done() and isinstance(error := acted.exception(), ControlError) and process.running:
                LOG.debug("shutdown: %s failed: %s", rung.name, error)
                return False
            await asyncio.wait((ended, hurried), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError:
        LOG.debug("shutdown: %s did not end it", rung.name)
    finally:
        for task in (ended, hurried, acted):
            task.cancel()
        await asyncio.gather(ended, hurried, acted, return_exceptions=True)
    return not process.running


def _signal_rung(process: ProcessHandle, number: signal.Signals, wait_s: float | None = None) -> Rung:
    async def act() -> None:
        process.send_signal(number)

    return Rung(number.name, act, wait_s or SIGNAL_WAIT_S)
