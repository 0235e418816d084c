"""`get_system_info` (guest floor)."""

from .. import system


def get_system_info(_call: "object", _params: "dict") -> "dict":
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


METHODS = {"get_system_info": (get_system_info, {})}
