"""What the machine has done since it started, as counters (guest floor); used by `get_metrics` and `metrics_watch`.

Counters only grow, so the host takes differences over whatever time it likes. Source: proc_stat(5), proc_meminfo(5),
Documentation/admin-guide/iostats.rst, proc_pid_net(5), Documentation/accounting/psi.rst.
"""

import os
import time

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_SECTOR_BYTES = 512  # whatever the disk's own sectors are. Source: iostats.rst
_MAX_CORES = 1024
_MAX_DISKS = 256
_MAX_INTERFACES = 512
_MAX_TEXT = 1024 * 1024
_CPU = ("user_s", "nice_s", "system_s", "idle_s", "iowait_s", "irq_s", "softirq_s", "steal_s")
_MEMORY = {
    "MemTotal": "total_bytes",
    "MemFree": "free_bytes",
    "MemAvailable": "available_bytes",
    "Buffers": "buffers_bytes",
    "Cached": "cached_bytes",
    "Dirty": "dirty_bytes",
    "SwapTotal": "swap_total_bytes",
    "SwapFree": "swap_free_bytes",
}


def read_metrics() -> "dict[str, Any]":
    total, cores, counters = _read_cpus()
    return {
        "time_ns": time.time_ns(),
        "uptime_s": system.read_uptime_s(),
        "load": system.read_load(),
        "cpu": {"total": total, "cores": cores},
        "processes": {
            "running": counters.get("procs_running", 0),
            "blocked": counters.get("procs_blocked", 0),
            "started": counters.get("processes", 0),
            "switches": counters.get("ctxt", 0),
        },
        "memory": _read_memory(),
        "disks": _read_disks(),
        "networks": _read_networks(),
        "pressure": {name: _read_pressure(name) for name in ("cpu", "memory", "io")},
    }


def _read_cpus() -> "tuple[dict[str, float], list[dict[str, Any]], dict[str, int]]":
    total: "dict[str, float]" = dict.fromkeys(_CPU, 0.0)
    cores: "list[dict[str, Any]]" = []
    counters = {}
    for line in system.read_text("/proc/stat", _MAX_TEXT).splitlines():
        name, *values = line.split()
        if name == "cpu":
            total = _read_times(values)
        elif name.startswith("cpu") and name[3:].isdigit() and len(cores) < _MAX_CORES:
            cores.append(dict(_read_times(values), id=int(name[3:])))
        elif name in ("procs_running", "procs_blocked", "processes", "ctxt") and values:
            counters[name] = int(values[0])
    return total, cores, counters


def _read_times(values: "list[str]") -> "dict[str, float]":
    numbers = values + ["0"] * len(_CPU)  # an old kernel counts fewer kinds
    return {name: round(int(numbers[index]) / _TICKS, 2) for index, name in enumerate(_CPU)}


def _read_memory() -> "dict[str, int]":
    memory = dict.fromkeys(_MEMORY.values(), 0)
    for line in system.read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split(None, 1)[0] if rest.strip() else ""
        if name in _MEMORY and number.isdigit():
            memory[_MEMORY[name]] = int(number) * 1024
    return memory


def _read_disks() -> "list[dict[str, Any]]":
    """Whole disks that have done something; their partitions are part of them, and a loop is a file."""
    disks: "list[dict[str, Any]]" = []
    for line in system.read_text("/proc/diskstats", _MAX_TEXT).splitlines():
        fields = line.split()
        if len(fields) < 14 or len(disks) >= _MAX_DISKS or fields[2].startswith(("loop", "ram")):
            continue
        if not os.path.isdir("/sys/block/" + fields[2].replace("/", "!")):
            continue
        number = [int(field) for field in fields[3:14]]
        disks.append(
            {
                "name": fields[2][:64],
                "reads": number[0],
                "read_bytes": number[2] * _SECTOR_BYTES,
                "read_s": number[3] / 1000,
                "writes": number[4],
                "write_bytes": number[6] * _SECTOR_BYTES,
                "write_s": number[7] / 1000,
                "in_progress": number[8],
                "busy_s": number[9] / 1000,
            }
        )
    return disks


def _read_networks() -> "list[dict[str, Any]]":
    networks: "list[dict[str, Any]]" = []
    for line in system.read_text("/proc/net/dev", _MAX_TEXT).splitlines():
        name, colon, rest = line.rpartition(":")
        fields = rest.split()
        if not colon or len(fields) < 16 or len(networks) >= _MAX_INTERFACES:
            continue
        number = [int(field) for field in fields]
        networks.append(
            {
                "name": name.strip()[:64],
                "rx_bytes": number[0],
                "rx_packets": number[1],
                "rx_errors": number[2],
                "rx_dropped": number[3],
                "tx_bytes": number[8],
                "tx_packets": number[9],
                "tx_errors": number[10],
                "tx_dropped": number[11],
            }
        )
    return networks


def _read_pressure(name: str) -> "dict[str, Any] | None":
    """How much time was lost waiting for a resource; None where the kernel does not say."""
    pressure: "dict[str, Any]" = {}
    for line in system.read_text("/proc/pressure/" + name, 1024).splitlines():
        kind, *words = line.split()
        values = dict(word.partition("=")[::2] for word in words)
        if kind in ("some", "full") and "total" in values:
            pressure[kind] = {
                "avg_10_percent": float(values["avg10"]),
                "avg_60_percent": float(values["avg60"]),
                "avg_300_percent": float(values["avg300"]),
                "total_s": int(values["total"]) / 1_000_000,
            }
    return pressure or None
