"""The living VM (floor 3): owns one QEMU process and its sockets, from its start to its end.

Faces open one with `open_vm` (or find a running one with `adopt_vm`), listen to it through a `Listener`, and wait for
its `Ending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from control.agent import AgentClient
from control.console.channel import ConsoleChannel
from control.console.search import PlainText
from control.console.typed import Typed
from control.errors import (
    EXIT_BOOT_HUNG,
    EXIT_ERROR,
    EXIT_GUEST_PANICKED,
    AgentProtocolError,
    BootError,
    ControlError,
    HostError,
    LaunchError,
    MessageError,
    MonitorError,
    StateError,
    WaitTimeout,
)
from control.log import LOG
from control.monitor import Monitor, MonitorEvent, open_monitor
from control.paths import InstanceFiles
from control.process.handle import Keeper, ProcessHandle
from control.spec.vm_spec import Spec
from control.timeline.writer import Writer
from control.units import format_size
from control.vm.birth import Newborn, start_machine
from control.vm.consoles import Console, WiredConsole, open_shell
from control.vm.holder import is_held
from control.vm.instance import Record, remove_stale_files, write_record
from control.vm.journal import open_journal
from control.vm.listener import Listener
from control.vm.logs import bound_logs
from control.vm.recording import ConsoleRecording
from control.vm.screen import read_text_screen
from control.vm.shutdown import shut_down
from control.vm.sockets import connect_socket
from control.vm.states import State, check_transition
from control.vm.traffic import Counters, Traffic
from control.vm.watch import TIMES, BootWatch
from control.wire import Message, build_message
from control.wire.message import read_envelope

if TYPE_CHECKING:
    from control.agent import Guest
    from control.process.limits import Group

SOCKET_TIMEOUT_S = 20.0
"""QEMU listens within some 25 ms; a loaded host, or gigabytes of memory to set up, take longer."""

LAST_WORDS_S = 5.0
_GOOD_ENDS = {
    "guest-shutdown": "the guest shut down",
    "guest-reset": "the guest restarted",
    "host-qmp-quit": "stopped",
}
"""Reasons of QMP's SHUTDOWN event (ShutdownCause in qapi/run-state.json) that are no failure."""

STUCK_S = 1.0
"""A monitor that has not told its runstate by then is not waited for when the VM is to be brought down."""

SHELL_WAIT_S = 10.0
HISTORY_BYTES = 64 * 1024
QEMU_LOG_BYTES = 8192
QEMU_LOG_LINES = 12


@dataclass(frozen=True)
class Ending:
    """How a VM ended: in words, and with the error when it was not meant to."""

    how: str
    error: ControlError | None = None


class VM:
    """A running VM; made by `open_vm` and `adopt_vm`.

    Attributes:
        state: See `control.vm.states`.
        ended: Done once the VM is at its end, with how it came to it.
        hurry: Set it to end a gentle stop that takes too long: the guest is then not waited for.
        phases: Seconds from QEMU's start to each phase of the boot that was reached.
        consoles: By name; empty before it is started.
        trouble: What seems wrong with a guest that was not ended for it, because a person may know better.
    """

    WHAT_RUNS = "QEMU"
    MEMORY_HINT = "the limit is for all of QEMU: leave some 200 MiB above the guest's own memory, or give it less"

    def __init__(
        self,
        record: Record,
        files: InstanceFiles,
        process: ProcessHandle,
        listener: Listener,
        *,
        for_person: bool,
        judge_boot: bool,
    ) -> None:
        self.files = files
        self.process = process
        self.phases: dict[str, float] = {}
        self.consoles: dict[str, Console] = {}
        self.timeline = Writer()
        self._opening_shell = asyncio.Lock()
        self.hurry = asyncio.Event()
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.watch = BootWatch(TIMES.get(record.accelerator, TIMES["tcg"]))
        self._record = record
        self._state = State(record.state)
        self._listener = listener
        self._started = time.monotonic()
        self._monitor: Monitor | None = None
        self._console: ConsoleChannel | None = None
        self._hvc0: ConsoleChannel | None = None
        self._agent: AgentClient | None = None
        self._stood_still = False  # since it last began to run
        self._traffic: Traffic | None = None
        self._keeper: Keeper | None = None
        self._group = _read_group(record)
        self._tasks: set[asyncio.Task[None]] = set()
        self._shutdown_reason = ""
        self._for_person = for_person
        self._judge_boot = judge_boot
        self.trouble: BootError | None = None
        self._told: set[str] = set()
        self._farewell: asyncio.Task[None] | None = None
        self._detached = False
        self._closed = False

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def state(self) -> State:
        return self._state

    @property
    def record(self) -> Record:
        """What is kept of it on disk."""
        return self._record

    def keep_forwards(self, forwards: Mapping[str, str]) -> None:
        """Record what was changed about its forwards. Raises HostError; the record is as it was."""
        record = replace(self._record, forwards=dict(forwards))
        write_record(self.files, record)
        self._record = record

    @property
    def accelerator(self) -> str:
        return self._record.accelerator

    @property
    def monitor(self) -> Monitor:
        """QEMU's monitor. Raises StateError before the VM is started."""
        if self._monitor is None:
            raise StateError("the VM has no monitor yet", state=self._state.value, required=("STARTING",))
        return self._monitor

    @property
    def agent(self) -> AgentClient:
        """The guest agent's client. Raises StateError when this VM has no agent port."""
        if self._agent is None:
            raise StateError(
                "this VM has no agent port",
                state=self._state.value,
                required=("RUNNING",),
                hint="start it with `make start` or `make start-enhanced`",
            )
        return self._agent

    @property
    def has_agent(self) -> bool:
        """Whether this VM has a port for an agent."""
        return self._agent is not None

    @property
    def agent_is_ready(self) -> bool:
        """Whether the guest's agent has answered, and has not been lost since."""
        return self._agent is not None and self._agent.ready.is_set()

    @property
    def guest(self) -> Guest:
        """The guest, for what its agent can do there. Raises StateError when this VM has no agent port."""
        from control.agent import Guest  # only a VM whose guest is worked with pays for it

        return Guest(self.agent)

    @property
    def traffic(self) -> Traffic:
        """What the guest says, sorted. Raises StateError before the VM is started."""
        if self._traffic is None:
            raise StateError("the VM is not connected yet", state=self._state.value, required=("STARTING",))
        return self._traffic

    async def open_console(self, name: str) -> Console:
        """Return the console `name`, the serial one for an empty name; a shell is started when there is none.

        Raises:
            StateError: This VM has no such console.
            WaitTimeout, AgentCallError, AgentProtocolError: The agent opens no shell.
        """
        name = name or "ttyS0"
        if name == "shell":
            return await self._open_shell()
        if name not in self.consoles:
            raise StateError(
                f"{self.name} has no console {name[:40]}",
                state=self._state.value,
                required=(*self.consoles, "shell"),
                hint=f"it has: {', '.join((*self.consoles, 'shell'))}",
            )
        return self.consoles[name]

    async def _open_shell(self) -> Console:
        async with self._opening_shell:
            shell = self.consoles.get("shell")
            if shell is None or shell.ended.done():
                shell = await open_shell(self.agent, self.files, self._open_recording, within_s=SHELL_WAIT_S)
                self.consoles["shell"] = shell
            return shell

    async def show_history(self) -> None:
        """Show the listener the end of the console's log, which QEMU writes whether or not anybody listens."""
        try:
            history = _read_end(self.files.serial_log, HISTORY_BYTES)
        except OSError:
            return  # an instance without a log has no history
        await self.traffic.show_history(history)

    async def resume(self) -> None:
        """Let the guest's CPUs run."""
        if self._state is State.STARTING and not self.watch.up:  # a clone has booted, long ago
            self._reach("firmware")
        await self.monitor.execute("cont")
        if self._state is not State.RUNNING:
            self._enter(State.RUNNING)

    async def query_runstate(self) -> str:
        """Ask QEMU for its runstate. Raises MonitorError, WaitTimeout."""
        return await self.monitor.query_runstate()

    async def take_runstate(self, runstate: str) -> None:
        """Follow what QEMU has done while nobody listened: this VM has just been adopted."""
        if runstate == "paused" and self._state is State.RUNNING:
            self._enter(State.PAUSED)
        elif runstate == "running" and self._state is State.PAUSED:
            self._enter(State.RUNNING)
        elif runstate not in ("running", "paused"):
            await self._judge_stop(self.monitor)

    async def send(self, envelope: Mapping[str, Any], *, timeout_s: float) -> Message:
        """Deliver a message to the guest, as soon as its agent is there, and return its answer.

        An envelope without `id` is given one; an answer is known by it.

        Raises:
            MessageError: It is not a message, or one that claims to come from the guest; nothing was sent.
            WaitTimeout: The agent, or the answer, did not come within `timeout_s`.
            AgentProtocolError: The guest broke off.
        """
        message = read_envelope(envelope)
        if message.direction != "host-to-vm":
            raise MessageError(
                "a message to the guest has the direction host-to-vm", hint=f"this one says {message.direction}"
            )
        if not message.id:
            message = replace(message, id=f"host-{secrets.token_hex(8)}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self.agent.wait_until_ready(timeout_s)
        try:
            with self.traffic.expect_answer(message) as answer:
                await self.agent.notify("message", message.envelope)
                async with asyncio.timeout_at(deadline):
                    return await answer
        except TimeoutError:
            raise WaitTimeout(
                f"the guest's answer to {message.text!r}", timeout_s, last_seen=self.watch.last_lines(4)
            ) from None

    async def drive_line(self, line: str, how: str, seconds: float) -> None:
        """Set a line of a serial port, or send a break. Raises StateError: a VM has no port of this host."""
        raise StateError(
            f"{self.name} is at no serial port of this host", state=self._state.value, required=('kind = "serial"',)
        )

    def mark(self, label: str) -> None:
        """Note what happens now: in the timeline, and in the recording of each console."""
        self.timeline.note("step", label)
        self._mark_consoles(label)

    def _mark_consoles(self, label: str) -> None:
        for console in self.consoles.values():
            console.recording.mark(label)

    def say(self, note: str) -> None:
        """Tell those who look after the VM, and those who sit at its consoles."""
        self._listener.on_note(note)
        for console in self.consoles.values():
            console.tell(note)

    def detach(self) -> None:
        """Leave the VM running when this handle is closed."""
        self._detached = True

    async def kill(self) -> None:
        """End QEMU at once, as pulling the plug would; a VM that has ended is fine."""
        if self.process.running:
            self._enter_stopping()
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def stop(self, *, gently: bool = True, patience_s: float | None = None) -> str:
        """Bring the VM down, and return how it was done; a VM that has ended is fine.

        Args:
            patience_s: How long a guest without an agent may take after its power button was pressed.
        """
        if not self.process.running:
            return "gone"
        if self._state is State.STARTING:
            gently = False  # its CPUs have never run: nobody is there who could be asked
        self._enter_stopping()
        if gently:
            await self._let_run()
        asking = gently and not (self.ended.done() and self.ended.result().error is not None)
        return await shut_down(
            self.process, self._monitor, self._agent, gently=asking, hurry=self.hurry, patience_s=patience_s
        )

    async def _let_run(self) -> None:
        """Let a paused guest run: one that stands still cannot be asked to go."""
        try:
            if self._monitor is not None and await self._monitor.query_runstate(timeout_s=STUCK_S) == "paused":
                await self._monitor.execute("cont", timeout_s=STUCK_S)
        except (MonitorError, WaitTimeout) as error:
            LOG.debug("shutdown: %s", error)  # then the harder ways are needed anyway

    # -- what happens while it lives -------------------------------------------------------------------------------

    async def _connect(self, stack: contextlib.AsyncExitStack) -> None:
        """Reach QEMU's sockets and begin to listen to them; the guest's CPUs have not run yet when QEMU is new."""
        connection = await connect_socket(self.files.qmp_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
        self._monitor = await stack.enter_async_context(open_monitor(connection))
        self.timeline = Writer(self.files.timeline, self._listener.on_note)
        stack.callback(self.timeline.close)
        self._console = self._open_channel(self.files.serial_log, stack)
        self._wire_console("ttyS0", self.files.serial_log, self.files.serial_typed, self._console)
        stack.callback(self._close_consoles)
        if self._record.agent:
            connection = await connect_socket(self.files.agent_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
            stack.callback(connection.close)
            bulk = None
            if self._record.bulk:
                bulk = await connect_socket(self.files.bulk_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
                stack.callback(bulk.close)
            self._agent = AgentClient(connection, self._take_notification, bulk=bulk)
        journal = stack.enter_context(open_journal(self.files.messages, fresh=self._state is State.STARTING))
        self._traffic = Traffic(journal, self._listener, self._observe)
        stack.callback(self._traffic.close)
        stack.push_async_callback(self._end_tasks)
        console = self._start_task(self._pump_console(self._console, self._traffic))
        if self._record.hvc0:
            self._hvc0 = self._open_channel(self.files.hvc0_log, stack)
            self._wire_console("hvc0", self.files.hvc0_log, self.files.hvc0_typed, self._hvc0)
            self._start_task(self._record_hvc0(self._hvc0))
        events = self._start_task(self._follow_events(self._monitor))
        self._farewell = self._start_task(self._wait_for_process(console, events))
        if self._judge_boot:
            self._start_task(self._watch_boot())
        self._start_task(bound_logs(self.files.logs, self._listener.on_note))
        if self._agent is not None:
            self._start_task(self._agent.serve())
            self._start_task(self._announce_agent(self._agent))
        if self._state is State.STARTING:
            self.timeline.note_start("QEMU sets itself up")
        if self._record.share:
            from control.share.watch import make_mailboxes, watch_mailboxes  # few VMs have one

            share = Path(self._record.share)
            make_mailboxes(share)
            self._start_task(watch_mailboxes(share, self._nudge_agent, self._traffic.take_share))

    def _open_channel(self, log: Path, stack: contextlib.AsyncExitStack) -> ConsoleChannel:
        """Read a console from its beginning, or, of a VM that runs already, what comes from now on."""
        channel = ConsoleChannel(log, position=0 if self._state is State.STARTING else None)
        stack.callback(channel.close)
        return channel

    def _wire_console(self, name: str, log: Path, typed: Path, channel: ConsoleChannel) -> None:
        recording = self._open_recording(name, log, channel.position)
        self.consoles[name] = WiredConsole(name, log, recording, Typed(typed), find_agent=lambda: self._agent)

    def _open_recording(self, name: str, log: Path, offset: int) -> ConsoleRecording:
        return ConsoleRecording(self.files.times_of(log), name, self._listener.on_note, offset=offset)

    def _close_consoles(self) -> None:
        for console in self.consoles.values():
            console.close()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._take_task_result)
        return task

    def _take_task_result(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, WaitTimeout):  # ours, not the user's: their TIMEOUT has another exit code
                error = MonitorError(str(error), hint="QEMU or this host is stuck; see its load and its disk")
            self._end(Ending("an error of ours", error if isinstance(error, ControlError) else _as_bug(error)))

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump_console(self, console: ConsoleChannel, traffic: Traffic) -> None:
        recording, plain = self.consoles["ttyS0"].recording, PlainText()
        async for chunk in console.chunks():
            self.watch.feed(chunk)
            if self.watch.kernel_spoke:
                self._reach("kernel")
            recording.said(chunk, console.position)
            if self.timeline.is_open:
                self.timeline.said(plain.feed(chunk))
            await self._listener.on_console(chunk)
            await traffic.take_console(chunk)
        self._tell_missed(console)
        await traffic.end_console()

    def _tell_missed(self, console: ConsoleChannel) -> None:
        if console.missed:
            self._listener.on_note(
                f"{format_size(console.missed)} of the console were given back before they were read"
            )

    async def _record_hvc0(self, channel: ConsoleChannel) -> None:
        recording = self.consoles["hvc0"].recording
        async for chunk in channel.chunks():
            recording.said(chunk, channel.position)

    def _observe(self, message: Message) -> None:
        self._mark_consoles(f"message: {message.text}")
        if message.type != "heartbeat":  # one every few seconds, for as long as it runs
            self.timeline.note("agent", message.text)
        if message.text == "booting" and message.type == "status":
            self._reach("init")

    async def _take_notification(self, method: str, params: object) -> None:
        if method == "message":
            await self.traffic.take_agent(params)

    async def _nudge_agent(self) -> None:
        """Tell the agent to look into the inbox; one that is not there yet looks by itself when it starts."""
        if self._agent is not None and self._agent.ready.is_set():
            with contextlib.suppress(AgentProtocolError):  # its end is reported where the agent is waited for
                await self._agent.notify("share_changed", {})

    async def _announce_agent(self, agent: AgentClient) -> None:
        await agent.ready.wait()
        self.watch.up = True
        self._reach("agent")

    async def _follow_events(self, monitor: Monitor) -> None:
        async for event in monitor.events():
            LOG.debug("qemu event: %s %s", event.name, event.data)
            self.timeline.note("qmp", f"{event.name} {json.dumps(event.data)}" if event.data else event.name)
            await self._take_event(monitor, event)

    async def _take_event(self, monitor: Monitor, event: MonitorEvent) -> None:
        match event.name:
            case "SHUTDOWN":
                self._shutdown_reason = str(event.data.get("reason", ""))
            case "RESET":
                self._judge_reset()
            case "GUEST_PANICKED" | "GUEST_CRASHLOADED":
                await self._let_console_settle()
                self._fail(self.watch.panic_error())
            case "VSERPORT_CHANGE" if self._agent is not None and event.data.get("id") == "agent":
                self._take_port_change(self._agent, opened=bool(event.data.get("open")))
            case "STOP":
                self._stood_still = True
                if self._state is State.RUNNING:
                    await self._judge_stop(monitor)
            case "RESUME":
                if self._agent is not None:
                    # A snapshot may have been restored while the guest stood still.
                    self._agent.shake_hands(resumed=self._stood_still)
                self._stood_still = False
                if self._state is State.PAUSED:
                    self._enter(State.RUNNING)

    def _take_port_change(self, agent: AgentClient, *, opened: bool) -> None:
        """Follow an agent that ends, and begins again, without a restart of the guest."""
        if opened:
            agent.shake_hands()
        else:
            agent.forget_agent("the guest agent closed its port")

    def _judge_reset(self) -> None:
        if self._agent is not None:
            self._agent.forget_agent("the guest was restarted")
            # Also when no agent had answered yet: the request that was under way has just been given up.
            self._agent.shake_hands()
        cause = None if self.watch.up else self.watch.judge_silence()
        if cause is not None and cause.exit_code == EXIT_GUEST_PANICKED:
            self._fail(self.watch.to_error(cause))  # a kernel with panic=N starts over, and over
        elif self._state is State.RUNNING:
            self._listener.on_note("the guest restarts")

    async def _judge_stop(self, monitor: Monitor) -> None:
        runstate = await monitor.query_runstate()
        if runstate == "internal-error":
            self._fail(
                BootError(
                    f"the accelerator {self.accelerator} failed in the middle of the guest (runstate internal-error)",
                    code="accelerator-dead",
                    seen=(*self.read_last_words(), *self.watch.last_lines(4)),
                    hint="use software emulation: ACCEL=tcg",
                    exit_code=EXIT_ERROR if self.watch.up else EXIT_BOOT_HUNG,
                )
            )
        elif runstate == "io-error":
            self._fail(
                BootError(
                    "the guest was stopped because one of its disks cannot be written on this host",
                    code="disk-error",
                    seen=self.read_last_words(),
                    hint="is the disk of this host full?",
                    exit_code=EXIT_ERROR,
                )
            )
        elif runstate in ("paused", "suspended"):
            self._enter(State.PAUSED)

    async def _watch_boot(self) -> None:
        """Judge the console each time it falls silent, and the guest when it stays so."""
        while True:
            await self.watch.wait_for_silence()
            if self._state is not State.RUNNING:
                continue
            cause = self.watch.judge_silence()
            if cause is not None and not await self._agent_answers():
                if not (cause.waits_for_person and self._for_person):
                    self._fail(self.watch.to_error(cause))
                    return
                self._tell_person(self.watch.to_error(cause))
            cpu_before, clock_before = self.process.cpu_seconds(), time.monotonic()
            if self.watch.up or not await self.watch.stays_silent_until_hung() or self._state is not State.RUNNING:
                continue
            share = (self.process.cpu_seconds() - cpu_before) / (time.monotonic() - clock_before)
            screen = await read_text_screen(self.monitor, self.files)
            if (error := self.watch.judge_hang(cpu_share=share, screen=screen)) is not None:
                if not self._for_person:
                    self._fail(error)
                    return
                self._tell_person(error)

    def _tell_person(self, error: BootError) -> None:
        """Name what is wrong to somebody who sees the console and may know better; once is enough."""
        self.trouble = error
        if error.code not in self._told:
            self._told.add(error.code)
            self._listener.on_note(f"{error}; {error.hint}")

    async def _agent_answers(self) -> bool:
        """Whether the guest is alive after all: a panic that is only printed from a log leaves its agent answering."""
        if self._agent is None or not self._agent.ready.is_set():
            return False
        try:
            await self._agent.call("ping", timeout_s=5.0)
        except (WaitTimeout, AgentProtocolError):
            return False
        return True

    async def _let_console_settle(self) -> None:
        """Read the console's last words before they are used as evidence."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3.0):
                await self.watch.wait_for_silence()

    async def _wait_for_process(self, console: asyncio.Task[None], events: asyncio.Task[None]) -> None:
        return_code = await self.process.wait()
        for channel in (self._console, self._hvc0):
            if channel is not None:
                channel.finish()
        # What QEMU had still in its sockets is part of the console, and says why it ended.
        await asyncio.wait((console, events), timeout=LAST_WORDS_S)
        if self._state is State.STOPPING or self._shutdown_reason in _GOOD_ENDS:
            self._enter_final(State.STOPPED)
            self._end(Ending(_GOOD_ENDS.get(self._shutdown_reason, "stopped")))
        else:
            self._enter_final(State.FAILED)
            self._end(Ending("QEMU died", self._death(return_code)))

    def _death(self, return_code: int | None) -> ControlError:
        from control.vm.qemu_words import explain_words  # few VMs end like this

        tail = self.read_last_words()
        explanation = explain_words(tail)
        argv = json.loads(self.files.argv.read_bytes()) if self.files.argv.exists() else ()
        if self._group is not None and self._group.was_short_of_memory():
            return self._short_of_memory(argv, tail)
        died = _describe_return_code(return_code)
        if self._shutdown_reason == "host-signal":
            died = "was told to end by a signal, and not by us"
        return LaunchError(
            f"QEMU {died}: {explanation.sentence}" if explanation else f"QEMU {died}",
            argv=argv,
            return_code=return_code,
            output_tail=tail or ("it said nothing",),
            hint=explanation.hint
            if explanation
            else f"its output is in {self.files.qemu_log}, its command line in {self.files.argv}",
        )

    def _short_of_memory(self, argv: Sequence[str], tail: Sequence[str]) -> LaunchError:
        limit = self._record.spec.get("limits", {}).get("memory_bytes") or 0
        return LaunchError(
            f"{self.WHAT_RUNS} was killed by this host's kernel: it wanted more memory than its limit of "
            f"{format_size(limit)}",
            argv=argv,
            return_code=-signal.SIGKILL,
            output_tail=tail or ("it said nothing",),
            hint=self.MEMORY_HINT,
        )

    def read_last_words(self) -> tuple[str, ...]:
        """The last lines that QEMU has said, the newest at the end."""
        try:
            data = _read_end(self.files.qemu_log, QEMU_LOG_BYTES)
        except OSError:
            return ()
        return tuple(line[:300] for line in data.decode("utf-8", "replace").splitlines() if line.strip())[
            -QEMU_LOG_LINES:
        ]

    def _reach(self, phase: str) -> None:
        if phase not in self.phases:
            self.phases[phase] = time.monotonic() - self._started
            self._listener.on_phase(phase, self.phases[phase])
            self._mark_consoles(phase)
            self.timeline.note("phase", phase)

    def _fail(self, error: ControlError) -> None:
        self._end(Ending("failed", error))

    def _end(self, ending: Ending) -> None:
        if not self.ended.done():
            self.ended.set_result(ending)

    def _enter(self, state: State) -> None:
        check_transition(self._state, state)
        LOG.debug("state: %s -> %s", self._state.value, state.value)
        self._state = state
        if state is State.RUNNING:
            self.watch.start_clock()
        self._record = replace(self._record, state=state.value)
        try:
            write_record(self.files, self._record)
        except HostError as error:
            self._listener.on_note(str(error))  # a VM must come down in order, whether or not that can be written

    def _enter_stopping(self) -> None:
        if self._state is not State.STOPPING:
            self._enter(State.STOPPING)

    def _enter_final(self, state: State) -> None:
        if self._state not in (State.STOPPED, State.FAILED):
            self._record = replace(self._record, ended=datetime.now(UTC).isoformat(timespec="seconds"))
            self._enter(state)

    async def _close(self) -> None:
        """End the VM, unless it is to run on; a second time there is nothing left to do."""
        if self._closed:
            return
        self._closed = True
        if self._detached and self.process.running:
            self.process.release()
            if self._keeper is not None:
                self._keeper.release()
            return
        try:
            await self.stop()
        finally:
            self.process.send_signal(signal.SIGKILL)  # nothing is left to kill, unless stopping it went wrong
            try:
                await self.process.wait()
                if self._farewell is not None:
                    await asyncio.wait((self._farewell,), timeout=LAST_WORDS_S + 1)
            finally:
                self._clear_up()

    def _clear_up(self) -> None:
        """Record the end, tell what there is to tell, and remove what only a running QEMU needs."""
        self._report_useless()
        failed = self.ended.done() and self.ended.result().error is not None
        self._enter_final(State.FAILED if failed else State.STOPPED)
        try:
            remove_stale_files(self.files)
            if self._group is not None:
                self._group.remove()
        except HostError as error:
            self._listener.on_note(str(error))

    def _report_useless(self) -> None:
        """Say how much of what the guest sent was of no use; nothing when all of it was."""
        counters = self._traffic.counters if self._traffic is not None else Counters()
        found = (
            (counters.claimed_from_host, "claiming to come from the host"),
            (counters.not_messages, "looking like messages and not being any"),
            (self._agent.dropped if self._agent is not None else 0, "of no use on the agent's port"),
        )
        if any(count for count, _ in found):
            counted = ", ".join(f"{count} {what}" for count, what in found if count)
            self._listener.on_note(f"lines of the guest that had no effect: {counted}")


def _read_end(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - size))
        return file.read(size)


def _as_bug(error: BaseException) -> ControlError:
    LOG.debug("unexpected", exc_info=error)
    return ControlError(f"an error of ours: {error!r}", hint="please report it, with the output of --debug")


def _read_group(record: Record) -> Group | None:
    if not record.group:
        return None
    from control.process.limits import from_plain  # few VMs have one

    return from_plain(record.group)


def _describe_return_code(return_code: int | None) -> str:
    if return_code is None:
        return "ended"
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    return f"was killed by {signal.Signals(-return_code).name}"


@contextlib.asynccontextmanager
async def open_vm(
    spec: Spec,
    files: InstanceFiles,
    listener: Listener,
    *,
    for_person: bool = False,
    judge_boot: bool = True,
) -> AsyncIterator[VM]:
    """Start the VM `spec`, with its CPUs not yet running, and end it on leaving, in whatever way the body is left.

    The caller holds the instance's lock.

    Args:
        for_person: Somebody sits at the console: a guest that waits or hangs is named to them, and not ended.
        judge_boot: Watch whether the guest comes up; without it only QEMU itself can say that something is wrong.

    Raises:
        LaunchError: QEMU ended before its monitor answered (its own words); the VM is FAILED, nothing of it runs.
        HostError: QEMU cannot be started, or the instance's directory not written.
        WaitTimeout: QEMU runs and does not answer; it was killed.
    """
    with start_machine(spec, files, ports={}) as newborn:
        async with open_newborn(newborn, files, listener, for_person=for_person, judge_boot=judge_boot) as vm:
            yield vm


@contextlib.asynccontextmanager
async def open_newborn(
    newborn: Newborn,
    files: InstanceFiles,
    listener: Listener,
    *,
    for_person: bool = False,
    judge_boot: bool = True,
    outlives_us: bool = False,
) -> AsyncIterator[VM]:
    """The VM whose QEMU has just been started; it ends on leaving, in whatever way the body is left.

    Args:
        for_person, judge_boot: As `open_vm` has them.
        outlives_us: Once it is up, QEMU runs on should this process be killed, for another to adopt.

    Raises:
        LaunchError: QEMU ended before its monitor answered (its own words); the VM is FAILED, nothing of it runs.
        WaitTimeout: QEMU runs and does not answer; it was killed.
    """
    async with contextlib.AsyncExitStack() as stack:
        kind = _choose_class(newborn.record)
        vm = kind(newborn.record, files, newborn.process, listener, for_person=for_person, judge_boot=judge_boot)
        vm._keeper = newborn.keeper
        stack.push_async_callback(vm._close)
        try:
            await vm._connect(stack)
            if vm._group is not None:
                vm._group.check_kept(newborn.process.pid, newborn.spec.limits)
        except (ControlError, OSError) as error:
            raise await _launch_failure(vm, error) from error
        if outlives_us:
            vm._keeper = None
            newborn.keeper.dismiss()
        # Closed before the connections are: they are what a gentle end needs.
        stack.push_async_callback(vm._close)
        yield vm


def _choose_class(record: Record) -> type[VM]:
    if not is_held(record.spec):
        return VM
    from control.vm.held import HeldMachine  # few machines are no VM

    return HeldMachine


async def _launch_failure(vm: VM, error: Exception) -> ControlError:
    """Say why QEMU did not come up: its own words when it ended, else the error as it is."""
    if isinstance(error, HostError):
        return error
    if not isinstance(error, WaitTimeout):  # what hung up on us is about to end, and has not been reaped yet
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5.0):
                await vm.process.wait()
    if not vm.process.running:
        vm._enter_final(State.FAILED)
        death = vm._death(vm.process.return_code)
        vm._end(Ending("QEMU died", death))
        return death
    return error if isinstance(error, ControlError) else ControlError(f"QEMU cannot be reached: {error}")


@contextlib.asynccontextmanager
async def adopt_vm(
    record: Record, files: InstanceFiles, process: ProcessHandle, listener: Listener, *, for_person: bool = False
) -> AsyncIterator[VM]:
    """Take over a VM that runs without us; on leaving it is ended, unless it was detached again.

    Raises:
        MonitorError, WaitTimeout: Its QEMU cannot be reached, or another process holds its sockets; it runs on.
    """
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(process.close)
        kind = _choose_class(record)
        vm = kind(record, files, process, listener, for_person=for_person, judge_boot=True)
        vm.watch.up = True  # a boot we have not watched is not ours to judge
        await vm._connect(stack)
        stack.push_async_callback(vm._close)
        yield vm


def build_command(type_: Literal["command", "graphics"], text: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Make the envelope of a command to the guest, stamped now."""
    return build_message("host-to-vm", type_, text, details, now=datetime.now(UTC)).envelope
