"""Where the command `unhinged` begins (floor 6): nothing is loaded before an interrupt is a quiet end of it."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def run() -> NoReturn:
    """Run one command as the whole of this process: what the script `unhinged` calls."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nohup(1) and `&` have it ignored
    if is_heard:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the middle of an import it would be a traceback
    from control.cli.main import run as go_on

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    go_on()
