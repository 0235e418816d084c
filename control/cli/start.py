"""`unhinged start` (floor 6): its supervisors load while the rest of the command does, which `life` is."""

from __future__ import annotations

import contextlib
import os

from control.cli.desk import Desk
from control.paths import find_instance_files
from control.vm.hire import hire


def start(desk: Desk) -> int:
    with contextlib.ExitStack() as stack:
        # One processor is for ourselves. VMs beyond that come when it is their turn, and so does what `--all` means.
        for name in dict.fromkeys(desk.options.names[: (os.cpu_count() or 1) - 1]):
            directory = find_instance_files(desk.runtime, name).directory
            desk.hired[name] = stack.enter_context(hire(name, directory))
        from control.cli.life import start as go_on

        return go_on(desk)
