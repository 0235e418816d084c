"""Files of the guest as data, and the cpio archive the kernel unpacks (room: image; called by the other modules here).

A tree is a dict from path (no leading slash) to `Entry`. Keeping it in memory means that no root is needed for owners
and device nodes, and that nothing of the host (times, inode numbers, umask) can leak into the image.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

Tree = dict[str, "Entry"]

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One file, directory, symbolic link or device node; always owned by root, always with the time 0.

    Attributes:
        mode: Type and permission bits, as in `stat.st_mode`.
        data: A file's content, or a symbolic link's target.
        device: Major and minor number of a device node.
    """

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(stat.S_IFREG | permissions, data)


def directory(permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(stat.S_IFDIR | permissions)


def symlink(target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


def character_device(major: int, minor: int, permissions: int = 0o600) -> Entry:
    """A character device node."""
    return Entry(stat.S_IFCHR | permissions, device=(major, minor))


def with_parents(tree: Mapping[str, Entry]) -> Tree:
    """Add the directories that entries of `tree` lie in and that it does not name itself."""
    full: Tree = dict(tree)
    for path in tree:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            full.setdefault("/".join(parts[:depth]), directory())
    return full


def pack(tree: Mapping[str, Entry]) -> bytes:
    """Write `tree` as a cpio archive: the same tree gives the same bytes, on every host.

    Parents come before what is in them, because the kernel creates entries in the order of the archive.

    Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
    """
    parts: list[bytes] = []
    for inode, (path, entry) in enumerate(sorted(with_parents(tree).items()), start=1):
        _append(parts, path, entry, inode)
    _append(parts, _TRAILER, Entry(0), 0)
    return b"".join(parts)


def _append(parts: list[bytes], path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    parts += (header, name, _padding(len(header) + len(name)), entry.data, _padding(len(entry.data)))


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)
