"""Messages on stdin (floor 6): what a script pipes in is delivered, and the answers decide the exit code."""

from __future__ import annotations

import asyncio
import os
from collections import deque

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


class StdinConversation:
    """Delivers each line of stdin that is a message, and counts what came of it.

    It outlives a VM: when another one takes over (KVM gave way to TCG), what was not answered is delivered again.
    """

    def __init__(self) -> None:
        self._decoder = LineDecoder()
        self._ended = False
        self._waiting: deque[Message] = deque()
        self._under_way: dict[int, Message] = {}
        self._lines = 0
        self._answered = 0
        self._failed = 0

    async def run(self, vm: VM) -> Outcome | None:
        """Deliver until stdin has ended and all is answered, and say how it went; None when stdin held no line."""
        self._waiting.extendleft(reversed(self._under_way.values()))
        self._under_way.clear()
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while self._waiting or not self._ended:
                if not self._waiting:
                    await self._read()
                    continue
                await room.acquire()
                message = self._waiting.popleft()
                self._under_way[id(message)] = message
                group.create_task(self._deliver(vm, message, room))
        return self._outcome()

    async def _read(self) -> None:
        """Read what stdin has, and keep the messages in it."""
        chunk = await _read_stdin()
        self._ended = not chunk
        for line in self._decoder.feed(chunk or b"\n"):
            self._take(line)
        if self._ended and self._decoder.dropped_lines:
            self._lines += self._decoder.dropped_lines
            self._failed += self._decoder.dropped_lines
            say(f"error: {self._decoder.dropped_lines} line(s) of stdin were too long to be messages")

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        self._lines += 1
        try:
            self._waiting.append(parse_message(line))
        except MessageError as error:
            self._failed += 1
            say(f"error: line {self._lines} of stdin: {error}")
            say(f"  | {to_plain_text(line[:120])}")

    async def _deliver(self, vm: VM, message: Message, room: asyncio.Semaphore) -> None:
        try:
            answer = await vm.send(message.envelope, timeout_s=ANSWER_TIMEOUT_S)
            self._answered += 1
            self._failed += answer.type == "error"
        except ControlError as error:
            self._failed += 1
            say(render_error(error, colour=False))
        finally:
            room.release()
        del self._under_way[id(message)]

    def _outcome(self) -> Outcome | None:
        if not self._lines:
            return None
        how = f"{self._answered} of {self._lines} messages answered"
        return Outcome(EXIT_ERROR if self._failed else EXIT_OK, how)


async def _read_stdin() -> bytes:
    try:
        os.fstat(0)
    except OSError:
        return b""  # stdin is closed
    try:
        return await read_ready(0)
    except OSError:
        return b""  # a directory, or a descriptor that cannot be read
