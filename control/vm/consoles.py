"""The consoles of a machine (floor 3): a file of what each says, a way to type on it, and a keyboard for one at a time.

Two are QEMU's own (`ttyS0`, `hvc0`); a third, `shell`, is a terminal that the guest's agent opens when somebody first
comes to it, and which stays when they leave. Whoever shows one reads its file; see `control.vm.attached`.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from control.console.typed import Typed
from control.errors import AgentProtocolError, ConsoleError, ControlError, HostError, StateError
from control.log import LOG
from control.paths import InstanceFiles
from control.vm.keyboard import Keyboard

if TYPE_CHECKING:
    from control.agent import AgentClient
    from control.agent.process import ExecProcess
    from control.vm.recording import ConsoleRecording

SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -i')
"""What a shell console runs: the shell of the user the agent is, with a prompt."""

RESIZE_TIMEOUT_S = 5.0


class _Sizes:
    """Carries sizes to a console, the newest only."""

    def __init__(self, resize: Callable[[int, int], Awaitable[None]]) -> None:
        self._resize = resize
        self._wanted: tuple[int, int] | None = None
        self._told: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def carry(self, rows: int, columns: int, complain: Callable[[ControlError], None]) -> None:
        if rows <= 0 or columns <= 0 or (rows, columns) == self._told:
            return
        self._wanted = (rows, columns)
        if self._task is None:
            self._task = asyncio.create_task(self._carry(complain))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _carry(self, complain: Callable[[ControlError], None]) -> None:
        try:
            while self._wanted is not None:
                size, self._wanted = self._wanted, None
                await self._resize(*size)
                self._told = size
        except ControlError as error:
            complain(error)
        finally:
            self._task = None


class Console(ABC):
    """One console.

    Attributes:
        log: What it has said, from the beginning, and goes on to say.
        recording: When it said what, and what was typed on it.
        ended: Set, with how, once nothing more can come of it though its machine may live on.
        listeners: Are told what those who sit at it should know.
    """

    def __init__(self, name: str, log: Path, recording: ConsoleRecording) -> None:
        self.name = name
        self.log = log
        self.recording = recording
        self.keyboard = Keyboard()
        self.listeners: set[Callable[[str], None]] = set()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._sizes = _Sizes(self._have_size)

    def carry_size(self, rows: int, columns: int, complain: Callable[[ControlError], None]) -> None:
        """Have the console told, soon, the size of the terminal it is shown on; 0 means that nothing is known of it."""
        self._sizes.carry(rows, columns, complain)

    @property
    def obstacle(self) -> str:
        """Why nothing can be typed just now; empty when something can."""
        return ""

    def tell(self, text: str) -> None:
        """Tell those who sit at it."""
        for listener in tuple(self.listeners):
            listener(text)

    async def type(self, data: bytes) -> None:
        """Type `data`; returns when it was taken, which lasts as long as nobody reads. Raises ConsoleError."""
        self.recording.typed(data)
        await self._write(data)

    def close(self) -> None:
        """Let go of what it holds."""
        self._sizes.close()
        self.recording.close()

    async def _have_size(self, rows: int, columns: int) -> None:
        await self._resize(rows, columns)
        self.recording.resized(columns, rows)

    @abstractmethod
    async def _write(self, data: bytes) -> None: ...

    @abstractmethod
    async def _resize(self, rows: int, columns: int) -> None:
        """Tell it the size of the terminal it is shown on. Raises ControlError when it cannot be told."""


class WiredConsole(Console):
    """A console that QEMU carries: bytes are all that goes over it, so its size goes by way of the agent."""

    def __init__(
        self,
        name: str,
        log: Path,
        recording: ConsoleRecording,
        typed: Typed,
        *,
        find_agent: Callable[[], AgentClient | None],
    ) -> None:
        super().__init__(name, log, recording)
        self._typed = typed
        self._find_agent = find_agent

    def close(self) -> None:
        super().close()
        self._typed.close()

    async def _write(self, data: bytes) -> None:
        await self._typed.write(data)

    async def _resize(self, rows: int, columns: int) -> None:
        """Set the size with stty; the guest's kernel then tells the program in front (SIGWINCH, ioctl_tty(2))."""
        agent = self._find_agent()
        if agent is None:
            raise StateError(
                "the size of the terminal is carried to the guest by its agent, and this guest has none",
                state="no agent",
                required=("agent",),
                hint=f"in the guest: stty rows {rows} cols {columns}",
            )
        from control.agent import Guest

        await agent.wait_until_ready(RESIZE_TIMEOUT_S)
        argv = ["stty", "-F", f"/dev/{self.name}", "rows", str(rows), "cols", str(columns)]
        await Guest(agent).run(argv, timeout_s=RESIZE_TIMEOUT_S)


class ShellConsole(Console):
    """A shell in the guest, on a terminal that its agent opened; made by `open_shell`."""

    def __init__(self, log: Path, recording: ConsoleRecording, process: ExecProcess) -> None:
        super().__init__("shell", log, recording)
        self._process = process
        self._pouring = asyncio.create_task(self._pour())

    def close(self) -> None:
        super().close()
        self._pouring.cancel()

    async def _write(self, data: bytes) -> None:
        if self._process.stdin is None or self.ended.done():
            raise ConsoleError("the shell has ended", hint="attach again: a new one is opened")
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain(0)
        except AgentProtocolError as error:
            raise ConsoleError(f"the shell is gone: {error}", hint="attach again: a new one is opened") from error

    async def _resize(self, rows: int, columns: int) -> None:
        await self._process.resize(rows, columns)

    async def _pour(self) -> None:
        """Write what the shell says into its file, to its end."""
        how = "the shell is gone"
        try:
            with self.log.open("ab", buffering=0) as log:
                async with self._process:
                    if self._process.stdout is not None:
                        while chunk := await self._process.stdout.read():
                            log.write(chunk)
                            self.recording.said(bytes(chunk), log.tell())
                    status = await self._process.wait()
                    how = f"the shell ended with exit code {status.exit_code}"
        except (ControlError, OSError) as error:
            LOG.info("the shell console: %s", error)
            how = f"the shell is gone: {error}"
        finally:
            if not self.ended.done():
                self.ended.set_result(how)


async def open_shell(
    agent: AgentClient,
    files: InstanceFiles,
    open_recording: Callable[[str, Path, int], ConsoleRecording],
    *,
    within_s: float,
) -> ShellConsole:
    """Start a shell in the guest, whose file begins anew.

    Raises:
        WaitTimeout, AgentCallError, AgentProtocolError: The agent did not start one.
        HostError: Its file cannot be made.
    """
    from control.agent import Guest
    from control.agent.process import Terminal

    await agent.wait_until_ready(within_s)
    log = files.shell_log
    try:
        for path in (log, files.times_of(log)):
            path.unlink(missing_ok=True)
        os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"{log} cannot be made: {error.strerror}", hint="make room on that disk") from error
    process = await Guest(agent).exec(list(SHELL), stdin=True, terminal=Terminal())
    return ShellConsole(log, open_recording("shell", log, 0), process)
