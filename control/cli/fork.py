"""`unhinged fork` (floor 6): its supervisors load while the rest of the command does, which `clone` is."""

from __future__ import annotations

import contextlib

from control.cli.desk import Desk
from control.vm.hire import Agency, hire


def fork(desk: Desk) -> int:
    if desk.options.count > 1:
        with contextlib.closing(Agency(desk.runtime)) as agency:
            from control.cli.clone import fork as go_on

            return go_on(desk, agency.hire)
    with hire(desk.options.template, desk.runtime) as hired:
        from control.cli.clone import fork as go_on

        return go_on(desk, lambda: contextlib.nullcontext(hired))
