"""What is told of a machine whose test has failed (floor 6): gathered while it is still there, and written to files."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import ControlError
from control.testing.troubles import Trouble, find_in_console, find_in_messages
from control.vm.collect import collect_exec
from control.vm.lifetime import wait_until_free
from control.vm.reach import Seen, connect, look

if TYPE_CHECKING:
    from control.testing.machine import Machine

CONSOLE_LINES, KERNEL_LINES, COMMANDS = 60, 40, 20
"""What a report shows; the files have all of it."""

KERNEL_LOG_S = 10.0
SLACK_S = 0.2
"""By how much the guest's and the host's clocks may differ over a test."""

_STAMP = re.compile(r"\[ *(\d+\.\d+)\]")


class GuestTrouble(AssertionError):
    """The test asserted nothing that is not so, and yet something is wrong with a guest."""


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    title: str
    text: str


def find_troubles(machine: Machine) -> list[Trouble]:
    """What seems wrong with the machine, beside what is allowed."""
    found = [*find_in_console(machine.read_console()), *find_in_messages(machine.read_messages())]
    seen = _look(machine)
    if not seen.is_running and not machine.was_ended and not any(each.kind == "panic" for each in found):
        found.append(Trouble("panic", f"it has ended: {seen.note or seen.state}"))
    return [trouble for trouble in found if trouble.kind not in machine.wish.allow]


def collect(machine: Machine, directory: Path) -> list[Section]:
    """Write down in `directory` all that there is to know of a machine, and return what a report shows of it."""
    directory.mkdir(parents=True, exist_ok=True)
    console = machine.read_console()
    commands = [outcome.describe() for outcome in machine.history]
    (directory / f"{machine.label}.console.log").write_text(console, encoding="utf-8")
    (directory / f"{machine.label}.commands.log").write_text("\n".join(commands), encoding="utf-8")
    sections = [
        Section("console", _shorten(console, CONSOLE_LINES)),
        Section("commands", "\n".join(commands[-COMMANDS:])),
    ]
    if not machine.is_running:
        seen = _look(machine)
        sections.append(Section("state", f"it does not run: {seen.note or seen.state}"))
    else:
        kernel, since = _read_kernel_log(machine)
        (directory / f"{machine.label}.kernel.log").write_text(kernel, encoding="utf-8")
        sections.append(Section("kernel log", _shorten(since, KERNEL_LINES)))
        if machine.wish.shape.display != "none":
            sections.append(Section("screenshot", _take_screenshot(machine, directory)))
    sections.append(Section("files", str(directory)))
    return [section for section in sections if section.text.strip()]


def _look(machine: Machine) -> Seen:
    """Look at a machine; of one that has just ended, how is known once its supervisor has left."""
    if not machine.is_running:
        with contextlib.suppress(ControlError):  # then what is known is told
            wait_until_free(machine.disposable.runtime, machine.name)
    return look(machine.disposable.runtime, machine.name)


def _shorten(text: str, lines: int) -> str:
    every = text.rstrip().splitlines()
    left = len(every) - lines
    return "\n".join([f"… {left} lines before", *every[-lines:]] if left > 0 else every)


def _read_kernel_log(machine: Machine) -> tuple[str, str]:
    """All of it, and what of it the kernel has said since the test began: before that, a clone was another machine."""
    try:
        with connect(machine.disposable.runtime, machine.name) as remote:
            argv = ["sh", "-c", "cat /proc/uptime && dmesg"]
            told = collect_exec(remote, {"argv": argv, "timeout_s": KERNEL_LOG_S})["stdout"]
        uptime, _, log = told.partition("\n")
        began = float(uptime.split()[0]) - machine.seconds_since_start - SLACK_S
    except (ControlError, ValueError, IndexError) as error:
        return "", f"it cannot be had: {error}"
    lines = log.splitlines(keepends=True)
    return log, "".join(line for line in lines if (at := _STAMP.match(line)) is not None and float(at[1]) >= began)


def _take_screenshot(machine: Machine, directory: Path) -> str:
    try:
        return str(machine.screenshot(directory / f"{machine.label}.screen.png"))
    except ControlError as error:
        return f"it cannot be had: {error}"
