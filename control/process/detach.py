"""Starts a program that is to outlive us (floor 2); `control.vm.reach` starts supervisors with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from control.errors import HostError

LOG_LIMIT_BYTES = 1024 * 1024
"""A log of a program that is started again and again begins anew beyond it."""


def start_detached(argv: Sequence[str], *, stdin: bytes, log: Path, cwd: Path, keep: Sequence[int]) -> None:
    """Start `argv` in a session of its own, with its output at the end of `log`, and let go of it.

    The program forks at once, and its first half ends, so that it is nobody's child.

    Args:
        stdin: What it is given to read; it must not fill a pipe (64 KiB, pipe(7)) before the program reads it.
        keep: Descriptors it inherits.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    try:
        mode = "ab" if not log.exists() or log.stat().st_size < LOG_LIMIT_BYTES else "wb"
        with log.open(mode) as sink:
            os.fchmod(sink.fileno(), 0o600)
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                pass_fds=keep,
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror or error}", hint="make doctor") from error
    child.communicate(stdin)
