"""Commands typed at a shell's prompt (floor 4): where their output begins and ends, and their exit code.

A line is typed that has the shell write marks around the command's output. The marks hold a number that is new each
time and is typed in two halves, so that the echo of the line never looks like a mark, however it is wrapped. Each mark
is written twice: a message of the kernel may come in the middle of one.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from control.errors import ConfigError, ConsoleError, ExecError, WaitTimeout
from control.session.engine import EOF, READ_BYTES, TIMEOUT, Engine

OUTPUT_MAX = 16 * 1024 * 1024
"""Characters of a command's output that are kept: the last ones."""

LINE_MAX = 400
"""Characters of a command that are typed in one line. A tty takes 4095 in all (N_TTY_BUF_SIZE, Linux's n_tty.c) while
nobody reads, and the shell may show each of them more than once."""

STOP_WAIT_S = 5.0
"""How long a shell may take to be back at its prompt after Ctrl-C."""

REST_WAIT_S = 1.0
SEARCHED = 1024
CLEAR_LINE = "\x15"
"""Ctrl-U takes away what somebody has left half typed (VKILL, termios(3))."""

CLOCKS_APART_S = 0.25
"""How far the stamps of the kernel's messages (sched_clock) and /proc/uptime are apart, and then some."""

LOGIN_PROMPT = re.compile(r"(?<!last )\b(?:login|user ?name|user)\s*:\s*\Z", re.I)

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 /.,:=_-")
"""What printf and a shell's quotes leave alone."""

_KERNEL_LINE = re.compile(r"(?:<\d+>)?\[ {0,4}(\d+\.\d{6})\](?:\[ *[TC]\d+\])? [^\n]*(?:\n|\Z)")
"""A message of the kernel, as its consoles show it (CONFIG_PRINTK_TIME, CONFIG_PRINTK_CALLER)."""


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        output: What it wrote, standard output and error as they came, with `\\n` at the ends of lines.
        exit_code: 0 to 255; of one that a signal has killed, 128 and the signal's number.
        truncated: More came than is kept; `output` is the end of it.
    """

    command: str
    output: str
    exit_code: int
    truncated: bool = False

    def check(self) -> Done:
        """Return this when the exit code is 0. Raises ExecError otherwise."""
        if self.exit_code:
            raise ExecError([self.command], self.exit_code, self.output.encode(), b"")
        return self


class CommandTimeout(WaitTimeout):
    """A command took longer than it may.

    Attributes:
        output: What it wrote until then.
        stopped: Whether Ctrl-C brought the prompt back; otherwise it runs on.
    """

    def __init__(self, command: str, seconds: float, output: str, seen: tuple[str, ...], *, stopped: bool) -> None:
        hint = "" if stopped else "it did not end at Ctrl-C either, and runs on"
        super().__init__(f"the end of {command[:120]!r}", seconds, last_seen=seen, hint=hint)
        self.command = command
        self.output = output
        self.stopped = stopped


class Shell:
    """A POSIX shell at the other end of a console."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._eval = ""  # how this shell evaluates a text; known once it has answered

    def meet(self, within_s: float) -> None:
        """See that a shell answers. Raises ConsoleError for a login prompt, WaitTimeout, SessionEnded."""
        self._eval = ""
        if LOGIN_PROMPT.search(self._engine.last_line()):
            raise ConsoleError(
                "there is a login prompt, and no shell", seen=self._engine.seen(), hint="`login` logs in"
            )
        nonce = _make_nonce()
        mark = re.compile(f"~{nonce}:s(z?)~")
        with self._engine.unlogged():
            self._engine.send(f"{CLEAR_LINE} printf '~%s:s%s~' {_halve(nonce)} \"${{ZSH_VERSION:+z}}\";echo\n")
            text, _ = self._read_until(lambda recent: _find(mark, recent) is not None, within_s)
        found = _find(mark, text)
        if found is None:
            raise WaitTimeout("a shell to answer", within_s, last_seen=self._engine.seen(),
                              hint="is there a shell's prompt?")  # fmt: skip
        self._eval = "builtin eval" if found[1] else "command eval"
        self._take_rest_of_line(text, mark)

    def run(self, command: str, within_s: float) -> Done:
        """Run `command`; see `Session.run`."""
        if "\0" in command:
            raise ConfigError("a command cannot hold a NUL character", key="command")
        deadline = time.monotonic() + within_s
        if not self._eval:
            self.meet(within_s)
        nonce = _make_nonce()
        mark, word = _halve(nonce), self._type_long(command, deadline)
        # As short as it can be: the echo of each character is time, at a serial line.
        self._engine.send(
            f' _n={mark};read _t _u </proc/uptime;printf "~$_n:b${{_t-}}~~$_n:b${{_t-}}~";'
            f'{self._eval} {word};printf "~$_n:$?~~$_n:$?~\\n"\n'
        )
        end = re.compile(f"~{nonce}:(\\d{{1,3}})~")
        text, ended = self._read_until(lambda recent: _find(end, recent) is not None, deadline - time.monotonic())
        if not ended:
            output = _cut_out(text, nonce, end)[0]
            raise CommandTimeout(command, within_s, output, self._engine.seen(), stopped=self._stop())
        output, code = _cut_out(text, nonce, end)
        self._take_rest_of_line(text, end)
        return Done(command, output[-OUTPUT_MAX:], code, truncated=len(text) > OUTPUT_MAX)

    def _type_long(self, command: str, deadline: float) -> str:
        """Return a word that stands for `command` in a line; one that is long or not plain is typed in pieces first."""
        if len(command) <= LINE_MAX and command.isascii() and command.isprintable():
            return _quote(command)
        encoded = [chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in command.encode()]
        before, at = "", 0
        while at < len(encoded):
            piece = encoded[at : at + LINE_MAX // 5]
            at += len(piece)
            nonce = _make_nonce()
            self._engine.send(f" _c={before}'{''.join(piece)}';printf '~%s:p~' {_halve(nonce)};echo\n")
            before = '"$_c"'
            _, ended = self._read_until(lambda text, nonce=nonce: f"~{nonce}:p~" in text, deadline - time.monotonic())  # type: ignore[misc]
            if not ended:
                raise WaitTimeout("the shell to take a long command", 0.0, last_seen=self._engine.seen())
        return '"$(printf %b "$_c")"'

    def _read_until(self, is_there: Callable[[str], bool], within_s: float) -> tuple[str, bool]:
        """Read until `is_there` says so of what came last; return all of it, and whether it was there in time."""
        deadline = time.monotonic() + within_s
        pieces = [self._engine.take_rest()]
        recent = pieces[0]
        size = len(recent)
        while not is_there(recent):
            try:
                piece = self._engine.read_nonblocking(READ_BYTES, max(0.0, deadline - time.monotonic()))
            except TIMEOUT:
                return "".join(pieces), False
            except EOF as error:
                raise self._engine.build_end(error) from None
            pieces.append(piece)
            recent = recent[-SEARCHED:] + piece
            size += len(piece)
            while size > OUTPUT_MAX + 2 * READ_BYTES:
                # The first piece holds the mark of the beginning, which the end needs.
                size -= len(pieces.pop(1))
        return "".join(pieces), True

    def _take_rest_of_line(self, text: str, end: re.Pattern[str]) -> None:
        """Take the rest of the marks, too; what comes behind them, the prompt, is for whoever reads next."""
        found = end.search(text)
        rest = text[found.end() :] if found is not None else ""
        if "\n" not in rest:
            deadline = time.monotonic() + REST_WAIT_S
            while "\n" not in rest and time.monotonic() < deadline:
                try:
                    rest += self._engine.read_nonblocking(READ_BYTES, max(0.0, deadline - time.monotonic()))
                except (TIMEOUT, EOF):
                    break
        self._engine.put_back(rest.partition("\n")[2])

    def _stop(self) -> bool:
        """Type Ctrl-C, and say whether the prompt has come back."""
        self._eval = ""
        self._engine.send("\x03")
        try:
            self.meet(STOP_WAIT_S)
        except WaitTimeout:
            return False
        return True


def _make_nonce() -> str:
    return secrets.token_hex(4)


def _halve(nonce: str) -> str:
    """How it is typed: the shell puts it together."""
    return f"{nonce[:4]}''{nonce[4:]}"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _find(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Find a mark, also one in whose middle the kernel has said something."""
    return pattern.search(text) or pattern.search(_drop_kernel_lines(text, 0.0))


def _drop_kernel_lines(text: str, since_s: float) -> str:
    """Take out the kernel's messages since it had run for so long: earlier ones may be what a command shows."""
    return _KERNEL_LINE.sub(lambda found: "" if float(found[1]) >= since_s else found[0], text)


def _cut_out(text: str, nonce: str, end: re.Pattern[str]) -> tuple[str, int]:
    """Return the output between the marks, and the exit code; without marks what there is, and 0."""
    begin = re.compile(f"~{nonce}:b([\\d.]*)~")
    if begin.search(text) is None or end.search(text) is None:
        text = _drop_kernel_lines(text, 0.0)
    first, last = begin.search(text), end.search(text)
    output = text[first.end() if first is not None else len(text) : last.start() if last is not None else len(text)]
    if first is not None and first[1]:
        output = _drop_kernel_lines(output, float(first[1]) - CLOCKS_APART_S)
    # A second mark of the beginning, and a first of the end that was whole only without the kernel's words.
    output = end.sub("", begin.sub("", output))
    return output.replace("\r\n", "\n"), int(last[1]) if last is not None else 0
