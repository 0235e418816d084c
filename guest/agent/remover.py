"""Removes a directory with all that is in it (guest floor); made by `file_remove`.

Never through a link, never into another file system, and never by a path: each directory is opened in the one above.
"""

import errno
import os

from . import files
from .pathpolicy import WRITE, show
from .treewriter import MAX_DEPTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator

    from .pathpolicy import Policy

    Count = Generator[None, None, int]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(policy: "Policy", dir_fd: int, name: bytes, depth: int = 0) -> "Count":
    """Removes it in slices; gives how many entries that were. It may be removed in part when this ends early.

    Raises:
        OSError: Something cannot be removed.
        TooLarge: There are too many directories in each other.
    """
    if depth > MAX_DEPTH:
        raise files.TooLarge("more than %d directories in each other" % MAX_DEPTH)
    device = os.stat(b".", dir_fd=dir_fd).st_dev
    fd = os.open(name, _OPEN, dir_fd=dir_fd)
    try:
        policy.check_fd(fd, WRITE)
        if os.fstat(fd).st_dev != device:
            raise OSError(errno.EXDEV, "another file system is mounted there", show(name))
        removed = 0
        while True:
            count = yield from _remove_content(policy, fd, depth)
            removed += count
            try:
                os.rmdir(name, dir_fd=dir_fd)
                return removed + 1
            except OSError as error:
                # A file system may pass over a name while others are removed. With nothing removed, it is not that.
                if error.errno != errno.ENOTEMPTY or not count:
                    raise
    finally:
        os.close(fd)


def _remove_content(policy: "Policy", fd: int, depth: int) -> "Count":
    count = 0
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            try:
                if entry.is_dir(follow_symlinks=False):
                    count += yield from remove_tree(policy, fd, name, depth + 1)
                else:
                    policy.check_fd(fd, WRITE, name)
                    os.unlink(name, dir_fd=fd)
                    count += 1
            except FileNotFoundError:
                pass  # somebody else has removed it
            yield
    return count
