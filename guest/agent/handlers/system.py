"""`get_system_info` (guest floor)."""

from .. import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def get_system_info(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    memory = system.read_memory()
    return {
        "hostname": system.read_hostname(),
        "os": system.read_os_name(),
        "kernel": system.read_kernel(),
        "architecture": system.read_architecture(),
        "cpus": system.count_cpus(),
        "memory_total_bytes": memory["MemTotal"],
        "memory_available_bytes": memory["MemAvailable"],
        "load": system.read_load(),
        "uptime_s": system.read_uptime_s(),
    }


METHODS: "dict[str, tuple[Any, ...]]" = {"get_system_info": (get_system_info, {})}
