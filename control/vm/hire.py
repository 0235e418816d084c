"""Starts a supervisor that has no job yet (floor 3). Quick to import: it loads while its job is worked out."""

from __future__ import annotations

import sys
from pathlib import Path

from control.process.detach import Detached, start_detached

_PROGRAM = Path(__file__).with_name("supervise.py")


def hire(name: str, directory: Path) -> Detached:
    """Start a supervisor; `control.vm.reach.begin` gives it a job, and it leaves when it is let go of without one.

    Args:
        name, directory: Of the instance, for people who look at a list of processes.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    return start_detached([sys.executable, "-P", str(_PROGRAM), name, str(directory)])
