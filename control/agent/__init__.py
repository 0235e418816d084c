"""The host's end of the guest agent's channel (floor 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.agent.client import AgentClient

if TYPE_CHECKING:
    from control.agent.guest import Guest

__all__ = ["AgentClient", "Guest"]


def __getattr__(name: str) -> object:
    """Import `Guest` when it is first asked for: a VM that is only booted and watched does without it (PEP 562)."""
    if name == "Guest":
        from control.agent.guest import Guest

        return Guest
    raise AttributeError(name)
