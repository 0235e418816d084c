"""Logging in at a console (floor 4)."""

from __future__ import annotations

import re
import time

from control.errors import ConsoleError, WaitTimeout
from control.session.engine import EOF, READ_BYTES, TIMEOUT, Engine
from control.session.shell import LOGIN_PROMPT, Shell

QUIET_S = 0.3
"""A prompt is one when nothing comes behind it for so long."""

NUDGE_S = 3.0
"""A prompt that a message has pushed away is drawn again at Enter; not sooner, getty may only be starting."""

SHELL_WAIT_S = 5.0
SEEN = 2000

_PASSWORD = re.compile(r"(?:password|passphrase|passwort|kennwort|mot de passe)[^\n]{0,60}:\s*\Z", re.I)
_REFUSED = re.compile(
    r"login incorrect|incorrect (?:login|password)|authentication failure|access denied|permission denied"
    r"|account (?:is |has )?(?:locked|expired|disabled)|too many",
    re.I,
)
_PROMPT = re.compile(r"[^\s\n][^\n]*\Z")
_KERNEL_LINES = re.compile(r"\[ {0,4}\d+\.\d{6}\] [^\n]*\n")


class _Screen:
    """What came since something was typed."""

    def __init__(self, engine: Engine, deadline: float) -> None:
        self._engine = engine
        self._deadline = deadline
        self._text = engine.last_line()
        engine.take_rest()

    def type(self, text: str) -> None:
        self._text = ""
        self._engine.send(text)

    def wait_until_quiet(self, most_s: float = float("inf")) -> str:
        """Return what is there once nothing comes for a moment, the kernel's messages left out."""
        until = min(time.monotonic() + most_s, self._deadline)
        while (left := until - time.monotonic()) > 0:
            try:
                piece = self._engine.read_nonblocking(READ_BYTES, min(QUIET_S, left))
            except TIMEOUT:
                break
            except EOF as error:
                raise self._engine.build_end(error) from None
            self._text = (self._text + piece)[-SEEN:]
        return _KERNEL_LINES.sub("", self._text)


def log_in(engine: Engine, shell: Shell, user: str, password: str, within_s: float) -> None:
    """Log in; see `Session.login`."""
    deadline = time.monotonic() + within_s
    screen = _Screen(engine, deadline)
    _wait_for_prompt(engine, screen, deadline, within_s)
    screen.type(user + "\r")
    asked = False
    heard = time.monotonic()
    while time.monotonic() < deadline:
        seen = screen.wait_until_quiet()
        if _REFUSED.search(seen) or (asked and LOGIN_PROMPT.search(seen)):
            raise ConsoleError(f"the login of {user} was refused", seen=engine.seen())
        if LOGIN_PROMPT.search(seen):
            screen.type(user + "\r")  # getty had not been ready for it
        elif _PASSWORD.search(seen):
            if asked:
                raise ConsoleError(f"the login of {user} was refused", seen=engine.seen())
            asked = True
            screen.type(password + "\r")
        elif (asked or "\n" in seen) and _PROMPT.search(seen.rstrip(" ")):
            try:
                shell.meet(min(SHELL_WAIT_S, max(0.1, deadline - time.monotonic())))
            except WaitTimeout:
                screen = _Screen(engine, deadline)
                continue
            return
        elif not asked and time.monotonic() - heard > NUDGE_S:
            screen.type("\r")
        else:
            continue
        heard = time.monotonic()
    raise WaitTimeout(f"a shell of {user}" if asked else "a question for the password, or a shell", within_s,
                      last_seen=engine.seen())  # fmt: skip


def _wait_for_prompt(engine: Engine, screen: _Screen, deadline: float, within_s: float) -> None:
    nudged = time.monotonic()
    while not LOGIN_PROMPT.search(screen.wait_until_quiet()):
        if time.monotonic() >= deadline:
            raise WaitTimeout("a login prompt", within_s, last_seen=engine.seen())
        if time.monotonic() - nudged > NUDGE_S:
            nudged = time.monotonic()
            screen.type("\r")
