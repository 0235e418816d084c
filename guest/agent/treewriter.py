"""Writes a tree of files as it arrives (guest floor); made by `file_put`. The form: `docs/protocol.md`, Trees of files.

Nothing is looked up by a path: each directory is opened in the one above it, without following links, and stays open
while what is in it arrives. A file gets its name when all of it has been written and its CRC-32 is right.
"""

import os
import stat
from struct import Struct
from time import time_ns
from zlib import crc32

from . import files, wire
from .flows import Sink
from .pathpolicy import WRITE, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .pathpolicy import Place, Policy

    Steps = Generator[Any, Any, Any]

PIECE = Struct("<QI")
CRC = Struct("<I")
# Each level takes a descriptor, and the agent has about a thousand.
MAX_DEPTH = 256
MAX_PIECE_BYTES = 4 * 1024 * 1024
# A path of 16384 bytes, each of them as an escape of six characters, and a target of 4095.
_MAX_LINE_BYTES = 131072
_MAX_TREE_PATH_BYTES = 16384
_MAX_OFFSET = 2**63 - 1
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# type: what its entry has to hold, beside `path` and `mtime_ns`
_KEYS = {
    "directory": ("mode",),
    "file": ("mode", "size"),
    "fifo": ("mode",),
    "symlink": ("target",),
    "hardlink": ("target",),
}
_BOUNDS = {
    "mode": (0, 0o7777),
    "size": (0, _MAX_OFFSET),
    "offset": (0, _MAX_OFFSET),
    "uid": (0, 2**32 - 2),
    "gid": (0, 2**32 - 2),
    "mtime_ns": (-(2**63), 2**63 - 1),
}


class Entry:
    """One line of the tree, checked.

    Raises:
        Corrupted: It is none.
    """

    def __init__(self, line: bytes) -> None:
        try:
            value = wire.decode(line)
        except wire.WireError as error:
            raise files.Corrupted("an entry is not JSON: %s" % error) from None
        if not isinstance(value, dict):
            raise files.Corrupted("an entry is not an object")
        self.is_end = value.get("end") is True
        if self.is_end:
            self.entries, self.bytes = value.get("entries"), value.get("bytes")
            return
        self.type = value.get("type")
        if not isinstance(self.type, str) or self.type not in _KEYS:
            raise files.Corrupted("an entry has the unknown type %s" % str(self.type)[:64])
        for key in ("path", "mtime_ns", *_KEYS[self.type]):
            if key not in value and not (key == "mtime_ns" and self.type == "hardlink"):
                raise files.Corrupted("an entry has no %s" % key)
        for key, (low, high) in _BOUNDS.items():
            number = value.get(key, low)
            if type(number) is not int or not low <= number <= high:
                raise files.Corrupted("an entry has a %s that is none" % key)
        self.path = _read_text(value["path"], _MAX_TREE_PATH_BYTES)
        if self.path and any(part in (b"", b".", b"..") for part in self.path.split(b"/")):
            raise files.Corrupted("an entry has a path with an empty part, or with . or .. in it")
        self.target = _read_text(value["target"], _MAX_TREE_PATH_BYTES) if "target" in value else b""
        self.mode: int = value.get("mode", 0)
        self.mtime_ns: int = value.get("mtime_ns", 0)
        self.offset: int = value.get("offset", 0)
        self.uid: int = value.get("uid", -1)
        self.gid: int = value.get("gid", -1)


def _read_text(value: object, limit: int) -> bytes:
    try:
        data = files.encode(value)  # type: ignore[arg-type]
    except (AttributeError, UnicodeEncodeError):
        raise files.Corrupted("an entry has a name that is no text") from None
    if len(data) > limit or b"\0" in data:
        raise files.Corrupted("an entry has a name that no file can have")
    return data


class _Directory:
    """A directory that is being filled; `entry` is None when it was there before."""

    __slots__ = ("entry", "fd", "path")

    def __init__(self, fd: int, path: bytes, entry: "Entry | None") -> None:
        self.fd = fd
        self.path = path
        self.entry = entry


class Resumed:
    """A file that was begun another time, and is held open until it is gone on with.

    Raises:
        BlockingIOError: Somebody else is writing it.
        OSError: It cannot be opened.
    """

    def __init__(self, place: "Place") -> None:
        import fcntl

        place.check()
        self.offset = 0
        self.crc = 0
        self.hidden = files.Hidden(place.dir_fd, place.name, True)
        try:
            fcntl.flock(self.hidden.open(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.hidden.close()
            raise

    def measure(self) -> "Steps":
        """Reads what is there already, in slices."""
        while True:
            data = os.pread(self.hidden.fd, 262144, self.offset)
            if not data:
                return
            self.crc = crc32(data, self.crc)
            self.offset += len(data)
            yield


class TreeWriter(Sink):
    """Makes files of the bytes of a stream.

    Args:
        place: The final name of what arrives; closed at the end.
        owner: Whether owners are set.
        durable: Whether each file is on the disk before it gets its name.
        limits: How many bytes and entries may come; 0 for no limit.
        resumed: The file that is gone on with, None for none.
    """

    def __init__(
        self,
        place: "Place",
        policy: "Policy",
        owner: bool,
        durable: bool,
        limits: "tuple[int, int]",
        resumed: "Resumed | None",
    ) -> None:
        Sink.__init__(self)
        self._place = place
        self._policy = policy
        self._owner = owner
        self._durable = durable
        self._max_bytes, self._max_entries = limits
        self._resumed = resumed
        self._stack: "list[_Directory]" = []
        self._hidden: "files.Hidden | None" = None if resumed is None else resumed.hidden
        self._entries = 0
        self._bytes = 0

    def run(self) -> "Steps":
        """Takes the whole tree; gives the result of the job. What was not finished is gone when it ends early."""
        try:
            while True:
                entry = Entry((yield from self._read_line()))
                if entry.is_end:
                    break
                self._entries += 1
                if self._max_entries and self._entries > self._max_entries:
                    raise files.TooLarge("more than transfer_entries of the agent's configuration")
                try:
                    yield from self._take(entry)
                except OSError as error:
                    error.filename = show(self._place.path + b"/" + entry.path if entry.path else self._place.path)
                    raise
                yield
            if (entry.entries, entry.bytes) != (self._entries, self._bytes):
                raise files.Corrupted("%d entries with %d bytes arrived" % (self._entries, self._bytes))
            while self._stack:
                yield from self._leave()
            yield from self._read_end()
            self._commit()
            if self._durable:
                yield from files.sync_directory(self._place.dir_fd)
            return {"entries": self._entries, "bytes": self._bytes, "skipped": 0, "changed": []}
        finally:
            if self._hidden is not None:
                self._hidden.discard()
            for directory in self._stack:
                os.close(directory.fd)
            self._place.close()

    # Reading

    def _read_line(self) -> "Steps":
        parts = []
        size = 0
        while True:
            while not self.view:
                yield
            data = bytes(self.view[:_MAX_LINE_BYTES])
            at = data.find(b"\n")
            if at >= 0:
                data = data[:at]
                self.view = self.view[at + 1 :]
            else:
                self.view = self.view[len(data) :]
            size += len(data)
            if size > _MAX_LINE_BYTES:
                raise files.Corrupted("an entry is longer than %d bytes" % _MAX_LINE_BYTES)
            parts.append(data)
            if at >= 0:
                return b"".join(parts)

    def _read_exactly(self, count: int) -> "Steps":
        data = b""
        while len(data) < count:
            while not self.view:
                yield
            piece = bytes(self.view[: count - len(data)])
            self.view = self.view[len(piece) :]
            data += piece
        return data

    def _read_end(self) -> "Steps":
        try:
            while not self.view:
                yield
        except EOFError:
            return
        raise files.Corrupted("something follows the end of the tree")

    # Entries

    def _take(self, entry: Entry) -> "Steps":
        dir_fd, name = self._place.dir_fd, self._place.name
        if not entry.path:
            if self._entries != 1:
                raise files.Corrupted("what is copied comes a second time")
            self._place.check()
        else:
            yield from self._go_to(entry.path.rpartition(b"/")[0])
            dir_fd, name = self._stack[-1].fd, entry.path.rpartition(b"/")[2]
            self._policy.check_fd(dir_fd, WRITE, name)
        if self._resumed is not None and entry.type != "file":
            raise files.Corrupted("only a file can be resumed")
        if entry.type == "directory":
            self._enter(entry, dir_fd, name)
            return
        if self._hidden is None:
            self._hidden = files.Hidden(dir_fd, name)
        hidden = self._hidden
        if entry.type == "file":
            yield from self._write_file(entry, hidden)
        elif entry.type == "hardlink":
            self._link(entry, hidden)
        else:
            self._make(entry, hidden)
        if entry.path:
            self._commit()  # what is copied itself gets its name when all of the stream was right

    def _commit(self) -> None:
        if self._hidden is not None:
            self._hidden.commit()
            self._hidden = None

    def _go_to(self, path: bytes) -> "Steps":
        """Leaves directories until the one with this path is the innermost."""
        while self._stack and self._stack[-1].path != path:
            yield from self._leave()
        if not self._stack:
            raise files.Corrupted("an entry does not follow its directory: %s" % path.decode("utf-8", "replace")[:1024])

    def _enter(self, entry: Entry, dir_fd: int, name: bytes) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise files.TooLarge("more than %d directories in each other" % MAX_DEPTH)
        made: "Entry | None" = entry
        try:
            os.mkdir(name, 0o700, dir_fd=dir_fd)
        except FileExistsError:
            made = None
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in (20, 40):  # ENOTDIR, ELOOP: something else has the name
                raise FileExistsError(17, "it is there and is no directory", show(name)) from None
            raise
        self._stack.append(_Directory(fd, entry.path, made))
        self._policy.check_fd(fd, WRITE)

    def _leave(self) -> "Steps":
        """Gives the innermost directory its mode and time, because all that belongs in it is there."""
        directory = self._stack[-1]
        if directory.entry is not None:
            self._finish(directory.entry, directory.fd)
        if self._durable:
            yield files.NeedSync(directory.fd)
        os.close(self._stack.pop().fd)

    def _finish(self, entry: Entry, fd: int) -> None:
        if self._owner and entry.uid >= 0:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=(time_ns(), entry.mtime_ns))

    def _write_file(self, entry: Entry, hidden: "files.Hidden") -> "Steps":
        offset = crc = 0
        if self._resumed is None:
            fd = hidden.open()
        else:
            fd = hidden.fd
            if entry.offset not in (0, self._resumed.offset):
                raise files.Corrupted("the file goes on at %d" % entry.offset)
            if entry.offset:
                offset, crc = entry.offset, self._resumed.crc
            os.ftruncate(fd, offset)
        yield from self._write_content(fd, offset, crc)
        before = hidden.before
        if before is not None and not self._owner:
            files.keep_owner(fd, before)
        self._finish(entry, fd)
        if self._durable:
            yield files.NeedSync(fd)

    def _write_content(self, fd: int, offset: int, crc: int) -> "Steps":
        while True:
            begin, left = PIECE.unpack((yield from self._read_exactly(PIECE.size)))
            if begin < offset or left > MAX_PIECE_BYTES or begin + left > _MAX_OFFSET:
                raise files.Corrupted("a piece of %d bytes at %d is none" % (left, begin))
            offset = begin
            if not left:
                break
            self._bytes += left
            self._check_size(offset + left)
            while left:
                while not self.view:
                    yield
                piece = self.view[:left]
                crc = crc32(piece, crc)
                files.write_all(fd, piece, offset)
                offset += len(piece)
                left -= len(piece)
                self.view = self.view[len(piece) :]
        self._check_size(offset)
        os.ftruncate(fd, offset)
        (sent,) = CRC.unpack((yield from self._read_exactly(CRC.size)))
        if sent != crc:
            raise files.Corrupted("the content that arrived has another CRC-32 than the content that was sent")

    def _check_size(self, size: int) -> None:
        # A hole costs nothing now, but whoever reads the file pays for it: its size counts.
        if self._max_bytes and max(size, self._bytes) > self._max_bytes:
            raise files.TooLarge("more than transfer_bytes of the agent's configuration")

    def _make(self, entry: Entry, hidden: "files.Hidden") -> None:
        if entry.type == "symlink":
            os.symlink(entry.target, hidden.part, dir_fd=hidden.dir_fd)
        else:
            os.mkfifo(hidden.part, 0o600, dir_fd=hidden.dir_fd)
        hidden.made()
        # By a descriptor: whoever may write into this directory can put something else under the name meanwhile.
        fd = os.open(hidden.part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=hidden.dir_fd)
        try:
            seen = os.fstat(fd)
            made = stat.S_ISLNK(seen.st_mode) if entry.type == "symlink" else stat.S_ISFIFO(seen.st_mode)
            if not made or seen.st_nlink != 1:
                raise PermissionError(1, "somebody else has taken the hidden name", show(hidden.part))
            itself = b"/proc/self/fd/%d" % fd
            if self._owner and entry.uid >= 0:
                os.chown(itself, entry.uid, entry.gid)
            if entry.type == "fifo":
                os.chmod(itself, entry.mode)
            os.utime(itself, ns=(time_ns(), entry.mtime_ns))
        finally:
            os.close(fd)

    def _link(self, entry: Entry, hidden: "files.Hidden") -> None:
        """Makes another link to an earlier file, found from the root of the tree without following links."""
        parts = entry.target.split(b"/")
        if not self._stack or any(part in (b"", b".", b"..") for part in parts):
            raise files.Corrupted("a hard link leads out of the tree")
        fd = os.dup(self._stack[0].fd)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            self._policy.check_fd(fd, WRITE, parts[-1])
            found = files.find_stat(parts[-1], fd)
            if found is None or not stat.S_ISREG(found.st_mode):
                raise files.Corrupted("a hard link leads to no earlier file")
            os.link(parts[-1], hidden.part, src_dir_fd=fd, dst_dir_fd=hidden.dir_fd, follow_symlinks=False)
        finally:
            os.close(fd)
        hidden.made()
