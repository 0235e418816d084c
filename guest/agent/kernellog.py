"""Hears from the kernel's log that a process was killed because memory ran out (guest floor); made by `events`.

Source: Documentation/ABI/testing/dev-kmsg; Linux, mm/oom_kill.c, __oom_kill_process.
"""

import os

from .loop import IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_PATH = "/dev/kmsg"
# A record never has more. Source: Linux, printk.h, CONSOLE_EXT_LOG_MAX.
_RECORD_BYTES = 8192
_RECORDS_PER_TURN = 64
_KILLED = "ut of memory: Killed process "


class KernelLog:
    """Calls `heard(pid, name, in_group)` for each such process; `in_group`: only its control group had run out."""

    def __init__(self, loop: "Loop", heard: "Callable[..., Any]") -> None:
        self._heard = heard
        try:
            self._fd = os.open(_PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # a container, or an agent that is not root: the kernel's log is not theirs
        os.lseek(self._fd, 0, os.SEEK_END)
        loop.add(self._fd, IN, self._read)

    def _read(self, _events: int) -> None:
        for _ in range(_RECORDS_PER_TURN):
            try:
                record = os.read(self._fd, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before they were read: the next one is the oldest there is
            found = parse(record.decode("utf-8", "replace"))
            if found is not None:
                self._heard(*found)


def parse(record: str) -> "tuple[int, str, bool] | None":
    """Whom the kernel has killed, by a record `PRIORITY,SEQUENCE,TIME,FLAGS;TEXT`; None when it says something else.

    What programs write into the kernel's log has a facility above 0 in its priority, and is not believed.
    """
    prefix, _, text = record.partition(";")
    priority = prefix.partition(",")[0]
    if not priority.isdigit() or int(priority) > 7:
        return None
    before, found, rest = text.partition(_KILLED)
    pid, _, after = rest.partition(" (")
    if not found or before not in ("O", "Memory cgroup o") or not pid.isdigit():
        return None
    # The name may hold brackets; what follows it is known.
    name = after.partition(") total-vm:")[0].partition("\n")[0]
    return int(pid), name, before != "O"
