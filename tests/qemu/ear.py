"""A listener that remembers what it was told (imported by the tests of this folder)."""

from __future__ import annotations

from control.vm.listener import Carrier, Listener
from control.wire import Message


class Ear(Listener):
    """Hears everything, does nothing."""

    def __init__(self) -> None:
        self.console = b""
        self.notes: list[str] = []
        self.messages: list[Message] = []
        self.phases: list[str] = []

    async def on_console(self, chunk: bytes) -> None:
        self.console += chunk

    async def on_text(self, text: bytes) -> None: ...

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        self.messages.append(message)

    def on_phase(self, phase: str, seconds: float) -> None:
        self.phases.append(phase)

    def on_note(self, note: str) -> None:
        self.notes.append(note)
