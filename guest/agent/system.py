"""Facts about the machine the agent runs on, read from /proc and uname (guest floor)."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read_text(path: str, limit: int = 65536) -> str:
    """The beginning of a file as text, empty when it cannot be read."""
    try:
        with open(path, "rb", 0) as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def read_hostname() -> str:
    return os.uname().nodename


def read_kernel() -> str:
    return os.uname().release


def read_architecture() -> str:
    return os.uname().machine


def read_os_name() -> str:
    """The name the distribution gives itself. Source: os-release(5)."""
    for line in (read_text("/etc/os-release") or read_text("/usr/lib/os-release")).splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'")[:256]
    return os.uname().sysname


def count_cpus() -> int:
    return os.cpu_count() or 1


def read_memory() -> "dict[str, int]":
    """/proc/meminfo in bytes, with the keys used here always present. Source: proc_meminfo(5)."""
    memory = {"MemTotal": 0, "MemAvailable": 0, "MemFree": 0, "SwapTotal": 0, "SwapFree": 0}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in memory:
            memory[name] = int(rest.split()[0]) * 1024
    return memory


def read_load() -> "list[float]":
    return [round(value, 2) for value in os.getloadavg()]


def read_uptime_s() -> float:
    return float((read_text("/proc/uptime", 64).split() or ["0"])[0])


def read_own_memory() -> int:
    """How much memory the agent has resident. Source: proc_pid_statm(5), second field, in pages."""
    fields = read_text("/proc/self/statm", 256).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def list_disks() -> "list[dict[str, Any]]":
    """The mounted file systems that have a size, at most 32. A share is left out: asking the host takes time."""
    disks = []
    for line in read_text("/proc/self/mounts").splitlines():
        fields = line.split(" ")
        if len(fields) < 3 or fields[2] in ("9p", "nfs", "nfs4", "cifs", "autofs") or fields[2].startswith("fuse"):
            continue
        # Source: proc_pid_mounts(5): space, tab, line feed and backslash are octal escapes.
        path = fields[1].encode("latin-1", "replace").decode("unicode_escape") if "\\" in fields[1] else fields[1]
        try:
            sizes = os.statvfs(path)
        except OSError:
            continue  # not ours to see
        if sizes.f_blocks:
            disks.append(
                {
                    "path": path[:4096],
                    "type": fields[2][:64],
                    "total_bytes": sizes.f_blocks * sizes.f_frsize,
                    "available_bytes": sizes.f_bavail * sizes.f_frsize,
                }
            )
    return disks[:32]
