"""Starts a supervisor that has no job yet (floor 3). Quick to import: it loads while its job is worked out."""

from __future__ import annotations

import sys
from pathlib import Path

from control.process.detach import Detached, start_detached

AGENCY = "--agency"
"""What `supervise.py` is started with to be one; that program imports nothing before it has let go of us."""

_PROGRAM = Path(__file__).with_name("supervise.py")


def hire(name: str, directory: Path) -> Detached:
    """Start a supervisor; `control.vm.reach.begin` gives it a job, and it leaves when it is let go of without one.

    Args:
        name, directory: Of the instance, for people who look at a list of processes.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    return start_detached([sys.executable, "-P", str(_PROGRAM), name, str(directory)])


class Agency:
    """Supervisors for whoever needs many: what they load is loaded once. Close it at the end.

    Args:
        directory: As `hire` has it.

    Raises:
        HostError: It cannot be started.
    """

    def __init__(self, directory: Path) -> None:
        self._program = hire(AGENCY, directory)

    def close(self) -> None:
        """Let go of it; those it has hired out stay."""
        self._program.close()

    def hire(self) -> Detached:
        """As the function does; raises HostError."""
        return self._program.start_another()
