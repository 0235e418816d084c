"""Files and whole trees as one stream of bytes, packed and unpacked on this host (floor 2); see docs/protocol.md.

Used by `files`, in threads: everything here may wait for a disk. What comes from a guest is not trusted: no name in it
leaves the place that was asked for, nothing in it is followed, and no file of it gets its name before it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.errors import TransferError

READ_BYTES = 1024 * 1024
PIECE_LIMIT_BYTES = 4 * 1024 * 1024
LINE_LIMIT_BYTES = 131072
PATH_LIMIT_BYTES = 16384
DEPTH_LIMIT = 256
"""Directories in each other; each one that is being filled takes a descriptor, on either side."""

CHANGED_LIMIT = 100
OFFSET_LIMIT = 2**63 - 1
PART_SUFFIX = b".unhinged-part"
NAME_MAX_BYTES = 255
_PIECE = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PART = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Copied:
    """What a copy has moved.

    Attributes:
        entries: Files, directories, links and FIFOs.
        content_bytes: Bytes of content that went over the wire; holes are not among them.
        skipped: Sockets and devices, which are not copied.
        changed: Paths of files that changed while they were read, the first hundred; each arrived as it was read.
    """

    entries: int = 0
    content_bytes: int = 0
    skipped: int = 0
    changed: list[str] = field(default_factory=list)

    def add(self, other: Copied) -> None:
        self.entries += other.entries
        self.content_bytes += other.content_bytes
        self.skipped += other.skipped
        self.changed += other.changed[: CHANGED_LIMIT - len(self.changed)]


@dataclass(frozen=True)
class Limits:
    """How much a guest may put on this host in one `get`; None for no limit.

    Attributes:
        content_bytes: Of all files together, and the size of each with its holes.
    """

    content_bytes: int | None = None
    entries: int | None = 1_000_000


# -- packing -----------------------------------------------------------------------------------------------------------


def pack_tree(
    source: Path, copied: Copied, *, owner: bool = False, offset: int = 0, crc: int = 0
) -> Iterator[bytes | memoryview]:
    """Yield `source`, and what is in it, as the bytes of a tree; links are not followed.

    Args:
        copied: Counted up on the way.
        owner: Whether owners go with it.
        offset: For one file: where to begin, because the other side has what is before it; `crc` is that part's.

    Raises:
        TransferError: It cannot be read.
    """
    links: dict[tuple[int, int], str] = {}
    directories: list[Iterator[str]] = []
    path, where = "", str(source)
    parents: list[tuple[str, str]] = []
    try:
        while True:
            found = os.lstat(where)
            head = _describe(path, found, owner)
            if stat.S_ISDIR(found.st_mode):
                yield _encode(head | {"type": "directory"}, copied)
                directories.append(iter(sorted(entry.name for entry in Path(where).iterdir())))
                parents.append((path, where))
                if len(directories) > DEPTH_LIMIT:
                    raise TransferError(f"more than {DEPTH_LIMIT} directories in each other: {where}", path=where)
            elif stat.S_ISREG(found.st_mode):
                earlier = links.setdefault((found.st_dev, found.st_ino), path) if found.st_nlink > 1 else path
                if earlier != path:
                    yield _encode(head | {"type": "hardlink", "target": earlier}, copied)
                else:
                    yield from _pack_file(where, head, copied, offset, crc)
            elif stat.S_ISLNK(found.st_mode):
                del head["mode"]
                yield _encode(head | {"type": "symlink", "target": str(Path(where).readlink())}, copied)
            elif stat.S_ISFIFO(found.st_mode):
                yield _encode(head | {"type": "fifo"}, copied)
            elif not path:
                raise TransferError(f"{where} is a socket or a device: there is nothing to copy", path=where)
            else:
                copied.skipped += 1
            while directories and (name := next(directories[-1], None)) is None:
                directories.pop()
                parents.pop()
            if not directories:
                break
            above, directory = parents[-1]
            path, where = f"{above}/{name}" if above else str(name), f"{directory}/{name}"
    except OSError as error:
        raise _refuse(error, where) from error
    yield _write_json({"end": True, "entries": copied.entries, "bytes": copied.content_bytes})


def _describe(path: str, found: os.stat_result, owner: bool) -> dict[str, Any]:
    # A file system may know years after 2262, which 64 bits do not.
    mtime_ns = max(-(2**63), min(found.st_mtime_ns, 2**63 - 1))
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISREG(found.st_mode) and not owner:
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # "as its owner", who would be the guest's root (as `cp -r` does)
    head: dict[str, Any] = {"path": path, "mode": mode, "mtime_ns": mtime_ns}
    return head | {"uid": found.st_uid, "gid": found.st_gid} if owner else head


def _encode(head: dict[str, Any], copied: Copied) -> bytes:
    copied.entries += 1
    return _write_json(head)


def _write_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _pack_file(where: str, head: dict[str, Any], copied: Copied, offset: int, crc: int) -> Iterator[bytes | memoryview]:
    fd = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise TransferError(f"{where} was replaced while it was copied", path=where)
        begin = {"offset": offset} if offset else {}
        yield _encode(head | {"type": "file", "size": seen.st_size} | begin, copied)
        position = offset
        for start, end in _find_data(fd, offset, seen):
            position = start
            while position < end and (data := os.pread(fd, min(READ_BYTES, end - position), position)):
                crc = zlib.crc32(data, crc)
                yield _PIECE.pack(position, len(data))
                yield data
                position += len(data)
                copied.content_bytes += len(data)
            if position < end:
                break  # it has become shorter, or had no size
        else:
            position = seen.st_size
        yield _PIECE.pack(position, 0) + _CRC.pack(crc)
        after = os.fstat(fd)
        size = seen.st_size or position
        if (after.st_mtime_ns, after.st_size, position) != (seen.st_mtime_ns, seen.st_size, size):
            copied.changed += [where][: CHANGED_LIMIT - len(copied.changed)]
    finally:
        os.close(fd)


def _find_data(fd: int, offset: int, seen: os.stat_result) -> Iterator[tuple[int, int]]:
    """Yield where content is, from `offset` on, without the holes between."""
    size = seen.st_size
    if not size:
        yield offset, OFFSET_LIMIT  # the kernel's files in /proc have content and say that they have none
    while offset < size:
        start, end = offset, size
        if seen.st_blocks * 512 < size:
            try:
                start = os.lseek(fd, offset, os.SEEK_DATA)
                end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left (lseek(2))
                    return
        if start >= size:
            return
        yield start, end
        offset = end


def find_crc(path: Path, size: int) -> int | None:
    """Return the CRC-32 of the first `size` bytes of a file, holes as zeros; None when it is shorter."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while size:
            data = file.read(min(size, READ_BYTES))
            if not data:
                return None
            crc = zlib.crc32(data, crc)
            size -= len(data)
    return crc


# -- unpacking ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One line of a tree from a guest, checked."""

    path: bytes
    type: str
    mode: int = 0
    mtime_ns: int = 0
    size: int = 0
    offset: int = 0
    target: bytes = b""
    uid: int = -1
    gid: int = -1


_NEEDED = {
    "directory": ("mode", "mtime_ns"),
    "file": ("mode", "mtime_ns", "size"),
    "fifo": ("mode", "mtime_ns"),
    "symlink": ("mtime_ns", "target"),
    "hardlink": ("target",),
}
_BOUNDS = {
    "mode": range(0o10000),
    "mtime_ns": range(-(2**63), 2**63),
    "size": range(OFFSET_LIMIT + 1),
    "offset": range(OFFSET_LIMIT + 1),
    "uid": range(2**32 - 1),
    "gid": range(2**32 - 1),
}


def read_entry(line: bytes) -> Entry | tuple[int, int]:
    """Read a line of a tree: an entry, or at the end the counts of entries and bytes.

    Raises:
        TransferError: It is neither.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _lie("an entry that is no JSON object")
    if value.get("end") is True:
        entries, size = value.get("entries"), value.get("bytes")
        if type(entries) is not int or type(size) is not int:
            raise _lie("an end without counts")
        return entries, size
    type_ = value.get("type")
    if not isinstance(type_, str) or type_ not in _NEEDED:
        raise _lie("an entry of a type that is none")
    numbers: dict[str, int] = {}
    for key, bounds in _BOUNDS.items():
        if key in value:
            if type(value[key]) is not int or value[key] not in bounds:
                raise _lie(f"an entry whose {key} is none")
            numbers[key] = value[key]
    if any(key not in value for key in _NEEDED[type_]):
        raise _lie(f"a {type_} without all that belongs to it")
    path, target = (_read_name(value.get(key, "")) for key in ("path", "target"))
    if (path and not _is_inside(path)) or (type_ == "hardlink" and not _is_inside(target)):
        raise _lie("a name that leads out of the tree")
    if type_ == "symlink" and not target:
        raise _lie("a link to nothing")
    return Entry(path, type_, target=target, **numbers)


def _read_name(value: object) -> bytes:
    try:
        name = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else None
    except UnicodeEncodeError:
        name = None
    if name is None or b"\0" in name or len(name) > PATH_LIMIT_BYTES:
        raise _lie("a name that no file can have")
    return name


def _is_inside(path: bytes) -> bool:
    return all(part not in (b"", b".", b"..") for part in path.split(b"/"))


class TreeWriter:
    """Makes files of the bytes of a tree as they come from a guest. Not for two threads at once.

    Args:
        parent: The directory the copy is made in; it may be a link, for it is the caller's own choice.
        name: The copy's name in it.
        keep_special: Whether setuid, setgid and sticky bits are taken over; by default not from a guest.
        owner: Whether owners are, which takes root.
        resume: Go on with a file of which a part was kept, and keep it again after a failure.
    """

    def __init__(
        self,
        parent: Path,
        name: str,
        *,
        limits: Limits | None = None,
        keep_special: bool = False,
        owner: bool = False,
        resume: bool = False,
    ) -> None:
        self.copied = Copied()
        self.where = parent / name
        self._name = os.fsencode(name)
        self._limits = limits or Limits()
        self._mode_mask = 0o7777 if keep_special else 0o777
        self._owner = owner
        self._resume = resume
        self._resumed: tuple[int, int] = (0, 0)
        self._data: bytes | bytearray = b""
        self._view = memoryview(self._data)
        self._at = 0
        self._stack: list[_Directory] = []
        # Of each path only a digest: there may be a million, and each may have 16 KiB.
        self._files: set[bytes] = set()
        self._part = _Part()
        self._complete = False
        try:
            self._parent = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _refuse(error, parent) from error
        self._work = self._run()
        next(self._work)

    def find_resumable(self) -> tuple[int, int]:
        """Return how much of the file is there from another time, and its CRC-32."""
        try:
            self._part.open(self._parent, self._name, kept=True)
            size = os.fstat(self._part.fd).st_size
            crc = position = 0
            while data := os.pread(self._part.fd, READ_BYTES, position):
                crc = zlib.crc32(data, crc)
                position += len(data)
        except OSError as error:
            raise _refuse(error, self.where) from error
        self._resumed = (size, crc)
        return self._resumed

    def feed(self, data: bytes | bytearray) -> None:
        """Take the next bytes.

        Raises:
            TransferError: They are no tree, or a file cannot be written.
        """
        self._data, self._view, self._at = data, memoryview(data), 0
        try:
            next(self._work)
        except StopIteration:
            raise _lie("more than the end of its tree") from None
        except OSError as error:
            raise _refuse(error, self.where) from error

    def finish(self) -> Copied:
        """Say that no more will come; what is a single file gets its name now.

        Raises:
            TransferError: The tree is not complete, or something is in the way.
        """
        if not self._complete:
            raise _lie("a tree that breaks off")
        if self._part.made:
            try:
                self._part.commit()
            except OSError as error:
                raise _refuse(error, self.where) from error
        return self.copied

    def close(self) -> None:
        """Remove what is not whole, and let go of everything."""
        self._work.close()
        if self._parent >= 0:
            self._part.discard(keep=self._resume)
            for directory in reversed(self._stack):
                os.close(directory.fd)
            self._stack.clear()
            os.close(self._parent)
            self._parent = -1

    # Each of what follows gives control back, by a bare `yield`, when it needs more bytes.

    def _run(self) -> Generator[None, None, None]:
        yield
        while True:
            line = yield from self._read_line()
            entry = read_entry(line)
            if isinstance(entry, tuple):
                break
            yield from self._take(entry)
        while self._stack:
            self._leave()
        if entry != (self.copied.entries, self.copied.content_bytes) or not self.copied.entries:
            raise _lie(f"a tree of {entry[0]} entries and {entry[1]} bytes, and sent another one")
        self._complete = True
        while self._at == len(self._data):
            yield

    def _read_line(self) -> Generator[None, None, bytes]:
        line = b""
        while True:
            end = self._data.find(b"\n", self._at, self._at + LINE_LIMIT_BYTES)
            stop = end + 1 if end >= 0 else min(len(self._data), self._at + LINE_LIMIT_BYTES + 1)
            line += self._view[self._at : stop]
            self._at = stop
            if len(line) > LINE_LIMIT_BYTES:
                raise _lie("an entry without an end")
            if end >= 0:
                return line
            yield

    def _read_piece(self, size: int) -> memoryview:
        """Take up to `size` bytes of those that are there."""
        piece = self._view[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def _read_exactly(self, size: int) -> Generator[None, None, bytes]:
        data = b""
        while True:
            data += self._read_piece(size - len(data))
            if len(data) == size:
                return data
            yield

    def _take(self, entry: Entry) -> Generator[None, None, None]:
        self.copied.entries += 1
        if self._limits.entries is not None and self.copied.entries > self._limits.entries:
            raise TransferError(f"the guest sends more than {self._limits.entries} files, the limit of this copy")
        if not entry.path:
            if self.copied.entries > 1:
                raise _lie("what is copied a second time")
            directory, name = self._parent, self._name
        else:
            above, _, name = entry.path.rpartition(b"/")
            while self._stack and self._stack[-1].path != above:
                self._leave()
            if not self._stack:  # also where what is copied is no directory
                raise _lie("an entry that does not follow its directory")
            directory = self._stack[-1].fd
        if entry.type == "directory":
            self._enter(entry, directory, name)
            return
        if not self._part.made:
            self._part.name_it(directory, name)
        if entry.type == "file":
            yield from self._write_file(entry)
        elif entry.type == "hardlink":
            self._link(entry)
        else:
            self._make(entry)
        if entry.path:
            self._part.commit()
            self._files.add(_digest(entry.path))

    def _enter(self, entry: Entry, directory: int, name: bytes) -> None:
        if len(self._stack) >= DEPTH_LIMIT:
            raise TransferError(f"more than {DEPTH_LIMIT} directories in each other")
        new = True
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
        except FileExistsError:
            new = False
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _in_the_way(name, "is no directory") from None
            raise
        self._stack.append(_Directory(fd, entry, new))

    def _leave(self) -> None:
        directory = self._stack.pop()
        try:
            if directory.new:
                self._dress(directory.entry, directory.fd)
        finally:
            os.close(directory.fd)

    def _dress(self, entry: Entry, fd: int) -> None:
        if self._owner and entry.uid >= 0:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode & self._mode_mask)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _write_file(self, entry: Entry) -> Generator[None, None, None]:
        position = crc = 0
        if entry.offset:
            if entry.offset != self._resumed[0]:
                raise _lie(f"a file that goes on at {entry.offset}")
            position, crc = self._resumed
        fd = self._part.make_file()
        os.ftruncate(fd, position)
        while True:
            begin, left = _PIECE.unpack((yield from self._read_exactly(_PIECE.size)))
            if begin < position or left > PIECE_LIMIT_BYTES or begin + left > OFFSET_LIMIT:
                raise _lie(f"a piece of {left} bytes at {begin}")
            position = begin
            self._check_size(position + left, left)
            if not left:
                break
            while left:
                piece = self._read_piece(left)
                if not piece:
                    yield
                    continue
                crc = zlib.crc32(piece, crc)
                _write_all(fd, piece, position)
                position += len(piece)
                left -= len(piece)
        os.ftruncate(fd, position)
        (expected,) = _CRC.unpack((yield from self._read_exactly(_CRC.size)))
        if crc != expected:
            raise TransferError(
                "what arrived is not what the guest read: their checksums differ", path=show_name(entry.path)
            )
        self._dress(entry, fd)

    def _check_size(self, end: int, more: int) -> None:
        self.copied.content_bytes += more
        limit = self._limits.content_bytes
        if limit is not None and max(end, self.copied.content_bytes) > limit:
            raise TransferError(f"the guest sends more than {limit} bytes, the limit of this copy")

    def _make(self, entry: Entry) -> None:
        part = self._part
        if entry.type == "symlink":
            os.symlink(entry.target, part.name, dir_fd=part.directory)
        else:
            os.mkfifo(part.name, 0o600, dir_fd=part.directory)
        part.made = True
        if self._owner and entry.uid >= 0:
            os.chown(part.name, entry.uid, entry.gid, dir_fd=part.directory, follow_symlinks=False)
        if entry.type == "fifo":
            os.chmod(part.name, entry.mode & self._mode_mask, dir_fd=part.directory)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(part.name, ns=times, dir_fd=part.directory, follow_symlinks=False)

    def _link(self, entry: Entry) -> None:
        if _digest(entry.target) not in self._files:
            raise _lie("a hard link to no earlier file")
        *above, name = entry.target.split(b"/")
        fd = os.dup(self._stack[0].fd)
        try:
            for part in above:
                inner = os.open(part, _OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = inner
            os.link(name, self._part.name, src_dir_fd=fd, dst_dir_fd=self._part.directory, follow_symlinks=False)
        finally:
            os.close(fd)
        self._part.made = True


@dataclass
class _Directory:
    """A directory that is being filled; one that was there before keeps its mode and time."""

    fd: int
    entry: Entry
    new: bool

    @property
    def path(self) -> bytes:
        return self.entry.path


class _Part:
    """A file under its hidden name, beside the name it will get."""

    def __init__(self) -> None:
        self.fd = -1
        self.directory = -1
        self.name = b""
        self.made = False
        self._final = b""

    def name_it(self, directory: int, final: bytes, *, kept: bool = False) -> None:
        ending = PART_SUFFIX if kept else b"." + secrets.token_hex(4).encode() + PART_SUFFIX
        self.directory, self._final = directory, final
        self.name = b"." + final[: NAME_MAX_BYTES - len(ending) - 1] + ending

    def open(self, directory: int, final: bytes, *, kept: bool) -> None:
        self.name_it(directory, final, kept=kept)
        self.fd = os.open(self.name, _OPEN_PART | (0 if kept else os.O_EXCL), 0o600, dir_fd=directory)
        found = os.fstat(self.fd)
        # Anybody can tell the name of a kept part. Its maker may have it open; it may be another file's second name.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
            self._close()
            raise _in_the_way(self.name, "is not the part of an earlier copy")
        self.made = True
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two copies into one file would spoil each other

    def make_file(self) -> int:
        if self.fd < 0:
            self.fd = os.open(self.name, _OPEN_PART | os.O_EXCL, 0o600, dir_fd=self.directory)
            self.made = True
        return self.fd

    def commit(self) -> None:
        """Give it its name, in place of what had it."""
        try:
            os.rename(self.name, self._final, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except IsADirectoryError:
            raise _in_the_way(self._final, "is a directory") from None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)  # rename(2) leaves a second link to the same file as it is
        self.made = False
        self._close()

    def discard(self, *, keep: bool) -> None:
        if self.made and not (keep and self.fd >= 0):
            with contextlib.suppress(OSError):  # what failed before is what the caller is told
                os.unlink(self.name, dir_fd=self.directory)
        self.made = False
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _digest(path: bytes) -> bytes:
    return hashlib.blake2b(path, digest_size=16).digest()


def _write_all(fd: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(fd, data, position)
        position += written
        data = data[written:]


def _lie(what: str) -> TransferError:
    return TransferError(f"the guest sent {what}", hint="nothing of it was left under its final name")


def _in_the_way(name: bytes, why: str) -> TransferError:
    return TransferError(
        f"{show_name(name)} is there already and {why}", path=show_name(name), hint="choose another destination"
    )


def _refuse(error: OSError, where: os.PathLike[str] | str) -> TransferError:
    shown = show_name(error.filename if isinstance(error.filename, str | bytes) else where)
    return TransferError(f"{shown}: {error.strerror}", path=shown)


def show_name(name: os.PathLike[str] | str | bytes) -> str:
    """Return a name for people to read: it may hold whatever a guest put into it."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else "?" for character in text)[:300]
