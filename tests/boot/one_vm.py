"""The built-in guest as `one` of a configuration, with somebody logged in at its consoles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from control.session import open_session
from tests.qemu.fleets import WITHIN_S, Desk, open_desk

CONFIGURATION = """
[vm.one]
image = "builtin"
memory = "256M"
cpus = 1
accel = "tcg"
"""


@contextmanager
def open_one_vm(directory: Path, *consoles: str) -> Iterator[Desk]:
    """A desk at which `one` runs, root logged in at `consoles`; it is stopped when the body is left."""
    with open_desk(directory) as desk:
        desk.write(CONFIGURATION)
        done = desk.run("start", "--wait", "agent", "one")
        assert done.exit_code == 0, done.stderr
        for console in consoles:
            with open_session("one", console=console, config=desk.directory, timeout=WITHIN_S) as session:
                session.login("root")
        yield desk
        desk.run("stop", "one")
        desk.wait_until_gone()
