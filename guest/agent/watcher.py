"""Hears of changes in directories through inotify (guest floor); made by `file_watch`.

inotify has no door in Python's library, so the C library is called through ctypes, which is imported with the first
watch: it takes about a megabyte. (dnotify, which needs no ctypes, says neither which name nor which directory.)
Directories are given to the kernel as descriptors, so the rules about paths hold for them as for anything else.
Source: inotify(7).
"""

import os
import stat
from struct import Struct

from . import dispatch, files
from .loop import IN
from .pathpolicy import READ, Denied, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .jobs import Job
    from .main import Agent

# Source: Linux, include/uapi/linux/inotify.h.
_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT, _OVERFLOW, _IGNORED, _ISDIR = 0x400, 0x800, 0x2000, 0x4000, 0x8000, 0x40000000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_EVENT = Struct("iIII")
_READ_BYTES = 65536
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Changes are gathered for so long, and the same one is told once.
_GATHER_S = 0.1
_MAX_GATHERED = 2000
_MAX_TOLD = 200
_MAX_DEPTH = 256


class Watcher:
    """One watch: a file, a directory, or with `recursive` all directories below it.

    Attributes:
        count: How many directories are watched.
    """

    def __init__(self, agent: "Agent", path: bytes, recursive: bool) -> None:
        self._agent = agent
        self._recursive = recursive
        self._job: "Job | None" = None
        self._path = path
        # For a file its directory is watched, and what happens to other names there is passed over.
        self._only: "bytes | None" = None
        self._directories: "dict[int, bytes]" = {}
        self._root = 0
        self._gathered: "list[dict[str, Any]]" = []
        self._seen: "set[tuple[str, bytes]]" = set()
        self._lost = False
        self._waits = False
        self.count = 0
        self._libc = _load_libc()
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _last_error("inotify")

    def look_first(self) -> "Generator[None, None, None]":
        """Begins to watch everything there is; what happens meanwhile is told after `start`."""
        with self._agent.guard.paths.find(self._path, READ) as place:
            place.check()
            if stat.S_ISDIR(place.stat().st_mode):
                fd = place.open(os.O_RDONLY | os.O_DIRECTORY)
            else:
                self._only = place.name
                self._recursive = False
                fd = os.open(b".", _OPEN, dir_fd=place.dir_fd)
        try:
            self._root = self._add(fd, b"")
            if self._recursive:
                yield from self._add_below(fd, b"", False)
            yield
        finally:
            os.close(fd)

    def start(self, job: "Job") -> None:
        """Tells of what changes, from now on, as notifications of this job."""
        self._job = job
        self._agent.loop.add(self._fd, IN, lambda _events: self._read())

    def cancel(self) -> None:
        self._end(dispatch.CallError(dispatch.CANCELLED, "it was cancelled"))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._agent.guard.watched -= self.count
            self.count = 0

    # Directories

    def _add(self, fd: int, path: bytes) -> int:
        guard = self._agent.guard
        if guard.watched >= self._agent.config["watch_directories"]:
            raise dispatch.CallError(dispatch.BUSY, "%d directories are watched already" % guard.watched)
        number: int = self._libc.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % fd, _MASK)
        if number < 0:
            raise _last_error(show(path))
        if number not in self._directories:
            guard.watched += 1
            self.count += 1
        self._directories[number] = path
        return number

    def _add_below(self, fd: int, path: bytes, tell: bool) -> "Generator[None, None, None]":
        """Watches all directories in this one; `tell`: what is in it has just come."""
        if path.count(b"/") > _MAX_DEPTH:
            raise files.TooLarge("more than %d directories in each other" % _MAX_DEPTH)
        with os.scandir(fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                inner = path + b"/" + name if path else name
                if tell:
                    self._gather("created", inner)
                if entry.is_dir(follow_symlinks=False):
                    yield from self._enter(fd, name, inner, tell)
                yield

    def _enter(self, fd: int, name: bytes, path: bytes, tell: bool) -> "Generator[None, None, None]":
        try:
            inner = os.open(name, _OPEN, dir_fd=fd)
        except OSError:
            return  # it has gone again, or is not ours to see
        try:
            self._agent.guard.paths.check_fd(inner, READ)
            self._add(inner, path)
            yield from self._add_below(inner, path, tell)
        except Denied:
            return
        finally:
            os.close(inner)

    # Events

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        moved: "dict[int, bytes]" = {}
        at = 0
        while at < len(data):
            number, mask, cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            self._take(number, mask, cookie, name, moved)
            if self._fd < 0:
                return
        for path in moved.values():
            self._gather("deleted", path)  # it went where nobody watches
            self._forget(path)

    def _take(self, number: int, mask: int, cookie: int, name: bytes, moved: "dict[int, bytes]") -> None:
        if mask & _OVERFLOW:
            self._lose()
            return
        directory = self._directories.get(number)
        if directory is None:
            return
        if mask & _IGNORED:
            del self._directories[number]
            self.count -= 1
            self._agent.guard.watched -= 1
            return
        if mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT):
            if number == self._root:
                self._flush()
                self._end(dispatch.CallError(dispatch.NOT_FOUND, "what was watched is not there any more"))
            return
        if self._only is not None and name != self._only:
            return
        path = directory + b"/" + name if directory else name
        if self._only is not None:
            path = b""
        if mask & _MOVED_FROM:
            moved[cookie] = path
        elif mask & _MOVED_TO and cookie in moved:
            self._gather("moved", moved.pop(cookie), path)
        elif mask & (_CREATE | _MOVED_TO):
            self._gather("created", path)
        elif mask & _DELETE:
            self._gather("deleted", path)
        else:
            self._gather("modified", path)
        if mask & _ISDIR and mask & (_CREATE | _MOVED_TO) and self._recursive:
            self._follow(path, bool(mask & _CREATE))

    def _forget(self, path: bytes) -> None:
        """Watches no longer what has left: what happens in it is nothing the host asked for."""
        for number, directory in self._directories.items():
            if directory == path or directory.startswith(path + b"/"):
                # The kernel answers with IN_IGNORED, which takes it off the list.
                self._libc.inotify_rm_watch(self._fd, number)

    def _follow(self, path: bytes, tell: bool) -> None:
        """Watches a directory that has just come, found from the top without following links."""

        def done(_value: object, error: "Exception | None") -> None:
            if error is not None and self._fd >= 0:
                self._lose()  # too many, or it is gone: the host has to look itself

        def work() -> "Generator[None, None, None]":
            with self._agent.guard.paths.find(self._path, READ) as place:
                fd = place.open(os.O_RDONLY | os.O_DIRECTORY)
            try:
                parts = path.split(b"/")
                for part in parts[:-1]:
                    inner = os.open(part, _OPEN, dir_fd=fd)
                    os.close(fd)
                    fd = inner
                yield from self._enter(fd, parts[-1], path, tell)
            finally:
                os.close(fd)

        self._agent.loop.slices(self._agent.guard.run_as(work()), done)

    # Telling

    def _gather(self, change: str, path: bytes, to: "bytes | None" = None) -> None:
        key = (change, path)
        if change == "modified" and key in self._seen:
            return
        if len(self._gathered) >= _MAX_GATHERED:
            self._lose()
            return
        entry: "dict[str, Any]" = {"change": change}
        files.add_text(entry, "path", path)
        if to is not None:
            files.add_text(entry, "to", to)
        if change == "modified":
            self._seen.add(key)
        self._gathered.append(entry)
        self._wait()

    def _lose(self) -> None:
        """Too much happened: the host is told to look itself."""
        self._lost = True
        self._wait()

    def _wait(self) -> None:
        if not self._waits:
            self._waits = True
            self._agent.loop.later(_GATHER_S, self._flush)

    def _flush(self) -> None:
        self._waits = False
        if self._job is None:
            return
        while self._gathered:
            told, self._gathered = self._gathered[:_MAX_TOLD], self._gathered[_MAX_TOLD:]
            self._agent.notify("file_changed", {"job": self._job.id, "changes": told})
        self._seen.clear()
        if self._lost:
            self._lost = False
            self._agent.notify("file_changed", {"job": self._job.id, "changes": [{"change": "overflow", "path": ""}]})

    def _end(self, error: "dispatch.CallError") -> None:
        if self._fd >= 0 and self._job is not None:
            self._agent.loop.remove(self._fd)
            self.close()
            job, self._job = self._job, None
            job.fail(error.code, str(error))


def _load_libc() -> "Any":
    try:
        import ctypes
    except (ImportError, MemoryError):  # the latter where nothing may be both written and executed
        text = "watching files needs Python's ctypes, which this guest has not"
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, text) from None
    return ctypes.CDLL(None, use_errno=True)


def _last_error(name: str) -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)
