"""Freezes the file systems on disks, so that a copy of the disks is whole (guest floor); used by `filesystem_*`.

A process of its own does it, the *guardian*: it freezes, waits, and thaws when it is told to, when its time is up, or
when the agent is gone. So no fault of the agent leaves a guest behind that cannot write. While it is frozen the agent
writes to no disk, because it would never return from that.
Source: Linux, include/uapi/linux/fs.h (FIFREEZE, FITHAW, FITRIM) and fs/ioctl.c.
"""

import os
from time import monotonic

from . import dispatch, mounts
from .loop import HANGUP, IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from .main import Agent
    from .mounts import Mount

_FIFREEZE, _FITHAW, _FITRIM = 0xC0045877, 0xC0045878, 0xC0185879
_EBUSY, _EINVAL = 16, 22
# EOPNOTSUPP, ENOTTY, EINVAL: this kind of file system knows nothing of the sort.
_UNSUPPORTED = (95, 25, 22)
# What is answered while nothing may be written. All else waits for the thaw.
WHILE_FROZEN = frozenset(
    (
        "hello", "ping", "get_agent_info", "cancel", "job_list", "job_cancel", "filesystem_thaw", "filesystem_status",
        "get_system_info", "get_network_info", "get_disk_usage", "get_time", "get_metrics", "metrics_watch",
        "cpu_list", "memory_list", "process_list", "process_signal", "message", "share_changed",
    )
)  # fmt: skip
# Jobs that run on while it is frozen without writing anything themselves.
_HARMLESS_JOBS = frozenset(("exec_start", "file_get", "file_watch", "log_follow", "metrics_watch"))
_STOP = b"thaw\n"
_MAX_REPORT_BYTES = 65536


def check_allowed(method: str) -> None:
    """Refuses what might write while the file systems are frozen.

    Raises:
        CallError: Busy.
    """
    if method not in WHILE_FROZEN:
        raise dispatch.CallError(dispatch.BUSY, "the file systems are frozen: first call filesystem_thaw")


def find_targets(paths: "list[str] | None", writable: bool = True) -> "list[Mount]":
    """The file systems on disks, each once, in the order of their mounting; those mounted at `paths` where given.

    Raises:
        CallError: Nothing is mounted at a path, or what is there lies on no disk.
    """
    found: "dict[str, Mount]" = {}
    for mount in mounts.read_mounts():
        if mount.is_on_disk and not mount.is_remote and not (writable and mount.read_only):
            found.setdefault(mount.device, mount)
    if paths is None:
        return list(found.values())
    by_path = {mount.path: mount for mount in mounts.read_mounts()}
    wanted = set()
    for path in paths:
        if path not in by_path:
            raise dispatch.CallError(dispatch.NOT_FOUND, "nothing is mounted at %s" % path, {"path": path})
        device = by_path[path].device
        if device not in found:
            text = "%s lies on no disk that can be written" % path
            raise dispatch.CallError(dispatch.NOT_SUPPORTED, text, {"path": path})
        wanted.add(device)
    return [mount for device, mount in found.items() if device in wanted]


class Freezer:
    """The file systems that are frozen now; made by the first `filesystem_freeze`, kept as `agent.freezer`."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._fd = -1
        self._pid = 0
        self._data = b""
        self._until = 0.0
        self._told: "Callable[[dict[str, Any]], Any] | None" = None
        self._last: "dict[str, Any] | None" = None
        self.paths: "list[str]" = []

    @property
    def is_busy(self) -> bool:
        """Whether a guardian is at work."""
        return self._fd >= 0

    @property
    def remaining_s(self) -> float:
        return max(0.0, self._until - monotonic()) if self.paths else 0.0

    def freeze(self, targets: "list[Mount]", timeout_s: float, done: "Callable[[dict[str, Any]], Any]") -> None:
        """Freezes them; calls `done(report)` when they are, or none of them is.

        Raises:
            OSError: There is no process or descriptor to be had for it.
            CallError: It is done already, or something the agent does just now writes.
        """
        if self.is_busy:
            raise dispatch.CallError(dispatch.BUSY, "the file systems are frozen already")
        for job in self._agent.jobs.list():
            if job.method not in _HARMLESS_JOBS:
                raise dispatch.CallError(dispatch.BUSY, "job %d (%s) may be writing" % (job.id, job.method))
        import _socket

        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        # From here on nothing is written, so that nothing is caught in the middle.
        self._agent.guard.hold(True)
        try:
            pid = os.fork()
        except OSError:
            self._agent.guard.hold(False)
            raise
        if not pid:
            _guard(theirs.fileno(), targets, timeout_s)
        theirs.close()
        ours.setblocking(False)
        self._pid, self._fd, self._data = pid, ours.detach(), b""
        self._until = monotonic() + timeout_s
        self._told = done
        self._agent.loop.add(self._fd, IN | HANGUP, self._read)

    def thaw(self, done: "Callable[[dict[str, Any]], Any]") -> None:
        """Lets everybody write again; calls `done(report)` when that is so.

        Raises:
            CallError: Nothing is frozen, or it is being thawed.
        """
        if not self.is_busy:
            raise dispatch.CallError(dispatch.FAILED, "the file systems are not frozen")
        if self._told is not None:
            raise dispatch.CallError(dispatch.BUSY, "it is being frozen or thawed just now")
        self._told = done
        try:
            os.write(self._fd, _STOP)
        except OSError:
            pass  # its time was up this moment; it tells itself that it has thawed them

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._fd, _MAX_REPORT_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        self._data += data
        while b"\n" in self._data:
            line, _, self._data = self._data.partition(b"\n")
            self._hear(line)
        if not data:
            self._end()

    def _hear(self, line: bytes) -> None:
        from . import wire

        report: "dict[str, Any]" = wire.decode(line)
        self.paths = report["frozen"]
        if self.paths:
            self._tell(report)
        else:
            self._last = report  # it is told when the guardian has gone: then another one may begin

    def _end(self) -> None:
        self._agent.loop.remove(self._fd)
        os.close(self._fd)
        self._fd = -1
        os.waitpid(self._pid, 0)
        left, self.paths = self.paths, []
        for path in left:
            _thaw_path(path)  # somebody killed the guardian: what it had frozen still is
        self._agent.guard.hold(False)
        report, self._last = self._last, None
        if report is None:
            text = "the process that held the file systems was ended; they are thawed"
            report = {"frozen": [], "failed": [], "error": text}
            self._agent.report("failed", text)
        elif report.get("reason") == "timeout":
            self._agent.report("thawed", "the file systems were thawed because their time was up")
        self._tell(report)

    def _tell(self, report: "dict[str, Any]") -> None:
        told, self._told = self._told, None
        if told is not None:
            told(report)


def trim(targets: "list[Mount]", minimum_bytes: int) -> "list[dict[str, Any]]":
    """Tells the disks which of their blocks are free; takes its time, so call it in a process of its own."""
    import fcntl

    results: "list[dict[str, Any]]" = []
    for mount in targets:
        result: "dict[str, Any]" = {"path": mount.path, "trimmed_bytes": None, "error": None}
        # struct fstrim_range: start, length, smallest run of free blocks
        span = bytearray(
            (0).to_bytes(8, "little") + (2**64 - 1).to_bytes(8, "little") + minimum_bytes.to_bytes(8, "little")
        )
        try:
            fd = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _FITRIM, span, True)
            finally:
                os.close(fd)
            result["trimmed_bytes"] = int.from_bytes(span[8:16], "little")
        except OSError as error:
            result["error"] = "not supported" if error.errno in _UNSUPPORTED else str(error.strerror)
        results.append(result)
    return results


# The guardian. It never returns into the agent's code.


def _guard(fd: int, targets: "list[Mount]", timeout_s: float) -> "NoReturn":
    try:
        os.setsid()
        # A signal to the agent's group, or the end of a session, does not take it along; its descriptors do not stay.
        os.dup2(fd, 3)
        os.closerange(4, 65536)
        _freeze_and_wait(3, targets, timeout_s)
    finally:
        os._exit(0)


def _freeze_and_wait(fd: int, targets: "list[Mount]", timeout_s: float) -> None:
    import fcntl
    import select

    from . import wire

    until = monotonic() + timeout_s
    frozen: "list[tuple[int, str]]" = []
    failed: "list[dict[str, str]]" = []
    skipped: "list[str]" = []
    # What was mounted last goes first: it may lie in a file on what was mounted before it.
    for mount in reversed(targets):
        try:
            directory = os.open(mount.path, os.O_RDONLY | os.O_DIRECTORY)
            if not _is_on(directory, mount):
                skipped.append(mount.path)
                continue
            fcntl.ioctl(directory, _FIFREEZE, 0)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                skipped.append(mount.path)
                continue
            text = "somebody else has frozen it" if error.errno == _EBUSY else str(error.strerror)
            failed.append({"path": mount.path, "error": text})
            break
        frozen.append((directory, mount.path))
    if failed:
        _thaw(frozen)
        frozen = []
    report: "dict[str, Any]" = {"frozen": [path for _, path in frozen], "failed": failed, "skipped": skipped}
    # An agent that is gone does not take it; then there is nothing to wait for either.
    heard = _tell(fd, wire.encode(report))
    reason = "timeout"
    if frozen and heard:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if poll.poll(max(0.0, until - monotonic()) * 1000):
            reason = "asked" if os.read(fd, 64) else "agent gone"
    thawed = _thaw(frozen)
    if frozen:
        _tell(fd, wire.encode({"frozen": [], "thawed": thawed, "reason": reason, "failed": []}))


def _is_on(directory: int, mount: "Mount") -> bool:
    """Whether the directory is that of the mount, and not of another one that hides it."""
    device = os.fstat(directory).st_dev
    return mount.device.startswith("0:") or mount.device == "%d:%d" % (os.major(device), os.minor(device))


def _tell(fd: int, line: bytes) -> bool:
    try:
        os.write(fd, line)
    except OSError:
        return False
    return True


def _thaw(frozen: "list[tuple[int, str]]") -> "list[str]":
    import fcntl

    thawed = []
    for directory, path in reversed(frozen):
        try:
            fcntl.ioctl(directory, _FITHAW, 0)
        except OSError as error:
            if error.errno != _EINVAL:  # EINVAL: somebody else has thawed it
                continue
        thawed.append(path)
    return thawed


def _thaw_path(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _thaw([(fd, path)])
    finally:
        os.close(fd)
