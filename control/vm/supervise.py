"""The supervisor's own program: `supervise.py NAME DIRECTORY` (floor 3), started by `hire`; `duty` is what it does.

Name and directory are there for people who look at a list of processes.
"""

import os
import sys


def _detach() -> None:
    """Become nobody's child, before there is much of us: whoever started us waits for the first half only."""
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    # What whoever started us had been given, a pipe whose end somebody waits for perhaps, is not ours to hold.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    _detach()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from control.vm.duty import main

    sys.exit(main())
