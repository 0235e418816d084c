"""`get_system_info`, `get_network_info` and `get_disk_usage` (guest floor): what the machine is and how full it is."""

from .. import mounts, network, pages, parameters, steps, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call


def get_system_info(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    memory = system.read_memory()
    release = system.read_os_release()
    return {
        "hostname": system.read_hostname(),
        "os": system.read_os_name(),
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "kernel": system.read_kernel(),
        "architecture": system.read_architecture(),
        "init": system.read_init(),
        "cpus": system.count_cpus(),
        "cpu_model": system.read_cpu_model(),
        "memory_total_bytes": memory["MemTotal"],
        "memory_available_bytes": memory["MemAvailable"],
        "swap_total_bytes": memory["SwapTotal"],
        "swap_free_bytes": memory["SwapFree"],
        "load": system.read_load(),
        "uptime_s": system.read_uptime_s(),
    }


def get_network_info(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _build_network(params))


def _build_network(params: "dict[str, Any]") -> "Generator[None, None, dict[str, Any]]":
    interfaces = yield from network.read_interfaces()
    result = yield from pages.build_page("interfaces", sorted(interfaces), params, interfaces.get)
    result["gateways"] = yield from network.read_gateways(interfaces)
    result["dns"] = network.read_dns()
    return result


def get_disk_usage(call: "Call", params: "dict[str, Any]") -> None:
    everything = params.get("all", False)
    found = {mount.id: mount for mount in mounts.read_mounts()}

    def describe(key: int) -> "dict[str, Any] | None":
        mount = found[key]
        sizes = mounts.measure(mount)
        if sizes is None and not everything and not mount.is_remote:
            return None
        return {
            "id": mount.id,
            "path": mount.path[:4096],
            "source": mount.source[:4096],
            "type": mount.type[:64],
            "options": [option[:256] for option in mount.options[:64]],
            "read_only": mount.read_only,
            "sizes": sizes,
        }

    steps.answer(call, pages.build_page("mounts", sorted(found), params, describe))


_NUMBERED = pages.build_parameters(parameters.integer(0, 2**31 - 1))

METHODS: "dict[str, tuple[Any, ...]]" = {
    "get_system_info": (get_system_info, {}),
    "get_network_info": (get_network_info, _NUMBERED),
    "get_disk_usage": (get_disk_usage, dict(_NUMBERED, all=(False, parameters.boolean))),
}
