#!/usr/bin/env python3
"""Boots a VM and shows its serial console, one way (floor 7): `make start-simple`.

The console goes to stdout byte for byte as it comes; everything this program has to say goes to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

if __name__ == "__main__":
    # As a script Python puts this folder first on its path; the packages are one floor up.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from control.launch.entry import ensure_interpreter

    ensure_interpreter(__file__)

from control.accel.choice import AcceleratorChoice
from control.console.sink import OutputSink, open_output_sink
from control.errors import EXIT_ERROR, ControlError, HostError
from control.launch.options import LaunchOptions, build_parser, read_options
from control.launch.render import note, render_error, say, wants_colour
from control.launch.session import Outcome, View, run_session
from control.log import show_debug_log

LauncherT = TypeVar("LauncherT", bound="SimpleVMLauncher")


class SimpleVMLauncher:
    """Boots one VM in the foreground and streams its serial console to stdout.

    Args:
        options: What to boot, and how long; the built-in guest by default.
    """

    with_agent = False

    def __init__(self, options: LaunchOptions | None = None) -> None:
        self.options = options or LaunchOptions()

    def launch_vm(self) -> int:
        """Boot the VM, see it through to its end, and return the exit code (see `control.errors`).

        Whatever ends the run - the guest, `until`, `timeout_s`, a signal, an error - the VM is gone when this returns,
        unless the user detached from it.
        """
        with open_output_sink(1) as sink:
            outcome = asyncio.run(self._run(sink))
        self.report(outcome)
        return outcome.exit_code

    def report(self, outcome: Outcome) -> None:
        """Tell the user how the run ended."""
        if outcome.error is not None:
            say(render_error(outcome.error, colour=wants_colour(2)))
        else:
            note(outcome.how)

    async def _run(self, sink: OutputSink) -> Outcome:
        return await run_session(self.options, ConsoleView(sink), with_agent=self.with_agent)


class ConsoleView(View):
    """Shows the console and nothing else."""

    def __init__(self, sink: OutputSink) -> None:
        self.sink = sink

    async def on_console(self, chunk: bytes) -> None:
        await self.sink.write(chunk)

    def on_note(self, text: str) -> None:
        note(text)

    def on_accelerator(self, choice: AcceleratorChoice) -> None:
        note(choice.reason)


def run_launcher(launcher: type[LauncherT], launch: Callable[[LauncherT], int], arguments: list[str]) -> int:
    """Read the command line, `launch`, and return the exit code; an error is one clear sentence on stderr."""
    script = sys.modules[launcher.__module__]
    parser = build_parser(Path(sys.argv[0]).name, (script.__doc__ or "").partition("\n")[0])
    if launcher.with_agent:
        parser.add_argument("--attach", action="store_true", help="go back to a VM you detached from")
    try:
        options = read_options(parser.parse_args(arguments))
        if options.debug:
            show_debug_log()
        return launch(launcher(options))
    except ControlError as error:
        say(render_error(error, colour=wants_colour(2)))
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(render_error(HostError(f"{where}{error.strerror or error}", hint="make doctor"), colour=wants_colour(2)))
        return EXIT_ERROR


if __name__ == "__main__":
    sys.exit(run_launcher(SimpleVMLauncher, SimpleVMLauncher.launch_vm, sys.argv[1:]))
