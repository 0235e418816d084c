"""The one error a build ends with (room: image; every module here raises it, `iso/build.py` prints it)."""

from __future__ import annotations

import errno
from pathlib import Path


class BuildError(Exception):
    """The image cannot be built; an older image, if there is one, is untouched.

    Attributes:
        hint: What the user can do next; empty when there is nothing sensible to say.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


_DISK_CAUSES = {
    errno.ENOSPC: ("the disk is full", "free some space, or choose another place with --output and --cache"),
    errno.EDQUOT: ("the disk quota is used up", "free some space, or choose another place with --output and --cache"),
    errno.EROFS: ("the file system is read-only", "choose a place that can be written with --output and --cache"),
    errno.EACCES: ("permission is denied", "make it writable, or choose another place with --output and --cache"),
    errno.EPERM: ("permission is denied", "make it writable, or choose another place with --output and --cache"),
    errno.ENOTDIR: ("a part of the path is not a directory", "move that file away, or choose another place"),
    errno.EEXIST: ("something that is not a directory is in the way", "move it away, or choose another place"),
}


def disk_failure(error: OSError, path: Path) -> BuildError:
    """Say in one sentence why a file could not be written, and what helps.

    Args:
        error: What the operating system said.
        path: What was being written when the error does not name a file itself.
    """
    where = error.filename if isinstance(error.filename, str) else str(path)
    cause, hint = _DISK_CAUSES.get(error.errno or 0, (error.strerror or str(error), ""))
    return BuildError(f"cannot write {where}: {cause}", hint=hint)
