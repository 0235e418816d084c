"""The two-way console on a terminal (floor 6): keys to the guest, Ctrl-] to our prompt."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from control.console.escape import ESCAPE_KEY, split_at_escape
from control.errors import EXIT_ERROR, EXIT_OK
from control.launch.prompt import EndOfTalk, run_command
from control.launch.session import Outcome
from control.launch.terminal import Terminal
from control.vm.consoles import Console
from control.vm.keyboard import Seat
from control.vm.vm import VM

PROMPT = "unhinged> "
GREETING = "keys go to the guest; Ctrl-] opens a prompt (help, exec, monitor, quit, …), Ctrl-] twice types one"
TYPED_AHEAD_LIMIT_BYTES = 1024 * 1024
"""Keys kept for a guest that does not read; a large paste fits."""


class Screen(Protocol):
    """The user's screen, which the guest and our prompt share."""

    def hold(self) -> None:
        """Keep the guest's output back."""

    async def release(self) -> None:
        """Show what was kept back, and from now on what comes."""

    async def say(self, text: str) -> None:
        """Show a text of ours."""


class Conversation:
    """Keys from the terminal to the guest, until the user leaves."""

    def __init__(self, vm: VM, terminal: Terminal, screen: Screen) -> None:
        self._vm = vm
        self._console: Console = vm.consoles["ttyS0"]
        self._terminal = terminal
        self._screen = screen
        self._typed = bytearray()
        self._has_typed = asyncio.Event()
        self._reading: asyncio.Task[bytes] | None = None
        self._lines_ahead: list[bytes] = []

    async def run(self) -> Outcome:
        """Converse until the user detaches or quits, or the terminal goes away."""
        who = f"the launcher's terminal (pid {os.getpid()})"
        async with self._console.keyboard.sit(who, "write") as seat:
            return await self._run_seated(seat)

    async def _run_seated(self, seat: Seat) -> Outcome:
        self._seat = seat
        typist = asyncio.create_task(self._type_for_user())
        crier = asyncio.create_task(self._tell_turns())
        try:
            return await self._read_keys()
        except EndOfTalk as end:
            if not end.detach:
                return Outcome(EXIT_OK, "quit")
            self._vm.detach()
            return Outcome(EXIT_OK, f"detached; the VM runs on (make attach NAME={self._vm.name})")
        finally:
            tasks = [typist, crier, *([self._reading] if self._reading is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # a console that ends, ends the run by itself

    async def _read(self) -> bytes:
        """The next keys or line; what was typed while a command ran comes first."""
        if self._lines_ahead:
            return self._lines_ahead.pop(0)
        self._start_reading()
        return await self._finish_reading()

    def _start_reading(self) -> asyncio.Task[bytes]:
        if self._reading is None:
            self._reading = asyncio.create_task(self._terminal.read())
        return self._reading

    async def _finish_reading(self) -> bytes:
        data = await self._start_reading()
        self._reading = None
        return data

    async def _read_keys(self) -> Outcome:
        while typed := await self._read():
            keys, after = split_at_escape(typed)
            await self._type(keys)
            if after is not None:
                await self._open_prompt(after)
        return Outcome(EXIT_ERROR, "the terminal was closed")

    async def _type(self, keys: bytes) -> None:
        """Hand keys to the guest without waiting for it: the escape key must work when the guest does not read."""
        if keys and not self._seat.types:
            await self._screen.say(f"\n[the keyboard is with {self._seat.holder}; Ctrl-] and `steal` take it back]\n")
            return
        if len(self._typed) + len(keys) > TYPED_AHEAD_LIMIT_BYTES:
            await self._screen.say("\n[the guest does not read its console: these keys are dropped]\n")
            return
        self._typed += keys
        self._has_typed.set()

    async def _type_for_user(self) -> None:
        while True:
            await self._has_typed.wait()
            keys = bytes(self._typed)
            self._typed.clear()
            self._has_typed.clear()
            await self._console.type(keys)

    async def _tell_turns(self) -> None:
        """Say when somebody takes the keyboard, and when it comes back."""
        before = self._seat.turn
        while True:
            turn = await self._seat.next_news()
            if turn == "lost" != before:
                await self._screen.say(
                    f"\n[{self._seat.holder} has taken the keyboard; Ctrl-] and `steal` take it back]\n"
                )
            elif turn == "yours" != before:
                await self._screen.say("\n[the keyboard is yours again]\n")
            before = turn

    async def _open_prompt(self, pasted: bytes) -> None:
        """Read commands until an empty line. Keys pasted behind the escape key are the first command's."""
        if pasted[:1] == bytes([ESCAPE_KEY]):
            await self._type(pasted)
            return
        self._screen.hold()
        self._terminal.enter_line_mode()
        try:
            await self._screen.say("\n" + PROMPT)
            line = pasted.replace(b"\r", b"\n") or await self._read()
            if line == bytes([ESCAPE_KEY]):
                await self._type(line)
                return
            while (text := line.decode("utf-8", "replace").strip()) and not _is_cancelled(line):
                await self._screen.say(f"{await self._run_unless_interrupted(text)}\n{PROMPT}")
                line = await self._read()
        finally:
            self._terminal.enter_raw_mode()
            await self._screen.say("\r\n")
            await self._screen.release()

    async def _run_unless_interrupted(self, text: str) -> str:
        """Run a command; Ctrl-C and the escape key give up waiting for it, other lines are kept for after it."""
        if text == "steal":
            self._seat.steal()
            return "keys are yours"
        command = asyncio.create_task(run_command(self._vm, text, self._screen.say))
        try:
            while not command.done():
                await asyncio.wait((command, self._start_reading()), return_when=asyncio.FIRST_COMPLETED)
                if command.done():
                    break
                line = await self._finish_reading()
                if not line or _is_cancelled(line):
                    return "[interrupted]"
                self._lines_ahead.append(line)
            return command.result()
        finally:
            command.cancel()
            await asyncio.gather(command, return_exceptions=True)


def _is_cancelled(line: bytes) -> bool:
    """Whether Ctrl-C or the escape key ended the line."""
    return line.endswith((b"\x03", bytes([ESCAPE_KEY])))
