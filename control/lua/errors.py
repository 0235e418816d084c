"""What goes wrong with Lua (floor 5)."""

from __future__ import annotations

from typing import Any

from control.errors import ControlError, HostError


class LuaNotFoundError(HostError):
    """This host has no Lua 5.4."""


class LuaProcessError(ControlError):
    """Code failed, or its interpreter is gone.

    Attributes:
        value: What the code called `error` with, when that was no text.
        seen: The traceback, or what the interpreter said last.
    """

    def __init__(self, message: str, *, seen: tuple[str, ...] = (), value: Any = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.seen = seen
        self.value = value

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.seen


class LuaTimeout(LuaProcessError, TimeoutError):
    """Code took longer than it may. It was interrupted; its interpreter lives on, unless `is_dead`."""

    is_dead = False


class LuaCancelled(LuaProcessError):
    """Code was cancelled. It was interrupted; its interpreter lives on, unless `is_dead`."""

    is_dead = False


class NetworkingError(LuaProcessError):
    """LuaSocket is missing, or a connection could not be made or was lost."""
