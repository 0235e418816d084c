"""What the holders' programs have in common (floor 2): their job, their signals, their files. Standard library only."""

import errno
import json
import os
import signal
from typing import Any

FULL_DISK_WAIT_S = 0.2
"""How long to wait before a full disk is tried again: nothing tells when there is room."""


def take_job(pid_file: str) -> "dict[str, Any]":
    """Settle in the machine's directory, say who we are there, and return what we are to hold."""
    os.chdir(os.path.dirname(pid_file))
    with open("holder.job", encoding="utf-8") as file:
        job: dict[str, Any] = json.load(file)
    write("pid", str(os.getpid()))
    return job


def catch_signals(*numbers: int) -> int:
    """Let signals end nothing; return a descriptor from which their numbers can be read, a byte each."""
    waking, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in numbers:
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(wakeup)
    return waking


def write(name: str, text: str) -> None:
    """Write a whole file; whoever looks sees all of it or nothing."""
    with open(f".{name}", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f".{name}", name)


def tell_end(**how: object) -> None:
    """Say how it ended: `exit_code` and `signal`, or an `error` and perhaps a `hint`."""
    write("holder.end", json.dumps(how))


def open_files() -> "tuple[int, int, int]":
    """Open what is written, what is typed, and what we are told to do; the FIFOs so that they never end."""
    log = os.open("serial", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    typed, orders = (os.open(name, os.O_RDWR | os.O_CLOEXEC) for name in ("serial.in", "holder.orders"))
    return log, typed, orders


def log_said(log: int, said: bytes) -> bytes:
    """Write what was said, and return what there is no room for. Raises OSError when room would not help."""
    try:
        while said:
            said = said[os.write(log, said) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
    return said
