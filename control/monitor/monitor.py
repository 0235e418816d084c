"""The QMP connection of one VM (floor 2), handed a connected socket by `control.vm`.

Source: QEMU QMP reference manual; `qemu.qmp` documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from control.errors import MonitorError, WaitTimeout
from control.log import LOG

DEFAULT_TIMEOUT_S = 10.0
"""QMP answers in a fraction of a millisecond; only a QEMU stuck on the host's disk takes seconds."""


@dataclass(frozen=True)
class MonitorEvent:
    """An event QEMU sent: its QMP name, its data, and when QEMU says it happened (seconds since the epoch)."""

    name: str
    data: Mapping[str, Any]
    timestamp_s: float


class Monitor:
    """Runs monitor commands; made by `open_monitor`."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Any:
        """Run the QMP command `command` and return what QEMU returned.

        Raises:
            MonitorError: QEMU refused it (its own words), or the connection is lost.
            WaitTimeout: No answer within `timeout_s`; the command may still take effect.
        """
        LOG.debug("qmp: %s %s", command, arguments or "")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._client.execute(command, dict(arguments) if arguments else None)
        except TimeoutError:
            raise WaitTimeout(f"the monitor's answer to {command}", timeout_s) from None
        except ExecuteError as error:
            raise MonitorError(f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise MonitorError(f"the connection to QEMU's monitor was lost during {command}") from error

    async def give(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor, which it knows as `name` from then on (QMP `getfd`); ours stays open.

        Raises:
            MonitorError, WaitTimeout: As `execute`.
        """
        self._client.send_fd_scm(descriptor)
        await self.execute("getfd", {"fdname": name})

    async def human(self, command_line: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Run a line of the human monitor and return its text, which is also where it reports failure."""
        text: str = await self.execute("human-monitor-command", {"command-line": command_line}, timeout_s=timeout_s)
        return text

    async def query_runstate(self, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Ask for QEMU's own word for what the machine does: `running`, `paused`, `internal-error`, …"""
        status: dict[str, str] = await self.execute("query-status", timeout_s=timeout_s)
        return status["status"]

    async def events(self) -> AsyncIterator[MonitorEvent]:
        """Yield each event from now on, until the connection ends."""
        listener = EventListener()
        with self._client.listen(listener):
            tasks: dict[str, asyncio.Future[Any]] = {"closing": asyncio.ensure_future(self._wait_for_end())}
            try:
                while True:
                    tasks["next"] = next_event = asyncio.ensure_future(listener.get())
                    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                    if not next_event.done() and listener.empty():
                        return
                    yield _to_event(await next_event)  # also what came before the connection ended
            finally:
                for task in tasks.values():
                    task.cancel()
                await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _wait_for_end(self) -> None:
        while self._client.runstate.name == "RUNNING":
            await self._client.runstate_changed()


def _to_event(message: Mapping[str, Any]) -> MonitorEvent:
    stamp = message.get("timestamp", {})
    seconds = float(stamp.get("seconds", 0)) + float(stamp.get("microseconds", 0)) / 1e6
    return MonitorEvent(str(message["event"]), message.get("data", {}), seconds)


@contextlib.asynccontextmanager
async def open_monitor(connection: socket.socket, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> AsyncIterator[Monitor]:
    """Greet QEMU on a connected socket and give its monitor; hang up on leaving. QEMU itself is left alone.

    Raises:
        MonitorError: What answered is not QMP, or hung up; the socket is closed.
        WaitTimeout: No greeting within `timeout_s`.
    """
    client = QMPClient("unhinged")
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(connection)
    except TimeoutError:
        connection.close()
        raise WaitTimeout("the greeting of QEMU's monitor", timeout_s) from None
    except (QMPError, OSError) as error:
        connection.close()
        raise MonitorError(f"QEMU's monitor cannot be reached: {error}") from error
    try:
        yield Monitor(client)
    finally:
        # What ended the connection has been reported to whoever was waiting; hanging up has nothing to add.
        with contextlib.suppress(QMPError, EOFError, OSError):
            await client.disconnect()
