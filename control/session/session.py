"""A session: a console as a script drives it (floor 4). Every wait has a deadline and says what it last saw."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from control.console.escape import ESCAPE_KEY
from control.errors import ConfigError, ConsoleError, WaitTimeout
from control.session.engine import EOF, TIMEOUT, Engine, ExpectTimeout
from control.session.login import log_in
from control.session.seat import Seat
from control.session.shell import Done, Shell
from control.vm.attached import Attached

TIMEOUT_S = 30.0
"""What a wait lasts at most when nothing else is said; pexpect has the same."""

LINE_END = "\n"
"""What ends a line that is typed. The Enter key sends `\r`, which a tty makes a line feed of (ICRNL, termios(3)), but
not while an editor or a shell's line editing has it; a line feed is one at all times, also when it is typed ahead."""

_CONTROLS = {letter: code for code, letter in enumerate("@abcdefghijklmnopqrstuvwxyz[\\]^_")} | {"?": 127}
"""The control characters by the key that types them with Ctrl (ASCII)."""

Text = str | type[EOF] | type[TIMEOUT]
Pattern = Text | re.Pattern[str]


class Session:
    """One console, driven by a script; made by `open_session`. Use it as a context manager. Not thread-safe.

    Text comes as str: UTF-8, what is invalid in it as U+FFFD, and, unless the session is raw, without escape sequences.
    Lines end as the console ends them, mostly with `\\r\\n`.

    Attributes:
        before, after, match, match_index: What the last `expect` has found, as pexpect has them.
        timeout: Seconds that a wait lasts when it is not told otherwise.
    """

    def __init__(self, attached: Seat, *, timeout: float = TIMEOUT_S, plain: bool = True) -> None:
        self._attached = attached
        self._engine = Engine(attached, timeout=timeout, plain=plain)
        self._shell = Shell(self._engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; the console goes on. A second time there is nothing left to do."""
        self._attached.close()

    detach = close

    @property
    def is_closed(self) -> bool:
        return self._attached.is_closed

    @property
    def console(self) -> str:
        """The console's name."""
        return self._attached.console

    @property
    def timeout(self) -> float:
        return float(self._engine.timeout or 0.0)

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._engine.timeout = seconds

    @property
    def before(self) -> str:
        return str(self._engine.before or "")

    @property
    def after(self) -> Any:
        return self._engine.after

    @property
    def match(self) -> Any:
        return self._engine.match

    @property
    def match_index(self) -> int | None:
        return self._engine.match_index

    @property
    def logfile(self) -> Any:
        """Where what is read is written too, with `write` and `flush`; None for nowhere."""
        return self._engine.logfile_read

    @logfile.setter
    def logfile(self, file: Any) -> None:
        self._engine.logfile_read = file

    # -- typing ----------------------------------------------------------------------------------------------------

    def send(self, text: str | bytes) -> int:
        """Type `text` as it is; returns how many bytes that was.

        Raises:
            ConsoleError: Somebody else has the keyboard, the console has ended, or the session is closed.
            WaitTimeout: The guest does not read what is typed.
        """
        return self._engine.send(text)

    def sendline(self, text: str = "") -> int:
        """Type `text` and a line feed; firmware and menus may want `send("\\r")`, the Enter key. Raises as `send`."""
        return self.send(text + LINE_END)

    def sendcontrol(self, letter: str) -> int:
        """Type Ctrl and a letter, or one of `@ [ \\ ] ^ _ ?`: `sendcontrol("c")` is Ctrl-C. Raises as `send`."""
        code = _CONTROLS.get(letter.lower())
        if code is None:
            raise ConfigError(f"there is no Ctrl-{letter}", key="control", hint="a letter, or one of @ [ \\ ] ^ _ ?")
        return self.send(bytes([code]))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the guest that its terminal has this size; 0 by 0 tells nothing."""
        self._attached.resize(rows, columns)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, *, timeout: float = 0.0) -> str:
        """Return what came since and was matched by nothing; waits at most `timeout` seconds for something.

        Raises:
            SessionEnded: Nothing more will come.
        """
        text = self._engine.take_rest()
        within_s = 0.0 if text else timeout
        while True:
            try:
                text += self._engine.read_nonblocking(1 << 16, within_s)
            except TIMEOUT:
                return text
            except EOF as error:
                if text:
                    return text
                raise self._engine.build_end(error) from None
            within_s = 0.0

    def expect(
        self, pattern: Pattern | Sequence[Pattern], *, timeout: float | None = None, searchwindowsize: int = -1
    ) -> int:
        """Read until one of the patterns is there, and return its place among them; 0 for a single one.

        Args:
            pattern: Regular expressions (`.` matches a line end, too), and `EOF` and `TIMEOUT` for when these are no
                errors. Of several that match, the one that begins first counts.
            timeout: Seconds; the session's when not given.

        Raises:
            ExpectTimeout: None came in time; what came stays for the next `expect`. It is pexpect's TIMEOUT, too.
            SessionEnded: The console ended before one came. It is pexpect's EOF, too.
            ConsoleError: The session is closed, or a pattern is no regular expression.
        """
        patterns: list[Any] = [pattern] if isinstance(pattern, str | re.Pattern | type) else list(pattern)
        try:
            compiled = self._engine.compile_pattern_list(patterns)
        except re.error as error:
            raise ConfigError(f"this is no regular expression: {error}", key="pattern") from error
        return self._find(
            lambda within_s: self._engine.expect_list(compiled, timeout=within_s, searchwindowsize=searchwindowsize),
            patterns, timeout,
        )  # fmt: skip

    def expect_exact(self, text: Text | Sequence[Text], *, timeout: float | None = None) -> int:
        """As `expect`, with texts that are no patterns."""
        texts: list[Any] = [text] if isinstance(text, str | type) else list(text)
        return self._find(
            lambda within_s: self._engine.expect_exact(texts, timeout=within_s, searchwindowsize=-1), texts, timeout
        )

    def run(self, command: str, *, timeout: float | None = None) -> Done:
        """Type a command at a shell's prompt, and return what it wrote and its exit code.

        The shell is a POSIX one (dash, bash, BusyBox, zsh). What it does to the shell lasts: `cd`, variables. The
        prompt does not matter, nor do echo, colours, bracketed paste, wrapped lines, or messages of the kernel, which
        are taken out of the output.

        Raises:
            CommandTimeout: It did not end in time, and Ctrl-C was typed; holds what it wrote until then.
            WaitTimeout: No shell answered.
            SessionEnded: The console ended.
        """
        with self._engine.unlogged():
            done = self._shell.run(command, self.timeout if timeout is None else timeout)
        # Whoever looks on, or at an error, sees the command, and not what was typed around it.
        shown = f"$ {command}\n{done.output}"
        self._engine.remember(shown)
        if self.logfile is not None:
            self.logfile.write(shown)
            self.logfile.flush()
        return done

    def login(self, user: str, password: str = "", *, timeout: float | None = None) -> None:
        """Log in at a login prompt, until a shell answers.

        Raises:
            ConsoleError: The login was refused.
            WaitTimeout: There is no login prompt, or no shell afterwards; holds what was seen last.
            SessionEnded: The console ended.
        """
        log_in(self._engine, self._shell, user, password, self.timeout if timeout is None else timeout)

    def interact(self, *, escape: bytes = bytes([ESCAPE_KEY])) -> None:
        """Give the console to whoever sits at our terminal, until they type `escape` (Ctrl-]) or it ends.

        What was read and not matched is shown first. Without a terminal on stdin nothing is typed, and it is shown to
        its end.
        """
        from control.session.interact import interact

        interact(self._attached, self._engine.take_rest(), escape)

    def last_lines(self) -> tuple[str, ...]:
        """Return the last lines that came, as an error would show them."""
        return self._engine.seen()

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def _find(self, find: Any, patterns: Sequence[Any], timeout: float | None) -> int:
        within_s = self.timeout if timeout is None else timeout
        try:
            return int(find(within_s))
        except TIMEOUT:
            what = " or ".join(repr(each.pattern if isinstance(each, re.Pattern) else each) for each in patterns)
            raise ExpectTimeout(what[:400], within_s, last_seen=self._engine.seen()) from None
        except EOF as error:
            raise self._engine.build_end(error) from None


@contextlib.contextmanager
def open_session(
    name: str,
    *,
    console: str = "",
    config: str | os.PathLike[str] | None = None,
    mode: Literal["write", "steal", "read"] = "write",
    since: Literal["prompt", "start", "now"] = "prompt",
    timeout: float = TIMEOUT_S,
    raw: bool = False,
) -> Iterator[Session]:
    """A session at a console of the running machine `name`, for the body.

    Args:
        console: `ttyS0`, `hvc0` or `shell`; empty for the machine's first.
        config: The configuration file, or the directory in which the command `unhinged` would find it; the current one
            when not given.
        mode: `write` waits for the keyboard as long as somebody else has it, `steal` takes it, `read` only reads.
        since: What was said before counts as well: `prompt` is the last line, where a prompt stands that was there
            before us; `start` is all of it; `now` is nothing.
        timeout: Seconds each wait lasts, if it is not told otherwise; the one for the keyboard, too.
        raw: Leave escape sequences in what is read.

    Raises:
        ConfigError: There is no such machine, or no configuration.
        StateError, RemoteError: It does not run, or has no such console.
        WaitTimeout: The keyboard stayed with somebody else, or the supervisor did not answer.
    """
    with attach_to_vm(
        name, console=console, config=config, mode=mode, since=since, timeout=timeout, raw=raw
    ) as session:
        yield session


def attach_to_vm(
    name: str,
    *,
    console: str = "",
    config: str | os.PathLike[str] | None = None,
    mode: Literal["write", "steal", "read"] = "write",
    since: Literal["prompt", "start", "now"] = "prompt",
    timeout: float = TIMEOUT_S,
    raw: bool = False,
) -> Session:
    """Return a session that is open until `detach_vm`; otherwise as `open_session`."""
    from control.session.configuration import find_configuration

    runtime = find_configuration(config).runtime
    return attach_at(runtime, name, console=console, mode=mode, since=since, timeout=timeout, raw=raw)


def attach_at(
    runtime: Path,
    name: str,
    *,
    console: str = "",
    mode: Literal["write", "steal", "read"] = "write",
    since: Literal["prompt", "start", "now"] = "prompt",
    timeout: float = TIMEOUT_S,
    raw: bool = False,
) -> Session:
    """As `attach_to_vm`, for a machine that belongs to no configuration."""
    from control.vm.reach import connect

    start = {"prompt": None, "start": 0, "now": None}[since]
    attached = Attached(
        lambda: connect(runtime, name), console=console, mode=mode, who=f"a script (pid {os.getpid()})", start=start
    )
    try:
        if since == "prompt":
            attached.begin_at_the_last_line()
        if mode != "read":
            _wait_for_turn(attached, timeout)
    except BaseException:
        attached.close()
        raise
    return Session(attached, timeout=timeout, plain=not raw)


def detach_vm(session: Session) -> None:
    """Leave a session; its console goes on. Twice is once."""
    session.close()


def send_input(session: Session, text: str | bytes) -> int:
    """Type `text` as it is; see `Session.send`."""
    return session.send(text)


def read_output(session: Session, *, timeout: float = 0.0) -> str:
    """Return what came since the last time; see `Session.read`."""
    return session.read(timeout=timeout)


def _wait_for_turn(attached: Attached, timeout: float) -> None:
    started = time.monotonic()
    try:
        attached.wait_for_turn(timeout)
    except WaitTimeout as error:
        waited = time.monotonic() - started
        hint = 'mode="steal" takes it, mode="read" only reads'
        raise WaitTimeout(error.waited_for, waited, last_seen=(), hint=hint) from None
    except ConsoleError:
        if not attached.how:
            raise
