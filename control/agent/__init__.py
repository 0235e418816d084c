"""The host's end of the guest agent's channel (floor 2)."""

from control.agent.client import AgentClient

__all__ = ["AgentClient"]
