"""Gives the oldest disk blocks of a log back (floor 2), while somebody else goes on writing it.

Used by `control.vm.logs` and by the keeper's own program; standard library only.
"""

import os

KEPT_BYTES = 1 << 30
"""What is kept of each log. A virtio console under TCG was measured at 17 MB/s: that much comes in a minute."""

SLACK_BYTES = 256 << 20
"""How much more than that may come before blocks are given back."""

CHECK_S = 5.0
"""How often a log is looked at: a size has no event."""

# linux/falloc.h: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_PUNCH_HOLE = 0x01 | 0x02


def punch_log(log: str, punched_bytes: int) -> int:
    """Free what is older than the kept part of `log`, and return up to where it has been freed.

    Its name, offsets and newest bytes stay as they are, so nothing that is being written at that moment can be lost.

    Raises:
        OSError: The file system cannot do that; the log is as it was.
    """
    try:
        end = os.stat(log).st_size - KEPT_BYTES
    except FileNotFoundError:
        return punched_bytes
    if end < punched_bytes + SLACK_BYTES:
        return punched_bytes
    import ctypes  # few VMs ever say that much

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CLOEXEC)
    try:
        result = libc.fallocate(
            ctypes.c_int(descriptor), ctypes.c_int(_PUNCH_HOLE), ctypes.c_int64(0), ctypes.c_int64(end)
        )
    finally:
        os.close(descriptor)
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), log)
    return end
