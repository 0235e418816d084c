"""Keeps the part of the guest that comes from packages as one file in the cache (room: image).

Unpacking the kernel and compiling Python's library takes most of a build; a change of our own files need not repeat it.
"""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
from pathlib import Path

from iso.newc import Entry, Tree


def save(tree: Tree, path: Path) -> None:
    """Write `tree` to `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as target:
        try:
            with tarfile.open(fileobj=target, mode="w") as archive:
                for name, entry in sorted(tree.items()):
                    archive.addfile(_member(name, entry), io.BytesIO(entry.data))
        except BaseException:
            Path(target.name).unlink()
            raise
    Path(target.name).replace(path)


def load(path: Path) -> Tree | None:
    """Read a tree back, or return None when there is none or the file is damaged."""
    tree: Tree = {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                tree[member.name] = _entry(archive, member)
    except (FileNotFoundError, tarfile.TarError, EOFError):
        return None
    return tree


def _member(name: str, entry: Entry) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(entry.mode)
    if stat.S_ISLNK(entry.mode):
        member.type, member.linkname = tarfile.SYMTYPE, entry.data.decode()
    elif stat.S_ISDIR(entry.mode):
        member.type = tarfile.DIRTYPE
    else:
        member.size = len(entry.data)
    return member


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    if member.issym():
        return Entry(stat.S_IFLNK | 0o777, member.linkname.encode())
    if member.isdir():
        return Entry(stat.S_IFDIR | member.mode)
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return Entry(stat.S_IFREG | member.mode, content.read())
