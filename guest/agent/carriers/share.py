"""The shared directory as a carrier (guest floor): commands in `inbox/`, answers and status in `outbox/`.

The agent looks when the host says `share_changed`, and once a second while the share is mounted. Names are taken as
the other side made them, so every file is opened below its directory, without following links, and only a
bounded regular file is read.
"""

import os
import stat

from .. import commands, message, wire
from ..loop import PRIORITY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..loop import Timer
    from ..main import Agent

_LOOK_S = 1.0
_MAX_FILE_BYTES = wire.MAX_ANSWER_BYTES
_MAX_FILES_PER_LOOK = 64
_MAX_REMEMBERED = 256


class ShareCarrier:
    """Watches the share that is, or will be, mounted at `path`."""

    def __init__(self, agent: "Agent", path: str) -> None:
        self.mounted = False
        self._agent = agent
        self._path = path
        self._timer: "Timer | None" = None
        self._stuck: "set[tuple[Any, ...]]" = set()
        # Polling the list of mounts for a priority event tells of every change. Source: proc_pid_mounts(5).
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        agent.loop.add(self._mounts, PRIORITY, self._look_at_mounts)
        self._look_at_mounts(0)

    def look(self) -> None:
        """Takes what is in the inbox now."""
        if not self.mounted:
            return
        self._set_timer()
        try:
            inbox = _open_directory(self._path + "/inbox")
        except FileNotFoundError:
            return  # the host has not made one: nothing to do
        except OSError as error:
            self._say_once(("inbox",), "the inbox of the share cannot be read: %s" % error.strerror)
            return
        try:
            names = sorted(name for name in os.listdir(inbox) if name.endswith(".json") and name[0] != ".")
            for name in names[:_MAX_FILES_PER_LOOK]:
                self._take(inbox, name)
        finally:
            os.close(inbox)
        if len(names) > _MAX_FILES_PER_LOOK:
            self._agent.loop.soon(self.look)

    def _look_at_mounts(self, _events: int) -> None:
        mounted = _is_mounted(self._mounts, self._path)
        if mounted and not self.mounted:
            self.mounted = True
            self._write("agent-ready.json", self._build_ready())
            self._agent.loop.soon(self.look)
        elif not mounted:
            self.mounted = False
            if self._timer is not None:
                self._timer.cancel()

    def _build_ready(self) -> "dict[str, Any]":
        return self._agent.build_ready()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._agent.loop.later(_LOOK_S, self.look)

    def _take(self, inbox: int, name: str) -> None:
        """Reads one file, removes it, then carries it out: a command is never carried out twice."""

        def reply(answer: "dict[str, Any]") -> None:
            self._write(name, answer)

        try:
            data = _read_file(inbox, name)
        except _NotTaken as error:
            self._say_once((name, error.stamp), "inbox/%s was not taken: %s" % (name[:128], error))
            return
        try:
            os.unlink(name, dir_fd=inbox)
        except FileNotFoundError:
            return  # the host took it back
        except OSError as error:
            text = "inbox/%s cannot be removed, so it is not carried out: %s" % (name[:128], error.strerror)
            self._say_once((name, "unlink"), text)
            return
        if len(data) > _MAX_FILE_BYTES:
            text = "the message was refused: it has more than %d bytes" % _MAX_FILE_BYTES
            reply(message.build("error", text, {"code": "line-too-long"}))
            return
        try:
            value = wire.decode(data.replace(b"\n", b" "))
        except wire.WireError as error:
            reply(message.build("error", "the message was refused: %s" % error, {"code": "bad-message"}))
            return
        commands.handle(self._agent, value, reply)

    def _write(self, name: str, answer: "dict[str, Any]") -> None:
        """Puts one message into the outbox; it appears there complete or not at all."""
        try:
            try:
                outbox = _open_directory(self._path + "/outbox")
            except FileNotFoundError:
                os.mkdir(self._path + "/outbox", 0o755)
                outbox = _open_directory(self._path + "/outbox")
            try:
                _write_file(outbox, name, wire.encode(answer))
            finally:
                os.close(outbox)
        except OSError as error:
            self._agent.counters["share_failures"] += 1
            self._say_once(("outbox", error.errno), "the outbox of the share cannot be written: %s" % error.strerror)

    def _say_once(self, what: "tuple[Any, ...]", text: str) -> None:
        """Reports what the next look would only find again."""
        if what not in self._stuck:
            if len(self._stuck) >= _MAX_REMEMBERED:
                self._stuck.clear()
            self._stuck.add(what)
            self._agent.report("failed", text)


class _NotTaken(Exception):
    """A file in the inbox that stays where it is; `stamp` tells it from the next one of that name."""

    def __init__(self, text: str, stamp: object) -> None:
        super().__init__(text)
        self.stamp = stamp


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read_file(directory: int, name: str) -> bytes:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise _NotTaken(str(error.strerror), error.errno) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise _NotTaken("it is not a regular file", status.st_ino)
        parts = []
        room = _MAX_FILE_BYTES + 1
        while room > 0:
            part = os.read(fd, room)
            if not part:
                break
            parts.append(part)
            room -= len(part)
        return b"".join(parts)
    except OSError as error:
        raise _NotTaken(str(error.strerror), error.errno) from None
    finally:
        os.close(fd)


def _write_file(directory: int, name: str, data: bytes) -> None:
    hidden = ".%s.part" % name[:240]
    try:
        os.unlink(hidden, dir_fd=directory)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(hidden, flags, 0o644, dir_fd=directory)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
    os.rename(hidden, name, src_dir_fd=directory, dst_dir_fd=directory)


def _is_mounted(mountinfo: int, path: str) -> bool:
    os.lseek(mountinfo, 0, os.SEEK_SET)
    parts = []
    while True:
        part = os.read(mountinfo, 65536)
        if not part:
            break
        parts.append(part)
    # Source: proc_pid_mountinfo(5): field 5 is the mount point, with spaces and the like as octal escapes.
    wanted = path.rstrip("/").replace("\\", "\\134").replace(" ", "\\040").encode()
    lines = (line.split(b" ") for line in b"".join(parts).splitlines())
    return any(len(fields) > 4 and fields[4] == wanted for fields in lines)
