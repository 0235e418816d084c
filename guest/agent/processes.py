"""The processes of the guest (guest floor), as /proc shows them.

Source: proc_pid_stat(5), proc_pid_statm(5), proc_pid_cmdline(5), pidfd_open(2).
"""

import os

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_COMMAND = 1024
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_users: "dict[int, str]" = {}


def list_pids() -> "list[int]":
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def describe(pid: int) -> "dict[str, Any] | None":
    """One process; None when it has ended."""
    directory = "/proc/%d" % pid
    fields = _read_stat(pid)
    if fields is None:
        return None
    try:
        uid = os.stat(directory).st_uid
    except OSError:
        return None
    # The argument vector is the program's own to write into, and may be as large as it likes.
    words = system.read_text(directory + "/cmdline", _MAX_COMMAND * 4).rstrip("\0").split("\0")
    return {
        "pid": pid,
        "ppid": int(fields[2]),
        "uid": uid,
        "user": _name_user(uid),
        "name": fields[0],
        "state": fields[1],
        "cpu_s": round((int(fields[12]) + int(fields[13])) / _TICKS, 2),
        "rss_bytes": int(fields[22]) * _PAGE_BYTES,
        "threads": int(fields[18]),
        "start_ticks": int(fields[20]),
        "start_s": round(int(fields[20]) / _TICKS, 2),
        "command": " ".join(words)[:_MAX_COMMAND],
    }


def send_signal(pid: int, number: int, start_ticks: "int | None" = None) -> None:
    """Sends a signal to exactly the process that was meant.

    Args:
        start_ticks: When it started, as `describe` says; a process that has taken over the pid since gets nothing.

    Raises:
        ProcessLookupError: There is no such process, or it is another one.
        PermissionError: The kernel does not allow it.
    """
    import _signal  # type: ignore[import-not-found]

    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (3, 22):  # ESRCH; EINVAL: the number is that of a thread
            raise ProcessLookupError(3, "there is no process %d" % pid) from None
        if error.errno != 38:
            raise
        pidfd = -1  # ENOSYS: Linux before 5.3
    try:
        # The descriptor stands for one process, so what is seen after it was opened holds until it is used.
        fields = _read_stat(pid)
        if fields is None or (start_ticks is not None and int(fields[20]) != start_ticks):
            raise ProcessLookupError(3, "there is no process %d that started then" % pid)
        if pidfd < 0:
            os.kill(pid, number)
        else:
            _signal.pidfd_send_signal(pidfd, number)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def _read_stat(pid: int) -> "list[str] | None":
    """The fields of `stat` from the name on: [0] is field 2, and so on; None when there is no such process."""
    text = system.read_text("/proc/%d/stat" % pid, 4096)
    # The name may hold anything, closing brackets too.
    before, _, after = text.rpartition(")")
    fields = [before.partition("(")[2], *after.split()]
    return fields if len(fields) > 22 else None


def _name_user(uid: int) -> str:
    if uid not in _users:
        import pwd

        if len(_users) > 1000:
            _users.clear()
        try:
            _users[uid] = pwd.getpwuid(uid).pw_name[:256]
        except KeyError:
            _users[uid] = str(uid)
    return _users[uid]
