"""What a face is told about its VM (floor 3)."""

from __future__ import annotations

from typing import Literal, Protocol

from control.wire import Message

Carrier = Literal["console", "agent", "share"]


class Listener(Protocol):
    """Told of everything a VM does. What is awaited slows the guest rather than losing any of it."""

    async def on_console(self, chunk: bytes) -> None:
        """The serial console's bytes, exactly as they came."""

    async def on_text(self, text: bytes) -> None:
        """The same without the messages among them."""

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        """A message from the guest, once, whichever carriers it came over."""

    def on_phase(self, phase: str, seconds: float) -> None:
        """The boot reached `phase` (kernel, init, agent), `seconds` after QEMU was started."""

    def on_note(self, note: str) -> None:
        """One line that a user should see."""
