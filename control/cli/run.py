"""`unhinged run -- PROGRAM ARGUMENT…` (floor 6): a command in a machine that is thrown away after it."""

from __future__ import annotations

import os
from typing import Any

from control.cli.desk import Desk
from control.errors import ConfigError
from control.paths import cache_directory
from control.vm.hire import hire


def run(desk: Desk) -> int:
    options = desk.options
    if not options.words:
        raise ConfigError("no program is named", hint="unhinged run -- PROGRAM ARGUMENT…")
    # It loads while we do.
    with hire(f"run-{os.getpid()}", cache_directory() / "run") as hired:
        from control.cli.guest import run_in_guest
        from control.units import parse_size_bytes
        from control.vm.disposable import MEMORY_BYTES, Shape, open_disposable

        memory_bytes = parse_size_bytes(options.memory, key="--memory") if options.memory else MEMORY_BYTES
        params: dict[str, Any] = {"argv": options.words}
        if options.timeout is not None:
            params["timeout_s"] = options.timeout
        is_terminal = options.tty or (os.isatty(0) and os.isatty(1) and not desk.is_json)
        shape = Shape(options.net, memory_bytes, options.cpus)
        with open_disposable(shape, fresh=options.fresh, say=desk.note, hired=hired) as (runtime, name):
            return run_in_guest(
                desk, name, params, runtime=runtime, reads_stdin=not options.no_stdin, is_terminal=is_terminal
            )
