"""The machine's time, name, processors and memory blocks (guest floor): `get_time`, `set_time`, `set_hostname`,
`cpu_list`, `cpu_set_online`, `memory_list`, `memory_set_online`."""

import os
import time
from time import monotonic

from .. import clock, dispatch, hostname, pages, parameters, steps, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from ..dispatch import Call

# Source: Documentation/ABI/testing/sysfs-devices-system-cpu and sysfs-devices-memory.
_CPUS = "/sys/devices/system/cpu"
_BLOCKS = "/sys/devices/system/memory"
_EIO, _EBUSY = 5, 16
_BUSY_S = 5.0
_MAX_NUMBERS = 65536
_MAX_TIME_NS = 2**63 - 1


# Time


def get_time(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    return {
        "time_ns": time.time_ns(),
        "uptime_s": system.read_uptime_s(),
        "timezone": clock.read_timezone(),
        "utc_offset_s": clock.read_offset_s(),
    }


def set_time(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    time_ns = params.get("time_ns")
    with_rtc = clock.has_rtc()
    try:
        if time_ns is None:
            if not with_rtc:
                raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no clock of its machine (no RTC)")
            time.clock_settime_ns(time.CLOCK_REALTIME, clock.read_rtc_s() * 1_000_000_000)
        else:
            clock.set_time(time_ns)
    except OSError as error:
        raise steps.refuse(error) from None
    return {"time_ns": time.time_ns(), "rtc": with_rtc}


# Name


def set_hostname(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    try:
        hostname.set_hostname(params["hostname"], params.get("persistent", True))
    except OSError as error:
        raise steps.refuse(error) from None
    return {"hostname": system.read_hostname()}


# Processors


def cpu_list(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, pages.build_page("cpus", _read_numbers(_CPUS + "/present"), params, _describe_cpu))


def cpu_set_online(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _set_cpus(params["ids"], params["online"]))


def _set_cpus(ids: "list[int]", online: bool) -> "Generator[Any, Any, dict[str, Any]]":
    cpus = [_get(_describe_cpu, "CPU", id_) for id_ in ids]
    for cpu in cpus:
        if cpu["online"] != online and not cpu["can_change"]:
            raise dispatch.CallError(dispatch.NOT_SUPPORTED, "CPU %d always stays as it is" % cpu["id"])
    for id_ in ids:
        if _get(_describe_cpu, "CPU", id_)["online"] != online:
            yield from _write("%s/cpu%d/online" % (_CPUS, id_), "1" if online else "0")
    return {"cpus": [_get(_describe_cpu, "CPU", id_) for id_ in ids]}


def _describe_cpu(id_: int) -> "dict[str, Any] | None":
    if not os.path.isdir("%s/cpu%d" % (_CPUS, id_)):
        return None
    path = "%s/cpu%d/online" % (_CPUS, id_)
    # A processor that cannot be taken away has no such file; it is online then.
    can_change = os.path.exists(path)
    return {"id": id_, "online": not can_change or system.read_text(path, 8).strip() == "1", "can_change": can_change}


# Memory


def memory_list(call: "Call", params: "dict[str, Any]") -> None:
    size = _read_block_bytes()
    steps.answer(call, _list_blocks(size, params))


def memory_set_online(call: "Call", params: "dict[str, Any]") -> None:
    _read_block_bytes()
    steps.answer(call, _set_blocks(params["ids"], params["online"]))


def _list_blocks(size: int, params: "dict[str, Any]") -> "Generator[Any, Any, dict[str, Any]]":
    names = [name[6:] for name in os.listdir(_BLOCKS) if name.startswith("memory") and name[6:].isdigit()]
    result = yield from pages.build_page("blocks", sorted(map(int, names)), params, _describe_block)
    result["block_bytes"] = size
    return result


def _set_blocks(ids: "list[int]", online: bool) -> "Generator[Any, Any, dict[str, Any]]":
    for id_ in ids:
        _get(_describe_block, "memory block", id_)
    for id_ in ids:
        if _get(_describe_block, "memory block", id_)["online"] != online:
            word = "online" if online else "offline"
            yield from _write("%s/memory%d/state" % (_BLOCKS, id_), word)
    return {"blocks": [_get(_describe_block, "memory block", id_) for id_ in ids]}


def _describe_block(id_: int) -> "dict[str, Any] | None":
    directory = "%s/memory%d" % (_BLOCKS, id_)
    state = system.read_text(directory + "/state", 32).strip()
    if not state:
        return None
    return {
        "id": id_,
        "online": state == "online",
        "removable": system.read_text(directory + "/removable", 8)[:1] == "1",
    }


def _read_block_bytes() -> int:
    text = system.read_text(_BLOCKS + "/block_size_bytes", 32).strip()
    if not text:
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "the kernel of this guest has no blocks of memory to change")
    return int(text, 16)


# What both have in common


def _get(describe: "Callable[[int], dict[str, Any] | None]", noun: str, id_: int) -> "dict[str, Any]":
    entry = describe(id_)
    if entry is None:
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no %s %d" % (noun, id_))
    return entry


def _write(path: str, word: str) -> "Generator[Any, Any, None]":
    """Writes a word to the kernel in a process of its own: the kernel may take its time, the agent must not."""

    def write() -> None:
        with open(path, "wb", 0) as file:
            file.write(word.encode("ascii"))

    until = monotonic() + _BUSY_S
    while True:
        try:
            yield write
            return
        except OSError as error:
            # EBUSY, and EIO of an emulated processor that did not answer in time: while devices are being found, or the
            # host is busy, it does not work, and a moment later it does.
            if error.errno not in (_EBUSY, _EIO) or monotonic() > until:
                raise
        yield 0.2


def _read_numbers(path: str) -> "list[int]":
    """The numbers of a list like `0-3,8`."""
    numbers: "list[int]" = []
    for part in system.read_text(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            numbers += range(int(first), min(int(last) if last.isdigit() else int(first), _MAX_NUMBERS) + 1)
    return numbers


_NUMBER = parameters.integer(0, _MAX_NUMBERS)
_CHANGE = {
    "ids": (True, parameters.list_of(_NUMBER, 1, 1024)),
    "online": (True, parameters.boolean),
}

METHODS: "dict[str, tuple[Any, ...]]" = {
    "get_time": (get_time, {}),
    "set_time": (set_time, {"time_ns": (False, parameters.integer(0, _MAX_TIME_NS))}),
    "set_hostname": (
        set_hostname,
        {
            "hostname": (True, parameters.matching(hostname.is_hostname, "a name of a host, 1 to 64 of a-z 0-9 - .")),
            "persistent": (False, parameters.boolean),
        },
    ),
    "cpu_list": (cpu_list, pages.build_parameters(_NUMBER)),
    "cpu_set_online": (cpu_set_online, _CHANGE),
    "memory_list": (memory_list, pages.build_parameters(_NUMBER)),
    "memory_set_online": (memory_set_online, _CHANGE),
}
