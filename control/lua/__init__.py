"""Lua interpreters that keep their state (docs/lua.md): `LuaVMs` makes them."""

from control.lua.errors import LuaCancelled, LuaNotFoundError, LuaProcessError, LuaTimeout, NetworkingError
from control.lua.machine import LuaResult, LuaVM
from control.lua.values import LuaObject
from control.lua.vms import LuaVMs

__all__ = [
    "LuaCancelled",
    "LuaNotFoundError",
    "LuaObject",
    "LuaProcessError",
    "LuaResult",
    "LuaTimeout",
    "LuaVM",
    "LuaVMs",
    "NetworkingError",
]
