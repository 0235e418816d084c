"""`unhinged gdb` (floor 6): a VM's QEMU under gdb; for people who work on QEMU itself.

The VM is then like any other: as soon as its QEMU runs it gets a supervisor, and is reached by its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time

from control.argv import build_argv
from control.cli.desk import Desk
from control.errors import ControlError, HostError
from control.paths import InstanceFiles, open_instance_files
from control.process.foreground import Foreground, start_foreground
from control.process.handle import read_start_ticks
from control.spec.fleet import get_vm
from control.vm.birth import build_record, lay_consoles
from control.vm.declared import Planned
from control.vm.instance import remove_stale_files, write_atomically, write_record
from control.vm.reach import claim, hold, look, start_supervisor

LOOK_S = 0.05
"""gdb starts QEMU when somebody types `run`; nothing tells us but its pid file."""

QUIET_SIGNALS = ("SIGUSR1", "SIGUSR2")
"""By the first QEMU wakes its CPUs' threads, by the second it makes coroutines (cpus.c, coroutine-sigaltstack.c)."""


def gdb(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    program = shutil.which("gdb")
    if program is None:
        raise HostError("gdb is not installed", hint="apt-get install gdb")
    seen = look(desk.runtime, name)
    if seen.pid is not None:
        desk.note(f"{name} runs: attaching to its QEMU, {seen.pid}; it stands still until gdb lets it go on")
        argv = [program, "-p", str(seen.pid), *_options(), *desk.options.words]
        os.execv(program, argv)  # noqa: S606 - no shell is wanted
    files = open_instance_files(desk.runtime, name, is_shared=desk.location.is_shared)
    with contextlib.ExitStack() as stack:
        held = contextlib.ExitStack()
        stack.push(held)
        lock = held.enter_context(claim(desk.runtime, name, files))
        if lock is None:
            raise HostError(f"{name} has just been started by somebody else", hint=f"unhinged gdb {name}")
        planned = desk.plan(name)
        remove_stale_files(files)
        lay_consoles(files)
        argv = list(build_argv(planned.spec, files))
        write_atomically(files.argv, json.dumps(argv, indent=1).encode())
        desk.note(f"{name}: type run; then `unhinged status {name}` and the rest work from another terminal")
        words = [program, *_options(), *desk.options.words, "--args", *argv]
        child = stack.enter_context(start_foreground(words, cwd=planned.directory(files)))
        pid = 0
        while (pid := _wait_for_qemu(child, files, pid)) > 0:
            if lock is None:  # not its first run under this gdb
                lock = held.enter_context(hold(files))
            if lock is not None:
                _hand_over(desk, name, files, planned, pid, lock)
                held.close()
                lock = None
        return child.wait()


def _options() -> list[str]:
    return [word for number in QUIET_SIGNALS for word in ("-ex", f"handle {number} nostop noprint pass")]


def _wait_for_qemu(child: Foreground, files: InstanceFiles, known: int) -> int:
    """Wait until a QEMU other than `known` has written its pid; 0 when gdb has ended."""
    while child.running:
        try:
            pid = int(files.pid.read_text())
        except (OSError, ValueError):
            pid = 0
        if pid not in (0, known) and read_start_ticks(pid) is not None:
            return pid
        time.sleep(LOOK_S)
    return 0


def _hand_over(desk: Desk, name: str, files: InstanceFiles, planned: Planned, pid: int, lock: int) -> None:
    """Give the VM its supervisor, which lets its guest run."""
    vm = get_vm(desk.fleet, name)
    record = build_record(planned.spec, files, pid, read_start_ticks(pid) or 0, ports=planned.ports, restart=vm.restart)
    try:
        for log, _, _ in files.consoles:
            files.times_of(log).unlink(missing_ok=True)
            os.truncate(log, 0)  # the guest has not run yet: what is in it is of the run before, under the same gdb
        write_record(files, record)
        start_supervisor(files, lock, {"name": name, "adopt": True})
    except (ControlError, OSError) as error:
        desk.note(f"{name} has no supervisor: {error}")
