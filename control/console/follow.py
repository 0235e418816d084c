"""Follows a file that somebody else writes, as `tail -f` does (floor 2); blocking, for commands."""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Iterator

from control.errors import HostError

_IN_MODIFY = 0x00000002
"""linux/inotify.h."""

_PIECE_BYTES = 1 << 16
_LOOK_S = 5.0
"""Some file systems (those of a network among them) tell of no change."""

REST_S = 0.002
"""Between two looks. QEMU writes a serial console byte by byte: to look each time costs as much as the guest does."""

_LAG_BYTES = 256 << 20
"""Nobody gives blocks back that are as near to the end of a log (control/process/punch.py)."""


def follow(descriptor: int, writer: int) -> Iterator[bytes]:
    """Yield what is in the open file `descriptor` from where it stands, as it comes, until its writer has ended.

    Args:
        writer: A pidfd of the process that writes it.

    Raises:
        HostError: The kernel cannot tell of changes of the file.
    """
    watch = open_watch(descriptor)
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        poller.register(writer, select.POLLIN)
        has_ended = False
        looked_at = time.monotonic() - REST_S
        while True:
            # No wait for something to come, which is what the poll is for: it has come, and more will within this time.
            time.sleep(max(0.0, looked_at + REST_S - time.monotonic()))
            looked_at = time.monotonic()
            # Looked at after the writer has ended as well: what it wrote last is part of the file.
            skip_hole(descriptor)
            while piece := os.read(descriptor, _PIECE_BYTES):
                yield piece
                skip_hole(descriptor)
                if len(piece) < _PIECE_BYTES:
                    break
            if has_ended:
                return
            for found, _ in poller.poll(_LOOK_S * 1000):
                if found == watch:
                    os.read(watch, _PIECE_BYTES)
                else:
                    has_ended = True
    finally:
        os.close(watch)


def skip_hole(descriptor: int) -> int:
    """Go on behind what was given back of a log, which would read as zeros; return how many bytes that is."""
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    if os.fstat(descriptor).st_size - position <= _LAG_BYTES:
        return 0
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA) - position
    except OSError:  # no data is behind it yet, or the file system knows of no holes
        os.lseek(descriptor, position, os.SEEK_SET)
        return 0


def open_watch(descriptor: int) -> int:
    """A descriptor that is readable once the open file `descriptor` was written to. Raises HostError."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch: int = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if watch < 0:
        raise HostError(f"files cannot be watched here: {os.strerror(ctypes.get_errno())}")
    if libc.inotify_add_watch(watch, f"/proc/self/fd/{descriptor}".encode(), ctypes.c_uint32(_IN_MODIFY)) < 0:
        os.close(watch)
        raise HostError(f"the file cannot be watched: {os.strerror(ctypes.get_errno())}")
    return watch
