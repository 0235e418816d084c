"""Scripts at a console: send, read, expect, run, login (floor 4). See docs/scripting.md.

>>> from control.session import open_session
"""

from control.session.cluster import Cluster
from control.session.engine import EOF, TIMEOUT, ExpectTimeout, SessionEnded
from control.session.machines import create_cluster, start_machine, stop_machine
from control.session.session import (
    Session,
    attach_to_vm,
    detach_vm,
    open_session,
    read_output,
    send_input,
)
from control.session.shell import CommandTimeout, Done

__all__ = [
    "EOF",
    "TIMEOUT",
    "Cluster",
    "CommandTimeout",
    "Done",
    "ExpectTimeout",
    "Session",
    "SessionEnded",
    "attach_to_vm",
    "create_cluster",
    "detach_vm",
    "open_session",
    "read_output",
    "send_input",
    "start_machine",
    "stop_machine",
]
