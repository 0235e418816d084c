"""The two-way console on a terminal (floor 4): keys to the guest, Ctrl-] to our prompt."""

from __future__ import annotations

import os
from collections.abc import Callable

from control.console.escape import ESCAPE_KEY, split_at_escape
from control.errors import EXIT_ERROR, EXIT_OK, ConsoleError
from control.launch.prompt import EndOfTalk, run_command
from control.launch.session import Outcome
from control.launch.terminal import Terminal
from control.vm.vm import VM

PROMPT = "unhinged> "
GREETING = "keys go to the guest; Ctrl-] opens a prompt (help, exec, monitor, quit, …), Ctrl-] twice types one"


class Conversation:
    """Keys from the terminal to the guest, until the user leaves.

    Args:
        hold: Called with True while our prompt is open, so that the guest's output does not run through it, and with
        False after.
    """

    def __init__(self, vm: VM, terminal: Terminal, hold: Callable[[bool], None]) -> None:
        self._vm = vm
        self._terminal = terminal
        self._hold = hold

    async def run(self) -> Outcome:
        """Converse until the user detaches or quits, or the terminal goes away."""
        try:
            while typed := await self._terminal.read():
                keys, after = split_at_escape(typed)
                if keys:
                    await self._vm.type(keys)
                if after is not None:
                    await self._open_prompt(after)
        except EndOfTalk as end:
            if end.detach:
                self._vm.detach()
                return Outcome(EXIT_OK, "detached; the VM runs on")
            return Outcome(EXIT_OK, "quit")
        except ConsoleError as error:
            return Outcome(EXIT_ERROR, "the console is gone", error)
        return Outcome(EXIT_ERROR, "the terminal was closed")

    async def _open_prompt(self, pasted: bytes) -> None:
        """Read commands until an empty line. Keys pasted behind the escape key are the first command's."""
        if pasted[:1] == bytes([ESCAPE_KEY]):
            await self._vm.type(pasted)
            return
        self._hold(True)
        self._terminal.enter_line_mode()
        try:
            self._show("\n" + PROMPT)
            line = pasted.replace(b"\r", b"\n") or await self._terminal.read()
            if line == bytes([ESCAPE_KEY]):
                await self._vm.type(line)
                return
            while (text := line.decode("utf-8", "replace").strip()) and not _is_cancelled(line):
                self._show(await run_command(self._vm, text) + "\n" + PROMPT)
                line = await self._terminal.read()
        finally:
            self._terminal.enter_raw_mode()
            self._show("\r\n")
            self._hold(False)

    def _show(self, text: str) -> None:
        os.write(1, text.encode("utf-8", "replace"))


def _is_cancelled(line: bytes) -> bool:
    """Whether Ctrl-C or the escape key ended the line."""
    return line.endswith((b"\x03", bytes([ESCAPE_KEY])))
