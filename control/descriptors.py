"""Files that are known by a number, as those a process is started with are (floor 0)."""

from __future__ import annotations

import os


def is_open(descriptor: int) -> bool:
    """Whether this process has that file: whoever started it may have closed it."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of `data`, however little is taken at once. Raises OSError when no more is taken."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
