"""`unhinged fork` (floor 6): its supervisors load while the rest of the command does, which `clone` is."""

from __future__ import annotations

import contextlib
import os

from control.cli.desk import Desk
from control.vm.hire import hire


def fork(desk: Desk) -> int:
    with contextlib.ExitStack() as stack:
        # One processor is for ourselves. Clones beyond that come when it is their turn.
        at_once = min(desk.options.count, max(1, (os.cpu_count() or 1) - 1))
        hired = [stack.enter_context(hire(desk.options.template, desk.runtime)) for _ in range(at_once)]
        from control.cli.clone import fork as go_on

        return go_on(desk, hired)
