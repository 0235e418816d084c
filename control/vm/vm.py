"""The living VM (floor 3): owns one QEMU process and its sockets, from its start to its end.

Faces open one with `open_vm` (or find a running one with `adopt_vm`), listen to it through a `Listener`, and wait for its `Ending`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from control.agent import AgentClient
from control.argv import build_argv
from control.console.channel import ConsoleChannel
from control.console.scanner import Candidate, MessageScanner
from control.errors import (
    EXIT_GUEST_PANICKED,
    AgentProtocolError,
    BootError,
    ControlError,
    HostError,
    LaunchError,
    MessageError,
    StateError,
    WaitTimeout,
)
from control.log import LOG
from control.monitor import Monitor, MonitorEvent, open_monitor
from control.paths import InstanceFiles
from control.process.handle import Keeper, ProcessHandle, start_keeper, start_process
from control.spec import VMSpec
from control.vm.instance import Record, read_host_boot_id, remove_stale_files, write_atomically, write_record
from control.vm.journal import Journal, open_journal
from control.vm.qemu_words import explain_words
from control.vm.screen import read_text_screen
from control.vm.shutdown import shut_down
from control.vm.sockets import connect_socket
from control.vm.states import State, check_transition
from control.vm.watch import TIMES, BootWatch
from control.wire import Message, build_message, parse_message
from control.wire.message import read_envelope

SOCKET_TIMEOUT_S = 20.0
"""QEMU listens within some 25 ms; a loaded host, or gigabytes of memory to set up, take longer."""

HELD_LINE_S = 0.5
"""How long the beginning of a possible message is held back before it is shown as the text it may well be."""

REMEMBERED_IDS = 4096
QEMU_LOG_LINES = 12

Carrier = Literal["console", "agent"]


class Listener(Protocol):
    """What a face is told about its VM. Console bytes are awaited, so a slow face slows the guest instead of losing any."""

    async def on_console(self, chunk: bytes) -> None:
        """The serial console's bytes, exactly as they came."""

    async def on_text(self, text: bytes) -> None:
        """The same without the messages among them."""

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        """A message from the guest, once, whichever carriers it came over."""

    def on_phase(self, phase: str, seconds: float) -> None:
        """The boot reached `phase` (firmware, kernel, init, agent), `seconds` after QEMU was started."""

    def on_note(self, note: str) -> None:
        """One line that a user should see."""


@dataclass(frozen=True)
class Ending:
    """How a VM ended: in words, and with the error when it was not meant to."""

    how: str
    error: ControlError | None = None


@dataclass
class Counters:
    """What the guest sent that was of no use; reported at the end, so that nothing is dropped in silence."""

    not_messages: int = 0
    claimed_from_host: int = 0


class VM:
    """A running VM; made by `open_vm` and `adopt_vm`.

    Attributes:
        state: See `control.vm.states`.
        ended: Done once the VM is at its end, with how it came to it.
        phases: Seconds from QEMU's start to each phase of the boot that was reached.
    """

    def __init__(
        self, record: Record, files: InstanceFiles, process: ProcessHandle, listener: Listener, *, for_person: bool
    ) -> None:
        self.files = files
        self.process = process
        self.counters = Counters()
        self.phases: dict[str, float] = {}
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.watch = BootWatch(TIMES[record.accelerator or "tcg"], for_person=for_person)
        self._record = record
        self._state = State(record.state)
        self._listener = listener
        self._started = time.monotonic()
        self._monitor: Monitor | None = None
        self._console: ConsoleChannel | None = None
        self._agent: AgentClient | None = None
        self._journal: Journal | None = None
        self._keeper: Keeper | None = None
        self._scanner = MessageScanner()
        self._scanning = asyncio.Lock()
        self._fed = 0
        self._seen_ids: deque[str] = deque(maxlen=REMEMBERED_IDS)
        self._seen_set: set[str] = set()
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._guest_shut_down = ""
        self._detached = False

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def state(self) -> State:
        return self._state

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

    async def type(self, data: bytes) -> None:
        """Type `data` on the serial console. Raises ConsoleError when the VM is gone."""
        if self._console is not None:
            await self._console.write(data)

    def read_history(self, limit_bytes: int = 64 * 1024) -> bytes:
        """Read the end of the console's log, which QEMU writes whether or not anybody listens."""
        try:
            with self.files.serial_log.open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - limit_bytes))
                return log.read()
        except OSError:
            return b""

    async def resume(self) -> None:
        """Let the guest's CPUs run."""
        await self.monitor.execute("cont")
        if self._state is not State.RUNNING:
            self._enter(State.RUNNING)

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
            message = replace(message, id=f"host-{time.time_ns():x}-{len(self._answers)}")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        await self.agent.wait_until_ready(timeout_s)
        answer: asyncio.Future[Message] = loop.create_future()
        self._answers[message.id] = answer
        try:
            await self.agent.notify("message", message.envelope)
            self._write_journal(message)
            async with asyncio.timeout_at(deadline):
                return await answer
        except TimeoutError:
            raise WaitTimeout(
                f"the guest's answer to {message.text!r}", timeout_s, last_seen=self.watch.last_lines(4)
            ) from None
        finally:
            del self._answers[message.id]

    def detach(self) -> None:
        """Leave the VM running when this handle is closed."""
        self._detached = True

    async def stop(self, *, gently: bool = True) -> str:
        """Bring the VM down, and return how it was done; a VM that has ended is fine."""
        if self._state in (State.STOPPED, State.FAILED):
            return "gone"
        if self._state is not State.STOPPING:
            self._enter(State.STOPPING)
        asking = gently and not (self.ended.done() and self.ended.result().error is not None)
        return await shut_down(self.process, self._monitor, self._agent, gently=asking)

    # -- what happens while it lives -------------------------------------------------------------------------------

    async def _connect(self, stack: contextlib.AsyncExitStack) -> None:
        """Reach QEMU's sockets and begin to listen to them; the guest's CPUs have not run yet when QEMU is new."""
        connection = await connect_socket(self.files.qmp_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
        self._monitor = await stack.enter_async_context(open_monitor(connection))
        connection = await connect_socket(self.files.serial_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
        self._console = ConsoleChannel(connection)
        stack.callback(self._console.close)
        if self._record.agent:
            connection = await connect_socket(self.files.agent_socket, self.process, timeout_s=SOCKET_TIMEOUT_S)
            self._agent = AgentClient(connection, self._take_notification)
            stack.callback(self._agent.close)
        self._journal = stack.enter_context(open_journal(self.files.messages))
        stack.push_async_callback(self._end_tasks)
        console = self._start_task(self._pump_console(self._console))
        self._start_task(self._follow_events(self._monitor))
        self._start_task(self._wait_for_process(console))
        self._start_task(self._watch_boot())
        if self._agent is not None:
            self._start_task(self._agent.serve())
            self._start_task(self._announce_agent(self._agent))

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._take_task_result)
        return task

    def _take_task_result(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(Ending("an error of ours", error if isinstance(error, ControlError) else _as_bug(error)))

    async def _end_tasks(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump_console(self, console: ConsoleChannel) -> None:
        async for chunk in console.chunks():
            self._fed += 1
            self.watch.feed(chunk)
            if "kernel" not in self.phases and b"Linux version " in chunk:
                self._reach("kernel")
            await self._listener.on_console(chunk)
            async with self._scanning:
                await self._scan(chunk)
            if self._scanner.holds_back:
                self._start_task(self._release_held(self._fed))
        await self._pass_on_held()

    async def _scan(self, chunk: bytes) -> None:
        for piece in self._scanner.feed(chunk):
            if isinstance(piece, Candidate):
                await self._take_candidate(piece.data)
            else:
                await self._listener.on_text(piece.data)
        if self._journal is not None:
            self._journal.flush()

    async def _release_held(self, fed: int) -> None:
        """Show what was held back, unless more has come since: then it is another's turn."""
        await asyncio.sleep(HELD_LINE_S)
        if fed == self._fed:
            await self._pass_on_held()

    async def _pass_on_held(self) -> None:
        async with self._scanning:
            if held := self._scanner.release():
                await self._listener.on_text(held)

    async def _take_candidate(self, line: bytes) -> None:
        try:
            message = parse_message(line)
        except MessageError:
            self.counters.not_messages += 1
            await self._listener.on_text(line)
            return
        if not await self._take_message(message, "console"):
            await self._listener.on_text(line)

    async def _take_message(self, message: Message, carrier: Carrier) -> bool:
        """Note, pass on and answer a message of the guest; False when it claims to come from the host."""
        if message.direction != "vm-to-host":
            self.counters.claimed_from_host += 1
            if self.counters.claimed_from_host == 1:
                self._listener.on_note("the guest sent a message that claims to come from the host; it is not acted on")
            return False
        if message.id and not self._is_new(message.id):
            return True
        self._write_journal(message)
        if message.text == "booting" and message.type == "status":
            self._reach("init")
        answer = self._answers.get(message.in_reply_to) if message.in_reply_to else None
        if answer is not None and not answer.done():
            answer.set_result(message)
        await self._listener.on_message(message, carrier)
        return True

    def _is_new(self, message_id: str) -> bool:
        if message_id in self._seen_set:
            return False
        if len(self._seen_ids) == REMEMBERED_IDS:
            self._seen_set.discard(self._seen_ids[0])
        self._seen_ids.append(message_id)
        self._seen_set.add(message_id)
        return True

    def _write_journal(self, message: Message) -> None:
        if self._journal is not None:
            self._journal.append(message)

    def _take_notification(self, method: str, params: object) -> None:
        if method == "message":
            self._start_task(self._take_agent_message(params))

    async def _take_agent_message(self, params: object) -> None:
        try:
            message = read_envelope(params)
        except MessageError:
            self.counters.not_messages += 1
            return
        async with self._scanning:
            await self._take_message(message, "agent")
            if self._journal is not None:
                self._journal.flush()

    async def _announce_agent(self, agent: AgentClient) -> None:
        await agent.ready.wait()
        self.watch.up = True
        self._reach("agent")

    async def _follow_events(self, monitor: Monitor) -> None:
        async for event in monitor.events():
            LOG.debug("qemu event: %s %s", event.name, event.data)
            await self._take_event(monitor, event)

    async def _take_event(self, monitor: Monitor, event: MonitorEvent) -> None:
        match event.name:
            case "SHUTDOWN":
                self._guest_shut_down = str(event.data.get("reason", "shutdown"))
            case "RESET":
                self._judge_reset()
            case "GUEST_PANICKED" | "GUEST_CRASHLOADED":
                await self._let_console_settle()
                self._fail(self.watch.panic_error())
            case "STOP" if self._state is State.RUNNING:
                await self._judge_stop(monitor)
            case "RESUME" if self._state is State.PAUSED:
                self._enter(State.RUNNING)

    def _judge_reset(self) -> None:
        if self._agent is not None:
            self._agent.guest_restarted()
            if "agent" in self.phases:
                self._start_task(self._agent.shake_hands())
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
                    f"the accelerator ({self.accelerator}) failed in the middle of the guest: QEMU's runstate is internal-error",
                    code="accelerator-dead",
                    seen=(*self._qemu_log_tail(), *self.watch.last_lines(4)),
                    hint="use software emulation: ACCEL=tcg",
                )
            )
        elif runstate == "io-error":
            self._fail(
                BootError(
                    "the guest was stopped because one of its disks cannot be written on this host",
                    code="disk-error",
                    seen=self._qemu_log_tail(),
                    hint="is the disk of this host full?",
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
                self._fail(self.watch.to_error(cause))
                return
            cpu_before, clock_before = self.process.cpu_seconds(), time.monotonic()
            if self.watch.up or not await self.watch.stays_silent_until_hung() or self._state is not State.RUNNING:
                continue
            share = (self.process.cpu_seconds() - cpu_before) / (time.monotonic() - clock_before)
            screen = await read_text_screen(self.monitor, self.files)
            if (error := self.watch.judge_hang(cpu_share=share, screen=screen)) is not None:
                self._fail(error)
                return

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

    async def _wait_for_process(self, console: asyncio.Task[None]) -> None:
        return_code = await self.process.wait()
        # What QEMU had still in its socket is part of the console.
        await asyncio.wait((console,), timeout=5.0)
        if self._state is State.STOPPING or self._guest_shut_down:
            how = {"guest-shutdown": "the guest shut down", "guest-reset": "the guest restarted"}
            self._enter_final(State.STOPPED)
            self._end(Ending(how.get(self._guest_shut_down, "stopped")))
        else:
            self._enter_final(State.FAILED)
            self._end(Ending("QEMU died", self._death(return_code)))

    def _death(self, return_code: int | None) -> ControlError:
        tail = self._qemu_log_tail()
        explanation = explain_words(tail)
        argv = json.loads(self.files.argv.read_bytes()) if self.files.argv.exists() else ()
        died = _describe_return_code(return_code)
        return LaunchError(
            f"QEMU {died}: {explanation.sentence}" if explanation else f"QEMU {died}",
            argv=argv,
            return_code=return_code,
            output_tail=tail or ("it said nothing",),
            hint=explanation.hint
            if explanation
            else f"its output is in {self.files.qemu_log}, its command line in {self.files.argv}",
        )

    def _qemu_log_tail(self) -> tuple[str, ...]:
        try:
            data = self.files.qemu_log.read_bytes()[-8192:]
        except OSError:
            return ()
        return tuple(line[:300] for line in data.decode("utf-8", "replace").splitlines() if line.strip())[
            -QEMU_LOG_LINES:
        ]

    def _reach(self, phase: str) -> None:
        if phase not in self.phases:
            self.phases[phase] = time.monotonic() - self._started
            self._listener.on_phase(phase, self.phases[phase])

    def _fail(self, error: ControlError) -> None:
        self._end(Ending("failed", error))

    def _end(self, ending: Ending) -> None:
        if not self.ended.done():
            self.ended.set_result(ending)

    def _enter(self, state: State) -> None:
        check_transition(self._state, state)
        LOG.debug("state: %s -> %s", self._state.value, state.value)
        self._state = state
        self._record = replace(self._record, state=state.value)
        write_record(self.files, self._record)

    def _enter_final(self, state: State) -> None:
        if self._state not in (State.STOPPED, State.FAILED):
            self._record = replace(self._record, ended=datetime.now(UTC).isoformat(timespec="seconds"))
            self._enter(state)

    async def _close(self) -> None:
        """End the VM, unless it is to run on."""
        if self._detached and self.process.running:
            if self._keeper is not None:
                self._keeper.release()
            return
        await self.stop()
        await self.process.wait()
        failed = self.ended.done() and self.ended.result().error is not None
        self._enter_final(State.FAILED if failed else State.STOPPED)
        remove_stale_files(self.files)


def _as_bug(error: BaseException) -> ControlError:
    LOG.debug("unexpected", exc_info=error)
    return ControlError(f"an error of ours: {error!r}", hint="please report it, with the output of --debug")


def _describe_return_code(return_code: int | None) -> str:
    if return_code is None:
        return "ended"
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    return f"was killed by {signal.Signals(-return_code).name}"


@contextlib.asynccontextmanager
async def open_vm(
    spec: VMSpec, files: InstanceFiles, listener: Listener, *, for_person: bool = False
) -> AsyncIterator[VM]:
    """Start the VM `spec`, with its CPUs not yet running, and end it on leaving, in whatever way the body is left.

    The caller holds the instance's lock. `for_person` says that somebody sits at the console, who may answer its prompts.

    Raises:
        LaunchError: QEMU ended before its monitor answered (its own words); the VM is FAILED, nothing of it runs.
        HostError: QEMU cannot be started, or the instance's directory not written.
        WaitTimeout: QEMU runs and does not answer; it was killed.
    """
    async with contextlib.AsyncExitStack() as stack:
        remove_stale_files(files)
        files.qemu_log.unlink(missing_ok=True)
        argv = build_argv(spec, files)
        write_atomically(files.argv, json.dumps(argv, indent=1).encode())
        keeper = stack.enter_context(start_keeper(files.pid))
        process = stack.enter_context(start_process(argv, output=files.qemu_log, cwd=files.directory))
        record = Record(
            name=spec.name,
            state=State.STARTING.value,
            pid=process.pid,
            start_ticks=process.start_ticks,
            host_boot_id=read_host_boot_id(),
            accelerator=spec.accelerator,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            agent=spec.agent,
            hvc0=spec.hvc0,
            spec=json.loads(json.dumps(vars(spec), default=lambda value: getattr(value, "__dict__", str(value)))),
        )
        vm = VM(record, files, process, listener, for_person=for_person)
        vm._keeper = keeper
        stack.push_async_callback(vm._close)
        try:
            write_record(files, record)
            await vm._connect(stack)
        except (ControlError, OSError) as error:
            raise await _launch_failure(vm, error) from error
        # Closed before the connections are: they are what a gentle end needs.
        stack.push_async_callback(vm._close)
        yield vm


async def _launch_failure(vm: VM, error: Exception) -> ControlError:
    """Say why QEMU did not come up: its own words when it ended, else the error as it is."""
    if isinstance(error, HostError):
        return error
    if not vm.process.running or isinstance(error, LaunchError):
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
        vm = VM(record, files, process, listener, for_person=for_person)
        vm.watch.up = True  # a boot we have not watched is not ours to judge
        await vm._connect(stack)
        stack.push_async_callback(vm._close)
        yield vm


def build_command(type_: Literal["command", "graphics"], text: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """Make the envelope of a command to the guest, stamped now."""
    return build_message("host-to-vm", type_, text, details, now=datetime.now(UTC)).envelope
