#!/usr/bin/env python3
"""Sets everything up and boots a VM with a two-way line to it (floor 7): `make start`.

Calls the Makefile's set-up targets behind the scenes, shows the boot phase by phase, and sums up at the end.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    from control.launch.entry import ensure_interpreter

    ensure_interpreter(__file__)

from control.console.sink import OutputSink
from control.enhanced_vm_launcher import EnhancedVMLauncher, TwoWayView
from control.errors import HostError
from control.launch.options import LaunchOptions
from control.launch.render import note
from control.launch.session import Outcome
from control.simple_vm_launcher import run_launcher
from control.units import format_duration
from control.vm.listener import Carrier
from control.wire import Message

SETUP_TARGETS = ("setup-python", "deps-install-essential")
IMAGE_TARGET = "image"


class UnhingedLauncher(EnhancedVMLauncher):
    """`make start`: set-up, boot and conversation in one."""

    def __init__(self, options: LaunchOptions | None = None) -> None:
        super().__init__(options)
        self.phases: list[tuple[str, float]] = []
        self.messages = 0

    def start(self) -> int:
        """Set up, boot, converse and sum up; return the exit code.

        Raises:
            HostError: A make target of the set-up failed; its own output stands on stderr, and no VM was started.
        """
        started = time.monotonic()
        own_files = self.options.iso or self.options.kernel or self.options.disk
        for target in SETUP_TARGETS if own_files else (*SETUP_TARGETS, IMAGE_TARGET):
            self.call_makefile(target)
        self.reach("setup", time.monotonic() - started)
        return self.launch_vm_with_bidirectional_communication()

    def call_makefile(self, target: str) -> None:
        """Run `make TARGET` in the checkout, its output going to stderr.

        Raises:
            HostError: It failed; what it said has been shown.
        """
        made = subprocess.run(
            ["make", "-C", str(ROOT), "--silent", "--no-print-directory", target],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno() if sys.stderr else subprocess.DEVNULL,
            check=False,
        )
        if made.returncode != 0:
            raise HostError(
                f"make {target} failed with exit code {made.returncode}", hint="what it said stands above; make doctor"
            )

    def reach(self, phase: str, seconds: float, show: Callable[[str], None] = note) -> None:
        """Note and `show` that a phase was reached, `seconds` after its clock began."""
        self.phases.append((phase, seconds))
        show(f"{phase:<9}{format_duration(seconds):>8}")

    def report(self, outcome: Outcome) -> None:
        super().report(outcome)
        reached = ", ".join(f"{phase} {format_duration(seconds)}" for phase, seconds in self.phases)
        note(f"{reached}; {self.messages} messages from the guest")

    def make_view(self, sink: OutputSink) -> TwoWayView:
        return PhaseView(sink, self)


class PhaseView(TwoWayView):
    """A two-way view that also shows the phases of the boot."""

    def __init__(self, sink: OutputSink, launcher: UnhingedLauncher) -> None:
        super().__init__(sink, launcher)
        self._unhinged = launcher

    def on_phase(self, phase: str, seconds: float) -> None:
        self._unhinged.reach(phase, seconds, self.on_note)

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        self._unhinged.messages += 1
        await super().on_message(message, carrier)


if __name__ == "__main__":
    sys.exit(run_launcher(UnhingedLauncher, UnhingedLauncher.start, sys.argv[1:]))
