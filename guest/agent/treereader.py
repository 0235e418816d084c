"""Turns files into the bytes of a tree (guest floor); made by `file_get`. The form: `docs/protocol.md`, Trees of files.

Memory is bounded whatever there is to read: names come from the kernel as they are needed, one directory deep each.
"""

import os
import stat
from zlib import crc32

from . import files, wire
from .pathpolicy import READ, Denied, show
from .treewriter import CRC, MAX_DEPTH, PIECE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from .pathpolicy import Place, Policy

    Pieces = Generator[Any, None, Any]

# Header and content fill one frame, so that nothing is joined or cut on the way.
_READ_BYTES = 262144 - PIECE.size
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_MAX_CHANGED = 100
# So many files with more than one name are known by it; of later ones each name becomes a file of its own.
_MAX_LINKS = 65536


class TreeReader:
    """What is at a place, as bytes.

    Args:
        place: What is copied; closed at the end.
        owner: Whether owners are sent.
        limits: How many bytes and entries may go; 0 for no limit.
        begin: For a file: the offset at which it begins, and the CRC-32 of what is before that.
    """

    def __init__(
        self, place: "Place", policy: "Policy", owner: bool, limits: "tuple[int, int]", begin: "tuple[int, int]"
    ) -> None:
        self._place = place
        self._policy = policy
        self._owner = owner
        self._max_bytes, self._max_entries = limits
        self._begin = begin
        self._links: "dict[tuple[int, int], bytes]" = {}
        self._entries = 0
        self._bytes = 0
        self._skipped = 0
        self._changed: "list[str]" = []

    def run(self) -> "Pieces":
        """Yields the whole tree; gives the result of the job."""
        try:
            self._place.check()
            yield from self._send(self._place.dir_fd, self._place.name, b"", True)
            yield wire.encode({"end": True, "entries": self._entries, "bytes": self._bytes})
            return {
                "entries": self._entries,
                "bytes": self._bytes,
                "skipped": self._skipped,
                "changed": self._changed,
            }
        finally:
            self._place.close()

    def _send(self, dir_fd: int, name: bytes, path: bytes, first: bool) -> "Pieces":
        """Yields what has this name, and what is in it."""
        fd = -1
        try:
            seen = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode) or stat.S_ISREG(seen.st_mode):
                fd = os.open(name, _OPEN, dir_fd=dir_fd)
                seen = os.fstat(fd)
                self._policy.check_fd(fd, READ)
        except FileNotFoundError:
            if first:
                raise
            self._tell_changed(path)  # it has gone since its name was read
            return
        except Denied:
            if first:
                raise
            self._skipped += 1
            return
        except OSError as error:
            error.filename = show(self._place.path + b"/" + path if path else self._place.path)
            raise
        try:
            if stat.S_ISDIR(seen.st_mode):
                yield self._encode(path, "directory", seen)
                yield from self._send_content_of(fd, path)
            elif stat.S_ISREG(seen.st_mode):
                yield from self._send_file(fd, path, seen)
            elif stat.S_ISLNK(seen.st_mode):
                target = files.decode(os.readlink(name, dir_fd=dir_fd))
                yield self._encode(path, "symlink", seen, target=target)
            elif stat.S_ISFIFO(seen.st_mode):
                yield self._encode(path, "fifo", seen)
            elif first:
                raise OSError(22, "it is a socket or a device", show(self._place.path))
            else:
                self._skipped += 1
        finally:
            if fd >= 0:
                os.close(fd)

    def _send_content_of(self, fd: int, path: bytes) -> "Pieces":
        if path.count(b"/") >= MAX_DEPTH:
            raise files.TooLarge("more than %d directories in each other" % MAX_DEPTH)
        with os.scandir(fd) as names:
            for entry in names:
                name = os.fsencode(entry.name)
                yield from self._send(fd, name, path + b"/" + name if path else name, False)
                yield None

    def _send_file(self, fd: int, path: bytes, seen: "os.stat_result") -> "Pieces":
        if seen.st_nlink > 1 and path:
            key = (seen.st_dev, seen.st_ino)
            earlier = self._links.get(key)
            if earlier is not None:
                yield self._encode(path, "hardlink", seen, target=files.decode(earlier))
                return
            if len(self._links) < _MAX_LINKS:
                self._links[key] = path
        offset, crc = self._begin if not path else (0, 0)
        if offset:
            yield self._encode(path, "file", seen, size=seen.st_size, offset=offset)
        else:
            yield self._encode(path, "file", seen, size=seen.st_size)
        position = yield from self._send_pieces(fd, seen, offset, crc)
        after = os.fstat(fd)
        # What has no size of its own (in /proc) has none to differ from.
        if (after.st_mtime_ns, after.st_size) != (seen.st_mtime_ns, seen.st_size) or (
            seen.st_size and position != seen.st_size
        ):
            self._tell_changed(path)

    def _send_pieces(self, fd: int, seen: "os.stat_result", offset: int, crc: int) -> "Pieces":
        """Yields the content up to the size it had, or to its end where it has none; gives where that was."""
        size = seen.st_size
        sparse = seen.st_blocks * 512 < size
        end = offset
        while offset < size or not size:
            if sparse and offset >= end:
                offset, end = _find_data(fd, offset, size)
                if offset >= size:
                    break
            elif not sparse:
                end = size or offset + _READ_BYTES
            buffer = bytearray(PIECE.size + min(_READ_BYTES, end - offset))
            view = memoryview(buffer)
            count = os.preadv(fd, [view[PIECE.size :]], offset)
            if not count:
                break  # it has become shorter, or this is the end of what has no size
            PIECE.pack_into(buffer, 0, offset, count)
            crc = crc32(view[PIECE.size : PIECE.size + count], crc)
            offset += count
            self._bytes += count
            if self._max_bytes and self._bytes > self._max_bytes:
                raise files.TooLarge("more than transfer_bytes of the agent's configuration")
            yield view[: PIECE.size + count]
        yield PIECE.pack(offset, 0) + CRC.pack(crc)
        return offset

    def _encode(self, path: bytes, type_: str, seen: "os.stat_result", **more: object) -> bytes:
        self._entries += 1
        if self._max_entries and self._entries > self._max_entries:
            raise files.TooLarge("more than transfer_entries of the agent's configuration")
        entry: "dict[str, Any]" = {"path": files.decode(path), "type": type_}
        if type_ in ("directory", "file", "fifo"):
            entry["mode"] = seen.st_mode & 0o7777
        entry["mtime_ns"] = files.clamp_time(seen.st_mtime_ns)
        if self._owner:
            entry["uid"], entry["gid"] = seen.st_uid, seen.st_gid
        entry.update(more)
        return wire.encode_exactly(entry)

    def _tell_changed(self, path: bytes) -> None:
        if len(self._changed) < _MAX_CHANGED:
            self._changed.append(show(path)[:4096])


def measure(fd: int, offset: int, crc: int) -> "Pieces":
    """Gives whether the first `offset` bytes have this CRC-32, read in slices."""
    position = found = 0
    while position < offset:
        data = os.pread(fd, min(262144, offset - position), position)
        if not data:
            return False
        found = crc32(data, found)
        position += len(data)
        yield None
    return found == crc


def _find_data(fd: int, offset: int, size: int) -> "tuple[int, int]":
    """Where the next content is and where it ends; `size` for both when there is only a hole left."""
    try:
        begin = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == 6:  # ENXIO: no more. Source: lseek(2)
            return size, size
        return offset, size  # a file system that does not know holes
    return begin, min(size, os.lseek(fd, begin, os.SEEK_HOLE))
