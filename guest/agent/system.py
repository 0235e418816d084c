"""Facts about the machine the agent runs on, read from /proc and uname (guest floor)."""

import os


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


def read_os_release() -> "dict[str, str]":
    """What the distribution says about itself. Source: os-release(5)."""
    values = {}
    for line in (read_text("/etc/os-release") or read_text("/usr/lib/os-release")).splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.startswith("#"):
            values[key.strip()] = value.strip().strip("\"'")[:256]
    return values


def read_os_name() -> str:
    """The name the distribution gives itself."""
    return read_os_release().get("PRETTY_NAME") or os.uname().sysname


def count_cpus() -> int:
    return os.cpu_count() or 1


def read_cpu_model() -> str:
    """The name of the first processor, empty where the kernel gives none. Source: proc_cpuinfo(5)."""
    for line in read_text("/proc/cpuinfo", 8192).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "cpu model"):
            return value.strip()[:256]
    return ""


def read_init() -> str:
    """The name of the first process: `systemd`, `init` and so on."""
    return read_text("/proc/1/comm", 64).strip()


def has_systemd() -> bool:
    """Whether systemd is the first process. Source: sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def read_memory() -> "dict[str, int]":
    """/proc/meminfo in bytes, with the keys used here always present. Source: proc_meminfo(5)."""
    memory = {"MemTotal": 0, "MemAvailable": 0, "MemFree": 0, "SwapTotal": 0, "SwapFree": 0}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        number = rest.split(None, 1)[0] if rest else ""
        if name in memory and number.isdigit():
            memory[name] = int(number) * 1024
    return memory


def read_load() -> "list[float]":
    return [round(value, 2) for value in os.getloadavg()]


def read_uptime_s() -> float:
    return float((read_text("/proc/uptime", 64).split() or ["0"])[0])


def read_own_memory() -> int:
    """How much memory the agent has resident. Source: proc_pid_statm(5), second field, in pages."""
    fields = read_text("/proc/self/statm", 256).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0
