"""`unhinged doctor` (floor 6): becomes `control.launch.doctor`, which works without anything of ours installed."""

from __future__ import annotations

import os
import sys

from control.cli.desk import Desk
from control.paths import ROOT


def doctor(desk: Desk) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "control.launch.doctor", *(["--json"] if desk.is_json else [])]
    os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is wanted
