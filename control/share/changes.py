"""What has changed in a copy of a directory, and carrying that over to the directory itself (floor 2).

Of names that are neither directory, file nor link nothing is known. Owners and times do not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from control.errors import HostError

Kind = Literal["directory", "file", "link"]


@dataclass(frozen=True)
class Entry:
    """What is known of one name.

    Attributes:
        mode: Permission bits; 0 for a link.
        content: A file's SHA-256, a link's target; empty for a directory.
    """

    kind: Kind
    mode: int
    content: str = ""


@dataclass(frozen=True)
class Change:
    """That a `path`, relative, was added, modified or deleted."""

    what: Literal["A", "M", "D"]
    path: str

    def __str__(self) -> str:
        return f"{self.what} {self.path}"


def list_tree(root: Path) -> dict[str, Entry]:
    """Say what lies below `root`, by its relative path. Raises HostError for what cannot be read."""
    found: dict[str, Entry] = {}

    def fail(error: OSError) -> None:
        raise HostError(f"{error.filename} cannot be read: {error.strerror}", hint="look at the rights there")

    try:
        for where, directories, names in os.walk(root, onerror=fail):
            for name in (*directories, *names):
                path = Path(where, name)
                if (entry := _look(path)) is not None:
                    found[str(path.relative_to(root))] = entry
    except OSError as error:
        fail(error)
    return found


def _look(path: Path) -> Entry | None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", 0, str(path.readlink()))
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISDIR(status.st_mode):
        return Entry("directory", mode)
    if not stat.S_ISREG(status.st_mode):
        return None
    with path.open("rb") as file:
        return Entry("file", mode, hashlib.file_digest(file, "sha256").hexdigest())


def compare(before: Mapping[str, Entry], after: Mapping[str, Entry]) -> list[Change]:
    """Say what differs, by path.

    >>> old, new = Entry("file", 0o644, "a"), Entry("file", 0o644, "b")
    >>> [str(change) for change in compare({"x": old, "y": old, "z": old}, {"w": new, "x": new, "y": old})]
    ['A w', 'M x', 'D z']
    """
    changes = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            changes.append(Change("A", path))
        elif path not in after:
            changes.append(Change("D", path))
        elif before[path] != after[path]:
            changes.append(Change("M", path))
    return changes


def apply(changes: list[Change], source: Path, target: Path, before: Mapping[str, Entry]) -> list[str]:
    """Change `target` as `source` was changed, and return the paths that were left alone.

    Left alone is what is not as it was `before` any more, and what lies below a name that is no directory now.

    Raises:
        HostError: Something cannot be written; what went before is done.
    """
    left = []
    deleted = [change for change in changes if change.what == "D"]
    made = [change for change in changes if change.what != "D"]
    for change in (*reversed(deleted), *made):
        path = target / change.path
        try:
            if not _has_real_parents(target, path) or not _is_as_before(path, before.get(change.path)):
                left.append(change.path)
            elif change.what == "D":
                _remove(path)
            else:
                _make(source / change.path, path)
        except OSError as error:
            raise HostError(f"{path} cannot be changed: {error.strerror}", hint="look at the rights there") from error
    return sorted(left)


def _has_real_parents(root: Path, path: Path) -> bool:
    """Whether everything between `root` and `path` is a directory: a link there would lead elsewhere."""
    return all(
        stat.S_ISDIR(parent.lstat().st_mode) if os.path.lexists(parent) else False
        for parent in path.parents
        if parent != root and root in parent.parents
    )


def _is_as_before(path: Path, entry: Entry | None) -> bool:
    try:
        return _look(path) == entry
    except FileNotFoundError:
        return entry is None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(OSError):  # something is in it that was not there before
            path.rmdir()
    else:
        path.unlink()


def _make(source: Path, path: Path) -> None:
    """Put what is at `source` in the place of `path`, whole or not at all."""
    entry = _look(source)
    if entry is None:
        return
    if entry.kind == "directory":
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            path.mkdir()
        path.chmod(entry.mode)
        return
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    fresh = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        if entry.kind == "link":
            fresh.symlink_to(source.readlink())
        else:
            shutil.copyfile(source, fresh)
            fresh.chmod(entry.mode)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
