"""Messages on stdin (floor 4): what a script pipes in is delivered, and the answers decide the exit code."""

from __future__ import annotations

import asyncio
import os

from control.agent.lines import LineDecoder
from control.console.tail import to_plain_text
from control.errors import EXIT_ERROR, EXIT_OK, ControlError, MessageError
from control.launch.render import render_error, say
from control.launch.session import Outcome
from control.launch.terminal import read_ready
from control.vm.vm import VM
from control.wire import Message, parse_message

ANSWER_TIMEOUT_S = 120.0
"""From delivery to answer, the boot under software emulation included; `--timeout` bounds the whole run."""

AT_ONCE = 64
"""Messages under way at a time; the next one waits, so that a large input needs little memory."""


async def converse_over_stdin(vm: VM) -> Outcome | None:
    """Deliver each line of stdin that is a message; once stdin has ended and all are answered, say how it went.

    Returns:
        The run's outcome, or None when stdin held no message at all.
    """
    desk = _Desk(vm)
    async with asyncio.TaskGroup() as group:
        lines = LineDecoder()
        while chunk := await _read_stdin():
            for line in lines.feed(chunk):
                await desk.take(line, group)
        for line in lines.feed(b"\n"):
            await desk.take(line, group)
        desk.count_dropped(lines.dropped_lines)
    return desk.outcome()


async def _read_stdin() -> bytes:
    try:
        os.fstat(0)
    except OSError:
        return b""  # stdin is closed
    try:
        return await read_ready(0)
    except OSError:
        return b""  # a directory, or a descriptor that cannot be read


class _Desk:
    """Counts what came in, what was answered, and what was wrong."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._room = asyncio.Semaphore(AT_ONCE)
        self._lines = 0
        self._answered = 0
        self._failed = 0

    async def take(self, line: bytes, group: asyncio.TaskGroup) -> None:
        if not line.strip():
            return
        self._lines += 1
        try:
            message = parse_message(line)
        except MessageError as error:
            self._refuse(line, error)
            return
        await self._room.acquire()
        group.create_task(self._deliver(message))

    def count_dropped(self, count: int) -> None:
        if count:
            self._lines += count
            self._failed += count
            say(f"error: {count} line(s) of stdin were too long to be messages")

    def outcome(self) -> Outcome | None:
        if not self._lines:
            return None
        how = f"{self._answered} of {self._lines} messages answered"
        return Outcome(EXIT_ERROR if self._failed else EXIT_OK, how)

    async def _deliver(self, message: Message) -> None:
        try:
            answer = await self._vm.send(message.envelope, timeout_s=ANSWER_TIMEOUT_S)
            self._answered += 1
            if answer.type == "error":
                self._failed += 1
        except ControlError as error:
            self._failed += 1
            say(render_error(error, colour=False))
        finally:
            self._room.release()

    def _refuse(self, line: bytes, error: MessageError) -> None:
        self._failed += 1
        say(f"error: line {self._lines} of stdin: {error}")
        say(f"  | {to_plain_text(line[:120])}")
