"""`ping` and `get_agent_info` (guest floor): the first calls of every connection, so this imports next to nothing."""

import os

from .. import PROTOCOL, VERSION, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def ping(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    return {}


def get_agent_info(call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    agent = call.agent
    return {
        "version": VERSION,
        "protocol": PROTOCOL,
        "capabilities": agent.list_capabilities(),
        "pid": os.getpid(),
        "boot_id": read_boot_id(),
        "session": agent.session,
        "transport": agent.transport,
    }


_boot_id: "list[str]" = []


def read_boot_id() -> str:
    """The kernel's id of this boot, empty where there is none. Source: random(4)."""
    if not _boot_id:
        _boot_id.append(system.read_text("/proc/sys/kernel/random/boot_id", 64).strip())
    return _boot_id[0]


METHODS: "dict[str, tuple[Any, ...]]" = {"ping": (ping, {}), "get_agent_info": (get_agent_info, {})}
