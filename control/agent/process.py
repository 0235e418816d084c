"""Programs that run in the guest, as handles like those of a subprocess (floor 2)."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from control.agent.client import DEFAULT_TIMEOUT_S, AgentClient
from control.agent.jobs import Job
from control.agent.streams import Incoming, Outgoing
from control.errors import AgentCallError, AgentProtocolError, ControlError, ExecError, ExecTimeout, WaitTimeout

KEPT_BYTES = 64 * 1024 * 1024
"""How much of each output `wait_output` keeps, when it is not told otherwise."""

END_GRACE_S = 10.0
"""How much longer than its time limit a program may take to be reported: the guest may be slow, or paused."""

SHELLS_EXIT_CODES = {-32002: 127, -32003: 126}
"""What a shell ends with when a program is not there, or may not be run (POSIX, 2.8.2), by the agent's error."""

CANCEL_WAIT_S = 10.0
"""How long the end of a program that was cancelled is waited for; its guest may stand still."""


@dataclass(frozen=True)
class Terminal:
    """A pseudo-terminal of its own for a program in the guest."""

    rows: int = 24
    columns: int = 80
    term: str = "xterm-256color"


@dataclass(frozen=True)
class ExecStatus:
    """How a program ended.

    Attributes:
        exit_code: Its own; 128 and the number of the signal when one killed it, as shells count.
        signal: The signal that killed it, else 0.
        timed_out: It was killed because its time was over.
        seconds: How long it ran.
    """

    exit_code: int
    signal: int
    timed_out: bool
    seconds: float


@dataclass(frozen=True)
class ExecResult(ExecStatus):
    """How a program ended, and what it wrote.

    Attributes:
        truncated: An output was longer than what was to be kept; the rest is lost.
    """

    command: tuple[str, ...]
    stdout: bytes
    stderr: bytes
    truncated: bool

    def check(self) -> ExecResult:
        """Return itself. Raises ExecError when the program did not end with exit code 0."""
        if self.exit_code:
            raise ExecError(self.command, self.exit_code, self.stdout, self.stderr, signal=self.signal)
        return self


class ExecProcess:
    """A program that runs in the guest; made by `start_process`. As a context manager it does not outlive the body.

    Attributes:
        command: Program and arguments.
        pid: Its number in the guest.
        stdin: What it reads; None when that is nothing.
        stdout, stderr: What it writes, as it comes; None where it goes nowhere. With a terminal all of it is `stdout`.
    """

    def __init__(
        self,
        command: Sequence[str],
        job: Job,
        client: AgentClient,
        *,
        stdin: Outgoing | None,
        stdout: Incoming | None,
        stderr: Incoming | None,
        timeout_s: float | None,
    ) -> None:
        self.command = tuple(command)
        self.pid: int = job.answer["pid"]
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self._job = job
        self._client = client
        self._timeout_s = timeout_s

    async def __aenter__(self) -> ExecProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.end()

    @property
    def running(self) -> bool:
        return not self._job.ended.done()

    async def wait(self, timeout_s: float | None = None) -> ExecStatus:
        """Wait until the program has ended; its outputs must be read meanwhile, or it is held up.

        Raises:
            WaitTimeout: It has not ended within `timeout_s`; it runs on.
            AgentCallError: It was cancelled.
            AgentProtocolError: The guest was lost.
        """
        return _read_status(await self._job.wait(timeout_s))

    async def wait_output(
        self, stdin: bytes = b"", *, timeout_s: float | None = None, keep_bytes: int = KEPT_BYTES
    ) -> ExecResult:
        """Write `stdin`, read both outputs to their ends, and wait for the program's.

        Args:
            keep_bytes: How much of each output is kept; the rest is read and lost.

        Raises:
            ExecTimeout: It was killed because its time was over, or it has not ended within `timeout_s` and runs on.
            AgentCallError: It was cancelled.
            AgentProtocolError: The guest was lost.
        """
        outputs = (_Kept(self.stdout, keep_bytes), _Kept(self.stderr, keep_bytes))
        seconds = timeout_s
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write_all(stdin))
                for output in outputs:
                    tasks.create_task(output.read())
                waiting = tasks.create_task(self.wait())
            status = waiting.result()
            if not status.timed_out:
                truncated = any(output.truncated for output in outputs)
                return ExecResult(
                    **vars(status),
                    command=self.command,
                    stdout=bytes(outputs[0].data),
                    stderr=bytes(outputs[1].data),
                    truncated=truncated,
                )
            seconds = self._timeout_s
        except TimeoutError:
            pass
        except BaseExceptionGroup as group:
            raise _first_error(group) from None
        raise ExecTimeout(
            self.command, seconds or 0.0, bytes(outputs[0].data), bytes(outputs[1].data), killed=not self.running
        )

    async def send_signal(self, number: signals.Signals | int | str) -> None:
        """Send a signal to the program's whole process group; a name such as `TERM` is the guest's own word for it.

        Raises:
            AgentCallError: It has ended (-32002), or there is no such signal.
        """
        name = number if isinstance(number, str) else signals.Signals(number).name
        await self._client.call("exec_signal", {"job": self._job.number, "signal": name.removeprefix("SIG")})

    async def resize(self, rows: int, columns: int) -> None:
        """Give the program's terminal another size.

        Raises:
            AgentCallError: It has ended, or has no terminal.
        """
        await self._client.call("exec_resize", {"job": self._job.number, "rows": rows, "columns": columns})

    def cancel(self) -> None:
        """Have it killed with its whole process group; its end is waited for by nobody."""
        self._job.cancel()
        self._give_up_streams()

    async def end(self) -> None:
        """End the program, if it has not ended, and let go of its streams."""
        if self.running:
            self.cancel()
            with contextlib.suppress(AgentCallError, AgentProtocolError, WaitTimeout):
                await self._job.wait(CANCEL_WAIT_S)
        self._give_up_streams()

    def _give_up_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.give_up("the host wants no more of it")

    async def _write_all(self, data: bytes) -> None:
        if self.stdin is None:
            return
        with contextlib.suppress(AgentProtocolError):  # it does not want the rest, as `head` does not
            if data:
                self.stdin.write(data)
                await self.stdin.drain(0)
            self.stdin.close()


class _Kept:
    """The first bytes of an output, up to a limit."""

    def __init__(self, stream: Incoming | None, limit: int) -> None:
        self.data = bytearray()
        self.truncated = False
        self._stream = stream
        self._limit = limit

    async def read(self) -> None:
        while self._stream is not None and (chunk := await self._stream.read()):
            room = self._limit - len(self.data)
            self.data += chunk[:room]
            self.truncated = self.truncated or len(chunk) > room


async def start_process(
    client: AgentClient,
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
    stdin: bool = False,
    terminal: Terminal | None = None,
    timeout_s: float | None = None,
    start_timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ExecProcess:
    """Start a program in the guest; no shell is involved.

    Args:
        argv: Program and arguments; the program is looked for in the `PATH` of its environment.
        env: Set over the agent's own environment.
        user: Whom it runs as; None for whom the agent's configuration says.
        stdin: Whether it reads what is written to its `stdin`; otherwise it reads nothing.
        terminal: Give it a terminal of its own.
        timeout_s: After so many seconds it is killed with its whole process group; None for no limit.

    Raises:
        AgentCallError: It cannot be started: not there (-32002), not permitted (-32003), too many run (-32004).
        AgentProtocolError: The guest was lost, or its agent has no port for streams.
        WaitTimeout: The agent did not say within `start_timeout_s` that it runs; should it start later, it is ended.
    """
    streams = client.streams
    opened: list[Incoming | Outgoing] = []
    try:
        input_ = streams.open_outgoing() if stdin else None
        opened += [input_] if input_ else []
        stdout = streams.open_incoming()
        opened.append(stdout)
        stderr = None if terminal else streams.open_incoming()
        opened += [stderr] if stderr else []
        params: dict[str, Any] = {
            "argv": list(argv),
            "cwd": cwd,
            "env": dict(env) if env is not None else None,
            "user": user,
            "timeout_s": timeout_s,
            "pty": vars(terminal) if terminal else None,
            "stdin": input_.number if input_ else None,
            "stdout": stdout.number,
            "stderr": stderr.number if stderr else None,
        }
        given = {key: value for key, value in params.items() if value is not None}
        job = await client.start_job("exec_start", given, timeout_s=start_timeout_s)
    except BaseException as error:
        if isinstance(error, AgentCallError):
            error.exit_code = SHELLS_EXIT_CODES.get(error.code, error.exit_code)
        for stream in opened:
            stream.give_up("the command was not started")
        raise
    if input_ is not None:
        input_.open()
    return ExecProcess(argv, job, client, stdin=input_, stdout=stdout, stderr=stderr, timeout_s=timeout_s)


async def run_process(
    client: AgentClient,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    check: bool = True,
    timeout_s: float | None = None,
    keep_bytes: int = KEPT_BYTES,
    **how: Any,
) -> ExecResult:
    """Run a program in the guest to its end and return what it wrote; `how` is that of `start_process`.

    Raises:
        ExecError: It ended with another exit code than 0, and `check` is set.
        ExecTimeout: It took longer than `timeout_s`; it was killed, the error holds its output so far.
        AgentCallError, AgentProtocolError, WaitTimeout: As `start_process`.
    """
    # The guest ends it in time; the waits of our own are for a guest that stands still.
    patience_s = None if timeout_s is None else timeout_s + END_GRACE_S
    begin_s = min(DEFAULT_TIMEOUT_S, patience_s or DEFAULT_TIMEOUT_S)
    process = await start_process(client, argv, stdin=bool(stdin), timeout_s=timeout_s, start_timeout_s=begin_s, **how)
    async with process:
        result = await process.wait_output(stdin, timeout_s=patience_s, keep_bytes=keep_bytes)
    return result.check() if check else result


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours in `group`; what else is in it is its consequence."""
    for error in group.exceptions:
        if isinstance(error, ControlError):
            return error
    return group.exceptions[0]


def _read_status(result: Mapping[str, Any]) -> ExecStatus:
    """Read the result of `exec_start`'s job: it has either an exit code or a signal."""
    signal = result["signal"] or 0
    exit_code = 128 + signal if result["exit_code"] is None else result["exit_code"]
    return ExecStatus(exit_code, signal, result["timed_out"], float(result["seconds"]))
