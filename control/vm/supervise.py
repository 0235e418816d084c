"""The supervisor's own program: `supervise.py NAME DIRECTORY REPORT_FD LOCK_FD` (floor 3), started by `reach`.

Name and directory are there for people who look at a list of processes. The lock is held by keeping its descriptor
open: whoever started us has taken it, and there is no moment at which nobody holds it.
"""

import os
import sys


def _detach() -> None:
    """Become nobody's child, before there is much of us: whoever started us waits for the first half only."""
    if os.fork():
        os._exit(0)


if __name__ == "__main__":
    _detach()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from control.vm.supervisor import main

    sys.exit(main(int(sys.argv[3])))
