"""`unhinged cast`, `replay` (floor 6): what a console said and when, for asciinema and for this terminal.

Both read the files of the VM, whether or not it runs.
"""

from __future__ import annotations

import codecs
import contextlib
import locale
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from control.cli.desk import Desk
from control.console.cast import Recording, build_cast, open_recording, read_untimed
from control.console.questions import QuestionFilter
from control.console.sink import TIDY_UP
from control.descriptors import write_all
from control.errors import ConfigError, HostError, StateError
from control.paths import InstanceFiles
from control.vm.reach import look

SHOWN_MAX_BYTES = 16 << 20
"""What `--json` shows of a recording; a longer one goes into a file."""

MARKS_MAX = 10_000

_PIECE_BYTES = 64 * 1024
_TYPED_BYTES = 4096

_ENDS = (signal.SIGTERM, signal.SIGHUP)


def cast(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    console, log, times = _find_files(desk, name)
    try:
        recording = open_recording(log, times)
    except FileNotFoundError:
        raise StateError(
            f"{name} has no recording of {console}: there are no times to its log",
            state="DEFINED",
            required=("STARTING",),
            hint=f"it was started by an older version: start it anew; its log itself: unhinged logs {name}",
        ) from None
    with recording:
        place = recording.find_mark(options.mark) if options.mark is not None else None
        lines = build_cast(recording, f"{name}: {console}", place)
        if options.file != "-":
            written = _write_file(Path(options.file), lines)
        elif desk.is_json:
            _show_cast(desk, name, console, recording, lines)
            return 0
        else:
            for line in lines:
                sys.stdout.write(line)
            return 0
        desk.show(
            _describe(name, console, recording, file=options.file, size=written), f"{options.file}: {written} bytes"
        )
    return 0


def replay(desk: Desk) -> int:
    options = desk.options
    if desk.is_json:
        raise ConfigError("a replay has no document", key="--json", hint=f"unhinged cast {options.name} --json")
    name = desk.check_name(options.name)
    _, log, times = _find_files(desk, name)
    with contextlib.ExitStack() as stack:
        start = 0.0
        try:
            recording = stack.enter_context(open_recording(log, times))
        except FileNotFoundError:
            if options.mark is not None:
                raise ConfigError(f"{name} has no recording, and so no markers", key="--from") from None
            desk.note(f"{name} has no recording: it was started by an older version; all of its log is shown at once")
            pieces: Iterator[tuple[float, bytes]] = ((0.0, piece) for piece in read_untimed(log))
        else:
            place = recording.find_mark(options.mark) if options.mark is not None else recording.beginning
            start, pieces = place.time, recording.replay(place)
        player = stack.enter_context(_open_player())
        return player.play(_pace(pieces, start, speed=options.speed, idle_limit_s=options.idle_limit))


def _find_files(desk: Desk, name: str) -> tuple[str, Path, Path]:
    """Find the console that is asked for, its log, and where its times are, if there are any."""
    files = look(desk.runtime, name).files
    console = desk.options.console or ("console" if desk.is_held(name) else "ttyS0")
    log = files.console_logs[console]
    if not log.exists():
        raise StateError(
            f"{name} has said nothing on {console}: it was never started",
            state="DEFINED",
            required=("STARTING",),
            hint=f"unhinged start {name}",
        )
    return console, log, InstanceFiles.times_of(log)


def _describe(name: str, console: str, recording: Recording, **more: object) -> dict[str, object]:
    marks = [{"time": place.time, "label": label} for label, place in recording.marks()]
    return {
        "name": name,
        "console": console,
        "columns": recording.columns,
        "rows": recording.rows,
        "started_at": recording.started_at,
        "marks": marks[:MARKS_MAX],
        **more,
    }


def _show_cast(desk: Desk, name: str, console: str, recording: Recording, lines: Iterator[str]) -> None:
    kept, size = [], 0
    for line in lines:
        kept.append(line)
        size += len(line)
        if size > SHOWN_MAX_BYTES:
            raise ConfigError(
                "the recording is too long for a document", key="FILE", hint=f"unhinged cast {name} FILE.cast"
            )
    desk.show(_describe(name, console, recording, cast="".join(kept), size=size))


def _write_file(path: Path, lines: Iterator[str]) -> int:
    """Write the lines into the file in one step, and return how long it is.

    Raises:
        HostError: It cannot be written; what was there before is as it was.
    """
    is_special = path.exists() and not path.is_file()  # a pipe, a terminal: it takes what comes
    temporary = path if is_special else path.with_name(f".{path.name}.{os.getpid()}")
    size = 0
    try:
        try:
            mode = os.O_WRONLY | os.O_CLOEXEC | (0 if is_special else os.O_CREAT | os.O_EXCL)
            with open(os.open(temporary, mode, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                for line in lines:
                    size += file.write(line)
            if not is_special:
                temporary.replace(path)
        except BaseException:
            if not is_special:
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise HostError(
            f"{path} cannot be written: {error.strerror}", hint="name a file in a folder of yours"
        ) from error
    return size


def _pace(
    pieces: Iterator[tuple[float, bytes]], start: float, *, speed: float, idle_limit_s: float | None
) -> Iterator[tuple[float, bytes]]:
    """Say when each piece is to be shown, in seconds from the beginning of the replay."""
    shown = 0.0
    before = start
    for at, data in pieces:
        silence = max(0.0, at - before)
        if idle_limit_s is not None:
            silence = min(silence, idle_limit_s)
        shown += silence / speed if speed else 0.0
        before = max(before, at)
        yield shown, data


class _Player:
    """Plays on stdout; on a terminal, `q` typed on it ends the replay."""

    def __init__(self, *, has_keys: bool, show: Callable[[bytes], bytes]) -> None:
        self._has_keys = has_keys
        self._show = show

    def play(self, pieces: Iterator[tuple[float, bytes]]) -> int:
        began = time.monotonic()
        for at, data in pieces:
            if self._wait_until(began + at):
                return 0
            for begin in range(0, len(data), _PIECE_BYTES):
                write_all(1, self._show(data[begin : begin + _PIECE_BYTES]))
                if self._has_keys and self._wait_until(0.0):
                    return 0
        return 0

    def _wait_until(self, when: float) -> bool:
        """Return then, False, or as soon as `q` is typed, True."""
        while True:
            left = max(0.0, when - time.monotonic())
            if not select.select([0] if self._has_keys else [], [], [], left)[0]:
                return False
            try:
                typed = os.read(0, _TYPED_BYTES)
            except OSError:
                typed = b""  # the terminal has gone
            if b"q" in typed or b"\x03" in typed:
                return True
            self._has_keys = bool(typed)


@contextlib.contextmanager
def _open_player() -> Iterator[_Player]:
    """Prepare the terminal for a replay, and leave it tidy in whatever way the body is left.

    On a terminal nothing that it would answer is shown: the answer would be typed into the user's shell. What goes
    elsewhere is the console byte for byte.
    """
    if not os.isatty(1):
        yield _Player(has_keys=False, show=lambda data: data)
        return
    questions = QuestionFilter(is_utf8=codecs.lookup(locale.getpreferredencoding()).name == "utf-8")
    has_keys = os.isatty(0)
    with _ending_in_order(), _reading_keys() if has_keys else contextlib.nullcontext():
        try:
            yield _Player(has_keys=has_keys, show=questions.feed)
        finally:
            with contextlib.suppress(OSError):  # a terminal that was hung up
                write_all(1, TIDY_UP)


@contextlib.contextmanager
def _reading_keys() -> Iterator[None]:
    before = termios.tcgetattr(0)
    tty.setcbreak(0)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):  # a terminal that was hung up
            # With what was typed and not read: it was meant for the replay, not for the shell behind it.
            termios.tcsetattr(0, termios.TCSAFLUSH, before)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let a signal that ends us unwind what was done to the terminal first."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
