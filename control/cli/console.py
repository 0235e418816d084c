"""`unhinged console` (floor 6): be at a console, with a terminal, or with a script's pipes."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from control.cli.desk import Desk, printable, read_pattern
from control.console.escape import ESCAPE_KEY, split_at_escape
from control.console.questions import QuestionFilter
from control.console.search import PlainText, StreamSearch
from control.console.sink import TIDY_UP
from control.console.tail import ConsoleTail, to_plain_text
from control.descriptors import is_open, write_all
from control.errors import EXIT_OK, ConfigError, ConsoleError, WaitTimeout
from control.paths import InstanceFiles
from control.vm.attached import PIECE_BYTES, Attached
from control.vm.reach import connect, look

HISTORY_BYTES = 64 * 1024
"""What is shown of the time before somebody came, when they say nothing else."""

CALM_S = 1.0
"""A script whose stdin is at its end has heard the console out once it was silent for so long."""

KEPT_BYTES = 16 * 1024 * 1024
"""What `--json` keeps of what the console said; and how much of it `--until` looks back over is a 256th of that."""

KEYS_BYTES = 4 * 1024 * 1024
"""What is kept, here, of keys that the guest does not read; the escape key must be found behind them."""

TURN_WAIT_S = 30.0
PROMPT = "unhinged> "
HELP = """\
  detach, quit   leave the console; the VM runs on
  steal          take the keyboard from whoever has it
  release        leave the keyboard to others, and only read
  status, exec, put, get, monitor, qmp, send, screenshot, forward, line,
  pause, resume, stop, kill
                 as `unhinged` has them, without the VM's name: exec uname -a
  (empty line)   back to the console; Ctrl-] there types one
"""
_COMMANDS = ("status", "exec", "put", "get", "monitor", "qmp", "send", "screenshot", "forward", "line", "pause",
             "resume", "stop", "kill")  # fmt: skip

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?")
_UNIT_S = {None: 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def console(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    until, wanted = read_pattern(options.until, "--until"), read_pattern(options.grep, "--grep")
    has_terminal = os.isatty(0) and os.isatty(1) and not desk.is_json and wanted is None
    mode: Any = "read" if options.read_only or wanted is not None else "steal" if options.steal else "write"
    who = f"{_find_user()} at {_find_terminal()} (pid {os.getpid()})"

    def open_connection() -> Any:
        return connect(desk.runtime, name)

    start = _find_start(desk, name)
    with Attached(open_connection, console=options.console, mode=mode, who=who, start=start) as attached:
        if start is not None and start < 0:
            _begin_at_a_line(attached)
        if has_terminal:
            return _Person(desk, name, attached, until).stay()
        return _Script(desk, name, attached, until, wanted).stay()


# -- where to begin ------------------------------------------------------------------------------------------------


def _find_start(desk: Desk, name: str) -> int | None:
    options = desk.options
    if options.no_history:
        return None
    if options.since is None:
        return -HISTORY_BYTES
    if options.since == "start":
        return 0
    from control.console.cast import open_recording

    files = look(desk.runtime, name).files
    log = files.console_logs.get(options.console or "ttyS0")
    if log is None or not (times := InstanceFiles.times_of(log)).exists():
        raise ConfigError("this console has no recording that would tell when it said what", key="--since")
    with open_recording(log, times) as recording:
        duration = _DURATION.fullmatch(options.since)
        if duration is None:
            return recording.find_mark(options.since).offset
        ago_s = float(duration[1]) * _UNIT_S[duration[2]]
        return recording.find_time(time.time() - ago_s - recording.started_at).offset


def _begin_at_a_line(attached: Attached) -> None:
    """Leave out the half line with which the end of a long history begins."""
    if attached.position:
        position = attached.position
        piece = attached.read(4096)
        attached.position = position + piece.find(b"\n") + 1


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id that has no name
        return f"uid {os.getuid()}"


def _find_terminal() -> str:
    try:
        return os.ttyname(0).removeprefix("/dev/")
    except OSError:
        return "a script"


# -- what both do ----------------------------------------------------------------------------------------------------


class _Visit:
    """Somebody at a console."""

    def __init__(self, desk: Desk, name: str, attached: Attached, until: re.Pattern[str] | None) -> None:
        self._desk = desk
        self._name = name
        self._attached = attached
        self._until = StreamSearch(until) if until is not None else None
        self._text = PlainText()
        self._seen = ConsoleTail()
        timeout_s = desk.options.timeout
        self._timeout_s: float | None = timeout_s
        self._deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        self._noted = 0

    def _read(self) -> bytes:
        self._attached.attend()
        data = self._attached.read()
        self._seen.feed(data)
        if self._until is not None:
            self._until.feed(self._text.feed(data))
        for note in self._attached.notes[self._noted :]:
            self._say(note)
        self._noted = len(self._attached.notes)
        return data

    def _is_satisfied(self) -> bool:
        return self._until is not None and self._until.is_found

    def _check_deadline(self, waited_for: str) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise WaitTimeout(waited_for, self._timeout_s or 0.0, last_seen=self._seen.lines(8))

    def _left_s(self, most: float) -> float:
        return most if self._deadline is None else min(most, max(0.01, self._deadline - time.monotonic()))

    def _say(self, text: str) -> None:
        self._desk.note(text)


# -- a person --------------------------------------------------------------------------------------------------------


class _Person(_Visit):
    """Keys from the terminal to the console, and Ctrl-] to our prompt."""

    def __init__(self, desk: Desk, name: str, attached: Attached, until: re.Pattern[str] | None) -> None:
        super().__init__(desk, name, attached, until)
        self._filter = QuestionFilter()
        self._history_end = attached.log.stat().st_size
        self._told = ""
        self._has_left = False
        self._typed = bytearray()

    def stay(self) -> int:
        from control.process.terminal import Terminal

        self._desk.note(f"{self._attached.console} of {self._name}; Ctrl-] opens a prompt (help, detach, steal, …)")
        self._terminal = Terminal(0, bytes([ESCAPE_KEY, 0x03]), raw_output=True)
        with _woken_by_signals() as waker, self._terminal.taken(tidy=TIDY_UP):
            try:
                self._tell_size()
                self._stay(waker)
            finally:
                self._leave_tidy()
        how = "detached" if self._has_left else self._attached.how
        self._desk.note(f"{self._name}: {how}" if how else f"{self._name}: the pattern was seen")
        return EXIT_OK

    def _stay(self, waker: int) -> None:
        while not self._has_left:
            data = self._read()
            self._tell_turn()
            if data:
                write_all(1, self._pass(data))
                if self._is_satisfied():
                    return
            elif self._attached.is_over:
                return
            self._check_deadline("the pattern")
            self._type_on()
            ready = self._attached.wait(self._left_s(3600.0), waker, 0)
            if waker in ready:
                os.read(waker, 4096)
                self._tell_size()
            if 0 in ready:
                self._take_keys(self._read_keys())

    def _pass(self, data: bytes) -> bytes:
        """What of it is shown: questions only go to the terminal of whoever can answer them, and only new ones."""
        types = self._attached.turn == "yours" and self._attached.position > self._history_end
        shown = self._filter.feed(data)
        if types:
            self._filter = QuestionFilter()
            return data
        return shown

    def _read_keys(self) -> bytes:
        try:
            data = os.read(0, PIECE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._has_left = True  # the terminal is gone
        return data

    def _take_keys(self, data: bytes) -> None:
        keys, after = split_at_escape(data)
        if keys:
            self._type(keys)
        if after is None:
            return
        if after[:1] == bytes([ESCAPE_KEY]):
            self._type(bytes([ESCAPE_KEY]))
            self._take_keys(after[1:])
            return
        self._open_prompt(after)

    def _type(self, keys: bytes) -> None:
        if self._attached.turn != "yours":
            if self._desk.options.read_only:
                self._show("[you only read; Ctrl-] opens a prompt]")
            else:
                self._show(f"[the keyboard is with {self._attached.holder or 'nobody'}; Ctrl-] and `steal` take it]")
            return
        if len(self._typed) + len(keys) > KEYS_BYTES:
            self._show(f"[the guest does not read; the last {len(keys)} bytes are not typed]")
            return
        self._typed += keys
        self._type_on()

    def _type_on(self) -> None:
        """Type what waits, as far as the guest reads; the escape key must work when it does not."""
        while self._typed and self._attached.can_type_at_once and self._attached.turn == "yours":
            piece = bytes(self._typed[:PIECE_BYTES])
            del self._typed[: len(piece)]
            try:
                self._attached.type(piece)
            except ConsoleError as error:
                self._typed.clear()
                self._show(f"[{error}]")

    # -- the prompt ------------------------------------------------------------------------------------------------

    def _open_prompt(self, pasted: bytes) -> None:
        """Read commands until an empty line. Keys pasted behind the escape key are the first command's."""
        self._terminal.enter_line_mode()
        try:
            write_all(1, b"\n" + PROMPT.encode())
            line = pasted.replace(b"\r", b"\n") or self._read_keys()
            if line == bytes([ESCAPE_KEY]):
                self._type(line)
                return
            while (text := line.decode("utf-8", "replace").strip()) and not _is_given_up(line):
                self._do(text)
                if self._has_left:
                    return
                write_all(1, PROMPT.encode())
                line = self._read_keys()
        finally:
            self._terminal.enter_raw_mode()
            write_all(1, b"\r\n")

    def _do(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        match word:
            case "detach" | "quit" | "exit" | "q" | "d":
                self._has_left = True
            case "steal":
                self._attached.steal()
                self._attached.wait_for_turn(TURN_WAIT_S)
                self._told = ""
            case "release":
                self._attached.release()
            case _ if word in _COMMANDS:
                self._run(word, rest)
            case _:
                write_all(1, HELP.encode())

    def _run(self, word: str, rest: str) -> None:
        import shlex

        from control.cli.main import main

        try:
            words = shlex.split(rest)
        except ValueError as error:
            write_all(1, f"{error}\n".encode())
            return
        dashes = ["--"] if word == "exec" and "--" not in words else []
        options = ["--config", self._desk.options.config] if self._desk.options.config else []
        self._terminal.restore()  # a program that is interrupted needs its signals
        try:
            code = main([*options, word, self._name, *dashes, *words])
            sys.stdout.flush()
        finally:
            self._terminal.enter_line_mode()
        if code:
            write_all(1, f"[exit code {code}]\n".encode())

    # -- the screen ------------------------------------------------------------------------------------------------

    def _tell_turn(self) -> None:
        """Say so when we can no longer type, and when we can again."""
        turn, holder = self._attached.turn, self._attached.holder
        if self._desk.options.read_only and turn == "reading":
            return
        told = {
            "waiting": f"[the keyboard is with {holder}; you read, and Ctrl-] `steal` takes it]",
            "lost": f"[{holder} has taken the keyboard; Ctrl-] `steal` takes it back]",
            "reading": "[you only read; Ctrl-] `steal` takes the keyboard]",
            "yours": "[the keyboard is yours]" if self._told else "",
        }[turn]
        if told and told != self._told:
            self._show(told)
        self._told = told if turn != "yours" else ""

    def _tell_size(self) -> None:
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(1)
            self._attached.resize(size.lines, size.columns)

    def _say(self, text: str) -> None:
        self._show(f"[{text}]")

    def _show(self, text: str) -> None:
        write_all(1, b"\r\n" + printable(text).encode("utf-8", "replace") + b"\r\n")

    def _leave_tidy(self) -> None:
        """Leave the terminal as a program that has ended would; what it answered is not typed into the shell."""
        import termios

        with contextlib.suppress(OSError, termios.error):
            write_all(1, TIDY_UP + b"\r\n")
            termios.tcflush(0, termios.TCIFLUSH)


def _is_given_up(line: bytes) -> bool:
    return line.endswith((b"\x03", bytes([ESCAPE_KEY])))


@contextlib.contextmanager
def _woken_by_signals() -> Iterator[int]:
    """Give what becomes readable when the terminal has another size; a signal to end is raised as one to exit."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def wake(number: int, frame: object) -> None: ...

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    handlers: dict[int, Callable[[int, object], None]] = {
        signal.SIGWINCH: wake,
        signal.SIGTERM: end,
        signal.SIGHUP: end,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, earlier in before.items():
            signal.signal(number, earlier)
        os.close(reading)
        os.close(writing)


# -- a script --------------------------------------------------------------------------------------------------------


class _Script(_Visit):
    """stdin is typed, and what the console says is written to stdout, or lines of it that match."""

    def __init__(
        self,
        desk: Desk,
        name: str,
        attached: Attached,
        until: re.Pattern[str] | None,
        wanted: re.Pattern[str] | None,
    ) -> None:
        super().__init__(desk, name, attached, until)
        self._wanted = wanted
        self._reads = not (desk.options.read_only or wanted is not None or os.isatty(0)) and is_open(0)
        self._typed = b""
        self._line = b""
        self._kept = bytearray()
        self._is_truncated = False

    def stay(self) -> int:
        if self._reads:
            self._attached.wait_for_turn(self._left_s(TURN_WAIT_S))
        found = self._stay()
        if self._line:
            self._take_line(self._line)
        how = "the pattern was seen" if found else self._attached.how or "the end of stdin"
        document = {"name": self._name, "console": self._attached.console, "how": how}
        text = bytes(self._kept).decode("utf-8", "replace")
        self._desk.show({**document, "text": text, "truncated": self._is_truncated})
        if self._until is not None and not found:
            raise ConsoleError(f"{self._name}: {how}, and the pattern was not seen", seen=self._seen.lines(8))
        return EXIT_OK

    def _stay(self) -> bool:
        had_stdin = self._reads
        while True:
            if data := self._read():
                self._take(data)
                if self._is_satisfied():
                    return True
                self._check_deadline("the pattern" if self._until is not None else "the console's end")
                continue
            if self._attached.is_over:
                return False
            self._check_deadline("the pattern" if self._until is not None else "the console's end")
            is_done = had_stdin and not self._reads and not self._typed and self._until is None
            if is_done:
                self._attached.wait_until_typed(self._left_s(TURN_WAIT_S))
            quiet_since = time.monotonic()
            self._move_stdin(self._left_s(CALM_S if is_done else 3600.0))
            if is_done and time.monotonic() - quiet_since >= CALM_S and not self._has_news():
                return False

    def _has_news(self) -> bool:
        return self._attached.log.stat().st_size > self._attached.position

    def _move_stdin(self, within_s: float) -> None:
        if self._typed and self._attached.can_type_at_once:
            self._attached.type(self._typed)
            self._typed = b""
        wants = (0,) if self._reads and not self._typed else ()
        try:
            ready = self._attached.wait(within_s, *wants)
        except PermissionError:
            ready = {0}
        if 0 in ready:
            self._typed = os.read(0, PIECE_BYTES)
            self._reads = bool(self._typed)

    def _take(self, data: bytes) -> None:
        if self._wanted is None:
            self._put_out(data)
            return
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-PIECE_BYTES:]
        for line in lines:
            self._take_line(line + b"\n")

    def _take_line(self, line: bytes) -> None:
        text = to_plain_text(line).rstrip("\n")
        if self._wanted is None or self._wanted.search(text):
            self._put_out(text.encode() + b"\n")

    def _put_out(self, data: bytes) -> None:
        if not self._desk.is_json:
            write_all(1, data)
            return
        room = KEPT_BYTES - len(self._kept)
        self._kept += data[:room]
        self._is_truncated = self._is_truncated or len(data) > room
