#!/usr/bin/env python3
"""Boots a VM with a two-way line to it: console, monitor and messages (floor 7): `make start-enhanced`.

On a terminal the guest's console is interactive and Ctrl-] opens a prompt. Without one, lines on stdin that are
messages are delivered to the guest.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from control.launch.entry import ensure_interpreter

    ensure_interpreter(__file__)

from control.console.sink import OutputSink
from control.errors import MessageError, StateError
from control.launch.interactive import GREETING, Conversation
from control.launch.options import LaunchOptions
from control.launch.render import note, render_message, wants_colour
from control.launch.session import Outcome, run_session
from control.launch.stdin_messages import StdinConversation
from control.launch.terminal import Terminal, open_terminal
from control.simple_vm_launcher import ConsoleView, SimpleVMLauncher, run_launcher
from control.units import format_size
from control.vm.listener import Carrier
from control.vm.vm import VM
from control.wire import Message, parse_message

COMMAND_TIMEOUT_S = 60.0
HELD_LIMIT_BYTES = 4 * 1024 * 1024


class EnhancedVMLauncher(SimpleVMLauncher):
    """Boots one VM in the foreground, and talks with it both ways."""

    with_agent = True

    def __init__(self, options: LaunchOptions | None = None) -> None:
        super().__init__(options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._vm: VM | None = None

    def launch_vm_with_bidirectional_communication(self) -> int:
        """Boot the VM with console, monitor and message channel, see it through, and return the exit code."""
        return self.launch_vm()

    def send_to_vm(self, command: str | Mapping[str, Any]) -> concurrent.futures.Future[Any]:
        """Send the running VM a command, from any thread; the future gives the answer, or raises a `ControlError`.

        Args:
            command: A line for QEMU's human monitor (answer: its text), or a message envelope for the guest
                (answer: the guest's `Message`).

        Raises:
            StateError: No VM is running in this launcher; nothing was sent.
        """
        if self._loop is None or self._vm is None:
            raise StateError("no VM is running in this launcher", state="DEFINED", required=("RUNNING",))
        vm = self._vm
        if isinstance(command, str):
            return asyncio.run_coroutine_threadsafe(vm.monitor.human(command), self._loop)
        return asyncio.run_coroutine_threadsafe(vm.send(command, timeout_s=COMMAND_TIMEOUT_S), self._loop)

    def process_vm_output(self, line: str) -> Message | None:
        """Read a line of the console as a message; None when it is ordinary text, or claims to come from the host."""
        try:
            message = parse_message(line)
        except MessageError:
            return None
        return message if message.direction == "vm-to-host" else None

    async def _run(self, sink: OutputSink) -> Outcome:
        self._loop = asyncio.get_running_loop()
        try:
            view = self.make_view(sink)
            with contextlib.ExitStack() as stack:
                if os.isatty(0) and os.isatty(1):
                    view.terminal = stack.enter_context(open_terminal(0))
                return await run_session(self.options, view, with_agent=True)
        finally:
            self._loop = self._vm = None

    def take_vm(self, vm: VM) -> None:
        """Be told of the VM that now runs; from here on `send_to_vm` reaches it."""
        self._vm = vm

    def make_view(self, sink: OutputSink) -> TwoWayView:
        return TwoWayView(sink, self)


class TwoWayView(ConsoleView):
    """Shows text as it comes and messages readably among it, and runs the host's side of the conversation."""

    def __init__(self, sink: OutputSink, launcher: EnhancedVMLauncher) -> None:
        super().__init__(sink)
        self.terminal: Terminal | None = None
        self._stdin = StdinConversation()
        self._launcher = launcher
        self._colour = wants_colour(1)
        self._at_line_start = True
        self._held: bytearray | None = None
        self._not_shown = 0

    @property
    def for_person(self) -> bool:
        return self.terminal is not None

    async def on_console(self, chunk: bytes) -> None:
        """Show nothing here: the same bytes come as text and messages."""

    async def on_text(self, text: bytes) -> None:
        await self._show(text)

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        if message.type == "heartbeat":
            return  # alive is what is expected; the journal has them all
        line_end = b"\r\n" if self.terminal else b"\n"
        line = render_message(message, colour=self._colour).encode("utf-8", "replace") + line_end
        await self._show(line if self._at_line_start else line_end + line)

    async def converse(self, vm: VM) -> Outcome | None:
        self._launcher.take_vm(vm)
        if self.terminal is None:
            return await self._stdin.run(vm)
        note(GREETING)
        return await Conversation(vm, self.terminal, self).run()

    async def _show(self, data: bytes) -> None:
        if not data:
            return
        self._at_line_start = data.endswith(b"\n")
        if self._held is None:
            await self.sink.write(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Hold `data` back. The guest must not wait meanwhile: our prompt may be waiting for the guest."""
        if self._held is None:
            return
        self._held += data
        if len(self._held) > 2 * HELD_LIMIT_BYTES:
            self._not_shown += len(self._held) - HELD_LIMIT_BYTES
            del self._held[:-HELD_LIMIT_BYTES]

    def on_note(self, text: str) -> None:
        if self._held is None:
            super().on_note(text)
        else:
            self._keep(f"unhinged: {text}\n".encode())

    def hold(self) -> None:
        """Keep the guest's output back from now on: our prompt is open."""
        self._held, self._not_shown = bytearray(), 0

    async def release(self) -> None:
        """Show what was kept back, and from now on what comes."""
        held, self._held = bytes(self._held or b""), None
        if self._not_shown:
            super().on_note(f"{format_size(self._not_shown)} of the console came meanwhile and are only in its log")
        await self.sink.write(held)

    async def say(self, text: str) -> None:
        """Show a text of our own, while the guest's is kept back."""
        await self.sink.write(text.encode("utf-8", "replace"))


if __name__ == "__main__":
    sys.exit(
        run_launcher(EnhancedVMLauncher, EnhancedVMLauncher.launch_vm_with_bidirectional_communication, sys.argv[1:])
    )
