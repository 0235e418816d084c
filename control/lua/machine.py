"""One persistent Lua interpreter (floor 5): its process, its terminal, and the two pipes it is driven over.

It runs `driver.lua`, which says what goes over the pipes. Nothing here needs a thread of its own: whoever waits for an
answer carries what is printed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import select
import signal
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from control.errors import ConfigError
from control.lua.errors import LuaCancelled, LuaProcessError, LuaTimeout, NetworkingError
from control.lua.output import Output
from control.lua.values import decode, encode
from control.process.pty_child import PtyChild, start_on_terminal

DRIVER = Path(__file__).with_name("driver.lua")
TIMEOUT_S = 30.0
GRACE_S = 1.0
"""How long code that is interrupted may take to notice: what is written in C does not before it ends."""

BEGIN_WAIT_S = 10.0
"""How long an interpreter may take to start, and to read and compile what it is given, also on a busy host."""

MARK_WAIT_S = 1.0
FRAME_MAX_BYTES = 64 * 1024 * 1024
LAST_LINES = 8
_HEADER = struct.Struct("<cI")
_READ_BYTES = 65536
"""A frame of no values."""

if TYPE_CHECKING:
    from control.session.session import Session


@dataclass(frozen=True)
class LuaResult:
    """What an execution came to.

    Attributes:
        values: What the code returned; see `control.lua.values.decode`.
        output: What it printed: the last `dropped` less of it.
        dropped: Bytes of it that were not kept.
    """

    values: tuple[Any, ...]
    output: str = ""
    dropped: int = 0
    seconds: float = 0.0

    @property
    def value(self) -> Any:
        """The first of the values; None when there is none."""
        return self.values[0] if self.values else None


@dataclass(frozen=True)
class _Answer:
    kind: bytes
    values: list[Any]


class LuaVM:
    """An interpreter that keeps its state; made by `LuaVMs.create_vm`. Any thread may use it: one execution at a time.

    Args:
        executable: The interpreter, Lua 5.4.
        directory: A private directory for its wishes to interrupt.
        memory_bytes: The address space it may have.

    Raises:
        HostError: It cannot be started.
        LuaProcessError: It ended at once.
    """

    def __init__(
        self, name: str, executable: str, directory: Path, *, cwd: Path | None = None, memory_bytes: int | None = None
    ) -> None:
        self.name = name
        self.executions = 0
        self._wish = directory / f"{name}.wish"
        self._turn = threading.Lock()
        self._has_soft_interrupt = True
        self._has_begun = False
        self._unsent = memoryview(b"")  # of a request
        self._answered = 0
        self._got = bytearray()  # of an answer: what was read when an exchange ends in its middle is not lost
        self._cancelled = False
        self._end = ""
        token = secrets.token_hex(8)
        self._output = Output(f"\x1b_{token}".encode())
        asked, self._requests = os.pipe()
        self._answers, told = os.pipe()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            argv = [executable, str(DRIVER), token, str(asked), str(told)]
            self._child: PtyChild = start_on_terminal(argv, cwd=cwd, give=(asked, told))
        except BaseException:
            self._close_pipes()
            raise
        finally:
            os.close(asked)
            os.close(told)
        os.set_blocking(self._requests, False)
        if memory_bytes is not None:
            resource.prlimit(self.pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._child.process.pid

    @property
    def is_alive(self) -> bool:
        return not self._end and self._child.process.poll() is None

    @property
    def is_busy(self) -> bool:
        """Whether something is executed, or somebody is attached."""
        return self._turn.locked()

    def execute_string(self, code: str, *args: Any, timeout: float = TIMEOUT_S, name: str = "=string") -> LuaResult:
        """Run a chunk of code, or an expression, and return its values.

        Args:
            args: What `...` is in it.
            timeout: Seconds it may take, and wait for its turn.
            name: Of the chunk, for errors; as `load` takes it.

        Raises:
            LuaProcessError: It failed (with a traceback), or the interpreter is gone; that is then the end of it.
            LuaTimeout: It took too long, and was interrupted.
            LuaCancelled: Somebody called `cancel`.
            ConfigError: An argument has no counterpart in Lua; nothing was run.
        """
        started = time.monotonic()
        with self._take_turn(timeout):
            wish = None if self._has_soft_interrupt else str(self._wish)
            try:
                body = encode((name, code, wish, *args))
            except (TypeError, ValueError) as error:
                raise ConfigError(str(error), key="args") from error
            self.executions += 1
            self._output.clear()
            answer = self._run(b"x", body, max(0.0, timeout - (time.monotonic() - started)), timeout)
            output, dropped = self._output.take()
            if answer.kind == b"e":
                raise _build_error(answer.values)
            return LuaResult(tuple(answer.values), output, dropped, time.monotonic() - started)

    def execute_file(self, path: Path | str, *args: Any, timeout: float = TIMEOUT_S) -> LuaResult:
        """Run a file; otherwise as `execute_string`. Raises ConfigError when it cannot be read as text."""
        try:
            code = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", key="path") from error
        if code.startswith("#"):
            code = "--" + code  # a line for the kernel, as lua(1) skips it
        return self.execute_string(code, *args, timeout=timeout, name=f"@{path}")

    def load_network(self, module: Path, secret: str) -> None:
        """Let it listen to others while nothing is executed; see `net.lua`. Raises LuaProcessError."""
        with self._take_turn(TIMEOUT_S):
            answer = self._run(b"n", encode((str(module), secret)), TIMEOUT_S, TIMEOUT_S)
            if answer.kind == b"e":
                raise _build_error(answer.values)

    def cancel(self) -> bool:
        """Interrupt what is executed; whether anything was. Whoever waits for it gets LuaCancelled."""
        if not self.is_busy:
            return False
        os.eventfd_write(self._wake, 1)
        return True

    def kill(self) -> None:
        """End the process at once; whoever waits for an answer gets LuaProcessError."""
        self._child.process.kill()

    def close(self) -> None:
        """End it, whatever it does; a second time there is nothing left to do."""
        self._child.process.kill()
        with self._turn:
            if self._child.master >= 0:
                self._end = self._end or "it was closed"
                self._child.end()
                self._close_pipes()
                self._wish.unlink(missing_ok=True)

    # -- somebody at its terminal --------------------------------------------------------------------------------------

    def attach(self, *, timeout: float = TIMEOUT_S) -> Session:
        """Sit at its terminal: what is typed is run, as by `lua -i`, with the state that executions have.

        The session's Ctrl-C interrupts what runs. Nothing else can be executed before it is closed.

        Raises:
            LuaTimeout: It was busy with something else for so long.
            LuaProcessError: It has ended.
        """
        from control.lua.seat import LuaSeat
        from control.session.session import Session  # pexpect is of no use to those who do not sit there

        self._acquire(timeout)
        try:
            self._child.set_terminal(is_cooked=True)
            body = encode((str(self._wish),))
            self._send(memoryview(_HEADER.pack(b"t", len(body)) + body))
        except BaseException:
            self._turn.release()
            raise
        return Session(LuaSeat(self), timeout=timeout)

    @property
    def terminal(self) -> int:
        """The descriptor of our end of its terminal."""
        return self._child.master

    @property
    def answers(self) -> int:
        """The descriptor of what is readable when a talk ends."""
        return self._answers

    def poll_talk(self) -> str:
        """How a talk has ended; empty while it has not."""
        if not select.select([self._answers], [], [], 0)[0]:
            return ""
        if not self._read_answer():
            self._end = self._end or _describe_code(self._child.process.wait())
            return self._end
        return "" if self._take_answer() is None else "the conversation is over"

    def interrupt_talk(self) -> None:
        """Interrupt what was typed and runs."""
        self._wish.touch(mode=0o600)

    def end_talk(self) -> None:
        """Let others execute again."""
        if self.is_alive:
            self._child.forget_typed()
            self._child.set_terminal(is_cooked=False)
            self._wish.unlink(missing_ok=True)
            self._find_mark()
        self._turn.release()

    # -- one exchange ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _take_turn(self, timeout: float) -> Iterator[None]:
        self._acquire(timeout)
        try:
            yield
        finally:
            self._turn.release()

    def _acquire(self, timeout: float) -> None:
        if not self._turn.acquire(timeout=max(0.0, timeout)):
            raise LuaTimeout(f"{self.name} was busy for {timeout:g} s with something else")
        if self._end:
            self._turn.release()
            raise LuaProcessError(f"{self.name} has ended: {self._end}", hint="create another")
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)  # a wish that came too late for what it was meant for

    def _run(self, kind: bytes, body: bytes, within_s: float, timeout: float) -> _Answer:
        """Send a request and return its answer. Raises LuaTimeout, LuaCancelled; LuaProcessError when it ends."""
        if len(body) > FRAME_MAX_BYTES:
            raise ConfigError(f"{len(body)} bytes are more than can be handed over", key="args")
        request = _HEADER.pack(kind, len(body)) + body
        deadline = time.monotonic() + within_s
        answer = self._exchange(request, deadline)
        if answer is not None:
            self._find_mark()
            return answer
        # It took too long, or somebody cancelled it.
        error: LuaTimeout | LuaCancelled = (
            LuaCancelled(f"{self.name} was cancelled")
            if self._cancelled
            else LuaTimeout(f"{self.name} took longer than {timeout:g} s")
        )
        was_soft = False
        if self._has_soft_interrupt and not self._has_begun:
            # A signal would end an interpreter that is only just starting, or hit what reads the request.
            answer = self._exchange(b"", time.monotonic() + BEGIN_WAIT_S, heeds_wishes=False, until_begun=True)
        if answer is None and (self._has_begun or not self._has_soft_interrupt):
            was_soft = self._interrupt()
            answer = self._exchange(b"", time.monotonic() + GRACE_S, heeds_wishes=False)
        if answer is None:
            error.is_dead = True
            self._note_end("it was killed, because it could not be interrupted")
            error.seen = (*self._output.last_lines(LAST_LINES), "it could not be interrupted, and was killed")
            raise error
        self._find_mark()
        if answer.kind == b"i":
            error.seen = self._output.last_lines(LAST_LINES)
            raise error
        if was_soft:
            self._absorb_interrupt()
        else:
            self._wish.unlink(missing_ok=True)  # nobody looked for it any more
        return answer

    def _interrupt(self) -> bool:
        """Ask the code to end: with a signal the first time, and with a file after that. Whether it was the signal."""
        if self._has_soft_interrupt:
            self._has_soft_interrupt = False
            self._child.process.send_signal(signal.SIGINT)
            return True
        self._wish.touch(mode=0o600)
        return False

    def _absorb_interrupt(self) -> None:
        """The signal came too late for what it was meant for: let it come, so that it harms nothing else."""
        for number in (1, 2):
            request = _HEADER.pack(b"p", number)
            while True:
                answer = self._exchange(request, time.monotonic() + GRACE_S, heeds_wishes=False)
                request = b""
                if answer is None:
                    raise self._note_end("it does not answer")
                if answer.kind == b"p" and answer.values == [number]:
                    return
                if answer.kind == b"i" and number == 1:
                    break

    def _exchange(
        self, request: bytes, deadline: float, *, heeds_wishes: bool = True, until_begun: bool = False
    ) -> _Answer | None:
        """Send `request`, or what is left of the last one, and read one answer.

        Returns:
            None when there is none in time, or somebody cancels; with `until_begun` also once what was asked for runs.
        """
        if request:
            self._cancelled = self._has_begun = False
            self._unsent = memoryview(request)
        poller = select.poll()
        poller.register(self._answers, select.POLLIN)
        poller.register(self._child.master, select.POLLIN)
        if heeds_wishes:
            poller.register(self._wake, select.POLLIN)
        self._unsent = self._send(self._unsent)
        if self._unsent:
            poller.register(self._requests, select.POLLOUT)
        while True:
            left = deadline - time.monotonic()
            for descriptor, _ in poller.poll(max(0.0, left) * 1000):
                if descriptor == self._child.master:
                    if not self._read_output():
                        poller.unregister(descriptor)
                elif descriptor == self._wake:
                    os.eventfd_read(self._wake)
                    self._cancelled = True
                    return None
                elif descriptor == self._requests:
                    self._unsent = self._send(self._unsent)
                    if not self._unsent:
                        poller.unregister(descriptor)
                elif not self._read_answer():
                    raise self._note_end("")
            answer = self._take_answer()
            if answer is not None:
                return answer
            if left <= 0 or (until_begun and self._has_begun):
                return None

    def _send(self, pending: memoryview) -> memoryview:
        with contextlib.suppress(BlockingIOError):
            while pending:
                try:
                    pending = pending[os.write(self._requests, pending) :]
                except BrokenPipeError:
                    return memoryview(b"")  # the end of the answers says why
        return pending

    def _count_wanted(self) -> int:
        """How many bytes the answer has, as far as it is known yet."""
        if len(self._got) < _HEADER.size:
            return _HEADER.size
        return _HEADER.size + int(_HEADER.unpack_from(self._got)[1])

    def _read_answer(self) -> bool:
        """Read more of an answer; False at its end. Raises LuaProcessError when it is larger than can be taken."""
        data = os.read(self._answers, min(_READ_BYTES, self._count_wanted() - len(self._got)))
        self._got += data
        if self._count_wanted() > FRAME_MAX_BYTES:
            raise self._note_end("its answer is larger than can be handed over")
        return bool(data)

    def _take_answer(self) -> _Answer | None:
        """The answer, when all of it is there."""
        if len(self._got) < self._count_wanted():
            return None
        answer = _Answer(bytes(self._got[:1]), decode(bytes(self._got[_HEADER.size :])))
        self._got = bytearray()
        if answer.kind == b"b":
            self._has_begun = True
            return None
        self._answered += 1
        return answer

    def _read_output(self) -> bool:
        """Read what it prints; False at its end."""
        try:
            self._output.feed(os.read(self._child.master, _READ_BYTES))
        except BlockingIOError:
            return True
        except OSError:  # EIO: nobody has the terminal open any more
            return False
        return True

    def _find_mark(self) -> None:
        """Read on until all is there that was printed before the answer."""
        deadline = time.monotonic() + MARK_WAIT_S
        while not self._output.has_mark(self._answered) and time.monotonic() < deadline:
            select.select([self._child.master], [], [], max(0.0, deadline - time.monotonic()))
            if not self._read_output():
                return

    # -- its end -------------------------------------------------------------------------------------------------------

    def _note_end(self, why: str) -> LuaProcessError:
        """Bury it, and return the error that says how it ended."""
        if why:
            self._child.process.kill()
        code = self._child.process.wait()
        while self._read_output() and select.select([self._child.master], [], [], 0)[0]:
            pass
        self._end = why or _describe_code(code)
        return LuaProcessError(
            f"{self.name} has ended: {self._end}", seen=self._output.last_lines(LAST_LINES), hint="create another"
        )

    def _close_pipes(self) -> None:
        for descriptor in (self._requests, self._answers, self._wake):
            os.close(descriptor)


def _describe_code(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    return f"it was ended by {signal.Signals(-code).name}"


def _build_error(values: list[Any]) -> LuaProcessError:
    message, trace, *rest = values
    kind = NetworkingError if "networking: " in str(message) else LuaProcessError
    return kind(str(message), seen=tuple(str(trace).splitlines()[:20]), value=rest[0] if rest else None)
