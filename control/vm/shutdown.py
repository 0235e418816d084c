"""The one way a VM is brought down (floor 3): each rung harder than the one before, each with its own wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from control.agent.client import AgentClient
from control.errors import ControlError
from control.log import LOG
from control.monitor import Monitor
from control.process.handle import ProcessHandle

AGENT_WAIT_S = 10.0
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


async def shut_down(process: ProcessHandle, monitor: Monitor | None, agent: AgentClient | None, *, gently: bool) -> str:
    """End the VM, however it takes, and return the name of the rung that did it.

    Args:
        gently: Ask the guest first (agent, then power button). Without it, or when nobody can be asked, QEMU is told
        to quit.

    A rung that fails is logged and the next one is tried; after the last one the process is gone.
    """
    rungs: list[Rung] = []
    if gently and agent is not None and agent.ready.is_set():
        rungs.append(Rung("agent", lambda: agent.call("shutdown", timeout_s=AGENT_WAIT_S), AGENT_WAIT_S))
    if gently and monitor is not None:
        rungs.append(Rung("power button", lambda: monitor.execute("system_powerdown"), POWERDOWN_WAIT_S))
    if monitor is not None:
        rungs.append(Rung("quit", lambda: monitor.execute("quit"), QUIT_WAIT_S))
    rungs += [_signal_rung(process, signal.SIGTERM), _signal_rung(process, signal.SIGKILL)]
    for rung in rungs:
        if not process.running:
            return "gone"
        if await _try_rung(process, rung):
            return rung.name
    await process.wait()  # nothing survives SIGKILL; only the kernel's clean-up is waited for
    return "SIGKILL"


async def _try_rung(process: ProcessHandle, rung: Rung) -> bool:
    LOG.debug("shutdown: %s, then up to %g s", rung.name, rung.wait_s)
    started = asyncio.get_running_loop().time()
    ended = asyncio.ensure_future(process.wait())
    acted = asyncio.ensure_future(rung.act())
    try:
        # The act itself may never be answered, because QEMU is gone before it could.
        await asyncio.wait((ended, acted), timeout=rung.wait_s, return_when=asyncio.FIRST_COMPLETED)
        if acted.done() and isinstance(error := acted.exception(), ControlError):
            LOG.debug("shutdown: %s failed: %s", rung.name, error)
            if not ended.done() and process.running:
                return False
        left = started + rung.wait_s - asyncio.get_running_loop().time()
        await asyncio.wait((ended,), timeout=max(0.0, left))
        return ended.done()
    finally:
        for task in (ended, acted):
            task.cancel()
        await asyncio.gather(ended, acted, return_exceptions=True)


def _signal_rung(process: ProcessHandle, number: signal.Signals) -> Rung:
    async def act() -> None:
        process.send_signal(number)

    return Rung(number.name, act, SIGNAL_WAIT_S)
