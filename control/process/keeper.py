"""The keeper's own program: `keeper.py PIPE_FD PID_FILE [LOG …]`, started by `handle.start_keeper` (floor 2).

It waits on a pipe whose other end only the launcher holds. A word on it means that all is well and the keeper goes; the
bare end of the pipe means that the launcher was killed, and then the process named in PID_FILE is ended, provided that
its command line names PID_FILE: a number that a killed QEMU left there may mean another process by now.
Imports as little as it can: it starts beside every foreground VM.
"""

import os
import select
import signal
import sys
import time

PID_FILE_DEADLINE_S = 5.0
"""QEMU writes its pid file within some ten milliseconds of its start; a loaded machine is given more."""

TERM_DEADLINE_S = 5.0
"""QEMU flushes its disks on SIGTERM; after this it is killed."""


def main() -> int:
    pipe, pid_file, logs = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # only the launcher's end ends us
    word = os.read(pipe, 64)
    if word == b"ended\n":
        return 0
    pid = wait_for_pid(pid_file)
    if pid is None:
        return 0
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return 0  # it has ended by itself
    if not is_kept(pid, pid_file):  # looked at after the pidfd is held: the number stands for one process now
        return 0
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if word:
        if os.fork() == 0:  # the launcher waits for us before it goes, and must not wait for the VM
            bound_logs(logs, poller)
        return 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return 0
        if poller.poll(TERM_DEADLINE_S * 1000):
            return 0
    return 1


def bound_logs(logs: "list[str]", poller: select.poll) -> None:
    """Keep the logs of a VM that runs on without a launcher from filling the disk, until it ends."""
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
    from control.process import punch

    punched = dict.fromkeys(logs, 0)
    while not poller.poll(punch.CHECK_S * 1000):
        for log in list(punched):
            try:
                punched[log] = punch.punch_log(log, punched[log])
            except OSError:
                del punched[log]  # this file system cannot do it, and there is nobody left to tell


def wait_for_pid(pid_file: str) -> "int | None":
    """Read the number QEMU wrote, waiting a little for a QEMU that has only just been started."""
    deadline = time.monotonic() + PID_FILE_DEADLINE_S
    while True:
        try:
            with open(pid_file, encoding="ascii") as file:
                return int(file.read())
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                return None
        time.sleep(0.02)  # a file has no event without inotify, and this path is taken once in a crash


def is_kept(pid: int, pid_file: str) -> bool:
    """Whether the process `pid` was started with `pid_file` on its command line, as QEMU is."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsencode(pid_file) in file.read().split(b"\0")
    except OSError:
        return False  # it has ended by itself


if __name__ == "__main__":
    sys.exit(main())
