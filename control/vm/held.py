"""A machine that no QEMU runs, living (floor 3): a program on a terminal, or a board at a serial port.

To all who deal with it, it is a `VM` with one console and neither monitor nor agent. A holder has it, as QEMU has a VM,
and outlives us (`control.process.pty_holder`, `control.process.serial_holder`).
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any, NoReturn

from control.agent import AgentClient
from control.console.channel import ConsoleChannel
from control.console.typed import Typed
from control.errors import ConsoleError, ControlError, LaunchError, StateError, WaitTimeout
from control.monitor import Monitor
from control.paths import InstanceFiles
from control.vm.consoles import Console
from control.vm.holder import End, read_end, read_state
from control.vm.logs import bound_logs
from control.vm.recording import ConsoleRecording
from control.vm.shutdown import end_holder
from control.vm.states import State
from control.vm.vm import LAST_WORDS_S, SOCKET_TIMEOUT_S, VM, Ending

LOOK_S = 0.005
"""A file has no event that could be waited for together with a process."""

STATE_LOOK_S = 0.25
EVIDENCE_LINES = 8
ORDER_BYTES = 200
ORDER_WAIT_S = 5.0


class HeldConsole(Console):
    """The console of a machine that a holder has."""

    def __init__(self, files: InstanceFiles, recording: ConsoleRecording, *, has_size: bool) -> None:
        super().__init__("console", files.serial_log, recording)
        self._files = files
        self._typed = Typed(files.serial_typed)
        self._orders = Typed(files.holder_orders)
        self._has_size = has_size

    def close(self) -> None:
        super().close()
        self._typed.close()
        self._orders.close()

    @property
    def obstacle(self) -> str:
        return str((read_state(self._files) or {}).get("why", ""))

    async def order(self, line: str) -> None:
        """Have the holder do something. Raises ConsoleError when there is none any more."""
        await self._orders.write(line.encode()[:ORDER_BYTES] + b"\n")

    async def _write(self, data: bytes) -> None:
        await self._typed.write(data)

    async def _resize(self, rows: int, columns: int) -> None:
        if not self._has_size:
            raise StateError(
                "a serial line carries no size",
                state="serial",
                required=("process",),
                hint=f"at a shell of the machine: stty rows {rows} cols {columns}",
            )
        await self.order(f"size {rows} {columns}")


class HeldMachine(VM):
    """A running machine without QEMU; made by `open_newborn` and `adopt_vm`, as a `VM` is."""

    WHAT_RUNS = "it"
    MEMORY_HINT = "give it a higher limit: memory in limits"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._driving = asyncio.Lock()

    @property
    def kind(self) -> str:
        """`process` or `serial`."""
        return str(self.record.spec["kind"])

    @property
    def monitor(self) -> Monitor:
        self._refuse("monitor")

    @property
    def agent(self) -> AgentClient:
        self._refuse("agent")

    def _refuse(self, what: str) -> NoReturn:
        raise StateError(
            f"{self.name} has no {what}: it is a {self.kind} machine, and no VM",
            state=self.state.value,
            required=("vm",),
            hint=f"work with its console: unhinged console {self.name}",
        )

    async def open_console(self, name: str) -> Console:
        if name not in ("", "console"):
            raise StateError(
                f"{self.name} has no console {name[:40]}",
                state=self.state.value,
                required=("console",),
                hint="it has one, which is called console",
            )
        return self.console

    @property
    def console(self) -> HeldConsole:
        """Its only console. Raises StateError before it is connected."""
        console = self.consoles.get("console")
        if not isinstance(console, HeldConsole):
            raise StateError("it is not connected yet", state=self.state.value, required=("RUNNING",))
        return console

    async def query_runstate(self) -> str:
        return "prelaunch" if self.state is State.STARTING else "running"

    async def resume(self) -> None:
        if self.state is not State.RUNNING:
            self._enter(State.RUNNING)

    async def kill(self) -> None:
        if self.process.running:
            self._enter_stopping()
            await end_holder(self.process, gently=False, hurry=self.hurry)

    async def stop(self, *, gently: bool = True, patience_s: float | None = None) -> str:
        if not self.process.running:
            return "gone"
        self._enter_stopping()
        return await end_holder(self.process, gently=gently, hurry=self.hurry, patience_s=patience_s)

    async def drive_line(self, line: str, how: str, seconds: float) -> None:
        """Have the holder send a break, or set DTR or RTS.

        Args:
            line: `break`, `dtr` or `rts`.
            how: Of `dtr` and `rts`: `on`, `off` or `pulse`.
            seconds: How long a break or a pulse lasts.

        Raises:
            StateError: This machine has no such line, or its cable is gone.
            ConsoleError: The port refuses.
            WaitTimeout: The holder does not answer.
        """
        if self.kind != "serial":
            await super().drive_line(line, how, seconds)
        if str(self.record.spec["port"]).startswith("socket:"):
            raise StateError(
                "a bare socket carries neither a break nor DTR and RTS",
                state="socket",
                required=("a device", "rfc2217"),
                hint='does the other side speak RFC 2217? then: port = "rfc2217://…"',
            )
        if self.console.obstacle:
            raise StateError(self.console.obstacle, state="line down", required=("line up",))
        async with self._driving:
            number = int((read_state(self.files) or {}).get("done", 0)) + 1
            lasts = f" {seconds:g}" if line == "break" or how == "pulse" else ""
            order = line if line == "break" else f"{line} {how}"
            await self.console.order(f"{number} {order}{lasts}")
            failed = await self._wait_for_order(number, seconds + ORDER_WAIT_S)
        if not failed:
            self.mark(order)
        else:
            raise ConsoleError(f"{self.record.spec['port']} refuses: {failed}", hint="has it this line at all?")

    async def _wait_for_order(self, number: int, within_s: float) -> str:
        try:
            async with asyncio.timeout(within_s):
                while (state := read_state(self.files)) is None or state.get("done") != number:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise WaitTimeout(f"the holder of {self.name}", within_s) from None
        return str(state["failed"])

    # -- what happens while it lives -------------------------------------------------------------------------------

    async def _connect(self, stack: contextlib.AsyncExitStack) -> None:
        self.watch.up = True  # it has no boot that could be judged
        await self._wait_for_holder()
        channel = self._open_channel(self.files.serial_log, stack)
        self._console = channel
        recording = self._open_recording("console", self.files.serial_log, channel.position)
        self.consoles["console"] = HeldConsole(self.files, recording, has_size=self.kind == "process")
        stack.callback(self._close_consoles)
        stack.push_async_callback(self._end_tasks)
        reading = self._start_task(self._pump(channel, recording))
        self._farewell = self._start_task(self._wait_for_end(channel, reading))
        self._start_task(bound_logs(self.files.logs, self._listener.on_note))
        if self.kind == "serial":
            self._start_task(self._follow_line())

    async def _wait_for_holder(self) -> None:
        """Wait until the holder says that it has what it is to hold. Raises ConsoleError when it cannot get it."""
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_S):
                while read_state(self.files) is None:
                    if read_end(self.files) is not None or not self.process.running:
                        raise ConsoleError("it ended before it began")
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise WaitTimeout(f"the holder of {self.name}", SOCKET_TIMEOUT_S) from None

    async def _pump(self, channel: ConsoleChannel, recording: ConsoleRecording) -> None:
        async for chunk in channel.chunks():
            self.watch.feed(chunk)
            recording.said(chunk, channel.position)
            await self._listener.on_console(chunk)
        self._tell_missed(channel)

    async def _follow_line(self) -> None:
        """Tell when the cable goes, and when it is back."""
        now = read_state(self.files) or {}
        outages, connected = now.get("outages", 0), now.get("connected", True)
        while True:
            now = read_state(self.files) or now
            if now["outages"] != outages:
                self._tell_of_line("line down", str(now["why"]) or "the line was gone")
                outages, connected = now["outages"], False
            if now["connected"] and not connected:
                self._tell_of_line("line up", f"the line is there again: {now['port']}")
                connected = True
            await asyncio.sleep(STATE_LOOK_S)

    def _tell_of_line(self, mark: str, text: str) -> None:
        self.say(text)
        self.mark(mark)

    async def _wait_for_end(self, channel: ConsoleChannel, reading: asyncio.Task[None]) -> None:
        await self.process.wait()
        channel.finish()
        await asyncio.wait((reading,), timeout=LAST_WORDS_S)
        end = read_end(self.files)
        if self.state is State.STOPPING or (end is not None and end.is_good):
            self._enter_final(State.STOPPED)
            self._end(Ending("stopped" if self.state is State.STOPPING or end is None else end.how))
        else:
            self._enter_final(State.FAILED)
            self._end(Ending(end.how if end is not None else "its holder was killed", self._death(None)))

    def _death(self, return_code: int | None) -> ControlError:
        end = read_end(self.files)
        tail = self.watch.last_lines(EVIDENCE_LINES)
        spec = self.record.spec
        argv = spec.get("command", (spec.get("port", ""),))
        if self._group is not None and self._group.was_short_of_memory():
            return self._short_of_memory(argv, tail)
        end = end or End("its holder was killed")
        return LaunchError(
            f"{Path(argv[0]).name} {end.how}" if not end.error else end.error,
            argv=argv,
            return_code=end.exit_code,
            output_tail=tail or (() if end.error else ("it said nothing",)),
            hint=end.hint or f"what it said: unhinged logs {self.name}",
        )
