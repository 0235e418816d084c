"""`unhinged send`, `read` and `expect` (floor 6): a console from a shell script."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from control.cli.desk import Desk, read_pattern
from control.console.search import PlainText, StreamSearch
from control.console.tail import ConsoleTail
from control.descriptors import write_all
from control.errors import EXIT_OK, ConfigError, ConsoleError, WaitTimeout
from control.vm.attached import Attached
from control.vm.reach import connect

TURN_WAIT_S = 30.0
KEPT = 16 * 1024 * 1024
"""Characters of what was read that are kept for `--json`: the last ones."""

_POSITIONS: dict[Any, int | None] = {"start": 0, "prompt": None, "now": None}

SCRIPT_MAX_BYTES = 1024 * 1024


def type_text(desk: Desk) -> int:
    """Type on a console, and, with `--until`, read what comes of it."""
    options = desk.options
    until = read_pattern(options.until, "--until")
    text = options.text + ("" if options.no_enter else "\n")
    with _attach(desk, "steal" if options.steal else "write", None) as attached:
        attached.wait_for_turn(min(TURN_WAIT_S, options.timeout))
        position = attached.position
        attached.type(text.encode(errors="surrogateescape"))
        attached.wait_until_typed(options.timeout)
        read = _Reading(desk, attached, until).read(options.timeout) if until is not None else ""
        desk.show(
            {"name": options.name, "console": attached.console, "typed": len(text), "position": position, "text": read}
        )
    return EXIT_OK


def read(desk: Desk) -> int:
    """Show what a console has said; with `--until`, wait for more."""
    options = desk.options
    until = read_pattern(options.until, "--until")
    start: Any = options.start or ("prompt" if until is not None else "start")
    with _attach(desk, "read", _POSITIONS.get(start, start)) as attached:
        if start == "prompt":
            attached.begin_at_the_last_line()
        text = _Reading(desk, attached, until).read(options.timeout)
        document = {"name": options.name, "console": attached.console, "text": text, "position": attached.position}
    desk.show(document)
    return EXIT_OK


def expect(desk: Desk) -> int:
    """Run a script at a console."""
    from control.session import open_session
    from control.session.script import play, read_script

    options = desk.options
    name = "stdin" if options.script == "-" else options.script
    steps = read_script(_read_file(options.script), name)
    said: list[str] = []
    with open_session(
        options.name,
        console=options.console,
        config=desk.location.path,
        mode="steal" if options.steal else "write",
        since=options.start,
        timeout=options.timeout,
    ) as session:
        session.logfile = None if desk.is_json or options.quiet else sys.stdout
        say = said.append if desk.is_json else lambda text: print(text, flush=True)
        play(session, steps, name, os.environ, say)
        console = session.console
    desk.show({"name": options.name, "console": console, "steps": len(steps), "printed": said})
    return EXIT_OK


class _Reading:
    """What is read of a console and shown, or, with `--json`, kept."""

    def __init__(self, desk: Desk, attached: Attached, until: re.Pattern[str] | None) -> None:
        self._desk = desk
        self._attached = attached
        self._until = StreamSearch(until) if until is not None else None
        self._plain = PlainText()
        self._seen = ConsoleTail()
        self._text = ""

    def read(self, timeout_s: float) -> str:
        """Read what is there, or until the pattern. Raises WaitTimeout, ConsoleError when the pattern does not come."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._attached.attend()
            data = self._attached.read()
            if data:
                if self._take(data):
                    return self._text
                continue
            if self._until is None:
                return self._text
            if self._attached.is_over:
                raise ConsoleError(f"{self._attached.how}, and the pattern was not seen", seen=self._seen.lines(8))
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout("the pattern", timeout_s, last_seen=self._seen.lines(8))
            self._attached.wait(left)

    def _take(self, data: bytes) -> bool:
        """Show what came; whether the pattern has come."""
        self._seen.feed(data)
        if not self._desk.is_json:
            write_all(1, data)
        text = self._plain.feed(data)
        if self._desk.is_json:
            self._text = (self._text + text)[-KEPT:]
        return self._until is not None and self._until.feed(text)


def _attach(desk: Desk, mode: Any, start: int | None) -> Attached:
    name = desk.check_name(desk.options.name)
    return Attached(
        lambda: connect(desk.runtime, name),
        console=desk.options.console or "",
        mode=mode,
        who=f"unhinged {desk.options.command} (pid {os.getpid()})",
        start=start,
    )


def _read_file(name: str) -> str:
    try:
        if name == "-":
            return sys.stdin.read(SCRIPT_MAX_BYTES)
        with Path(name).open(encoding="utf-8") as file:
            return file.read(SCRIPT_MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the script {name} cannot be read: {error}", file=Path(name)) from error
