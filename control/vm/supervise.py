"""The supervisor's own program: `supervise.py NAME DIRECTORY` (floor 3), started by `hire`; `duty` is what it does.

Name and directory are there for people who look at a list of processes. With the name `--agency` it becomes a
supervisor, again and again, for each socket that comes over the one which is its stdin: what they have loaded is loaded
once, and in memory once.
"""

import os
import sys

AGENCY = "--agency"


def _detach() -> None:
    """Become nobody's child, before there is much of us: whoever started us waits for the first half only."""
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    # What whoever started us had been given, a pipe whose end somebody waits for perhaps, is not ours to hold.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _let_go() -> None:
    """Return in a new process for each socket that comes, which is its stdin; at their end this one is at its end."""
    import gc
    import signal
    import socket

    client = socket.socket(fileno=0)
    gc.collect()
    gc.freeze()  # else each of them would have its own copy of all objects as soon as it looks for garbage
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        word, descriptors, _, _ = socket.recv_fds(client, 1, 1, socket.MSG_CMSG_CLOEXEC)
        if not word:
            client.detach()
            sys.exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            client.detach()
            os.dup2(descriptors[0], 0)
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            return
        os.close(descriptors[0])


if __name__ == "__main__":
    _detach()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from control.vm import duty

    if sys.argv[1] == AGENCY:
        duty.load_all()
        _let_go()
    sys.exit(duty.main())
