"""A child of ours on a terminal of its own (floor 2), for as long as we live; `pty_holder` is for longer."""

from __future__ import annotations

import os
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from control.errors import HostError

_OFLAG, _LFLAG = 1, 3
"""Where they are in what tcgetattr gives (termios)."""


@dataclass
class PtyChild:
    """A program and its terminal. When we end, however we do, the terminal goes, and SIGHUP ends the program.

    Attributes:
        master: Our end of the terminal; non-blocking.
        path: Of the program's end.
    """

    process: subprocess.Popen[bytes]
    master: int
    path: str

    def set_terminal(self, *, is_cooked: bool) -> None:
        """Let what is typed be echoed and line ends be a terminal's; or let all bytes pass. No key is a signal."""
        set_terminal(self.master, is_cooked=is_cooked)

    def forget_typed(self) -> None:
        """Drop what was typed and not read yet."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            termios.tcflush(descriptor, termios.TCIFLUSH)
        finally:
            os.close(descriptor)

    def end(self) -> int:
        """Kill it, unless it has ended; return its exit code, negative for a signal."""
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        return code


def set_terminal(descriptor: int, *, is_cooked: bool) -> None:
    """Set a terminal as `PtyChild.set_terminal` says."""
    attributes = termios.tcgetattr(descriptor)
    attributes[_LFLAG] &= ~(termios.ISIG | termios.ECHO | termios.ECHOCTL)
    attributes[_LFLAG] |= termios.ICANON
    attributes[_OFLAG] &= ~termios.OPOST
    if is_cooked:
        attributes[_LFLAG] |= termios.ECHO | termios.ECHOE | termios.ECHOK
        attributes[_OFLAG] |= termios.OPOST | termios.ONLCR
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)


_HEARS_HANGUP = ("env", "--default-signal=HUP")
"""What was started by nohup(1) ignores SIGHUP, and so would all that it starts: nothing would end the program."""


def start_on_terminal(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, give: Sequence[int] = ()
) -> PtyChild:
    """Start `argv` on a new terminal, in a session of its own.

    Args:
        give: Descriptors that it gets under the same numbers; they stay ours to close.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        set_terminal(slave, is_cooked=False)
        os.set_blocking(master, False)
        # setsid(1) makes the terminal the one that controls the program; what Python could do for that between fork and
        # exec is not safe beside threads.
        process = subprocess.Popen(
            ["setsid", "--ctty", *_HEARS_HANGUP, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env=env,
            pass_fds=tuple(give),
        )
    except OSError as error:
        os.close(master)
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}") from error
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return PtyChild(process, master, path)
