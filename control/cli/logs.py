"""`unhinged logs`, `serial`, `stdout`, `stderr`, `messages` (floor 6): what a VM has written, read from its files.

A VM that runs writes on meanwhile; nothing here asks its supervisor, but `serial` on a terminal, which is its console.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from control.cli.desk import Desk, printable
from control.console.follow import follow
from control.errors import StateError
from control.vm.instance import find_running
from control.vm.reach import look

PIECE_BYTES = 1 << 20
SHOWN_MAX_BYTES = 16 << 20
"""What `--json` shows of a log, its end."""

FEW_LINES = 10
"""What is shown of the console and of QEMU's outputs where no number is given, as qqmgr does."""

CONSOLE_DEFAULTS = {"console": "", "steal": False, "read_only": False, "no_history": False, "since": None,
                    "grep": None, "until": None, "timeout": None}  # fmt: skip
"""What `console` has without options."""

Write = Callable[[bytes], None]


def logs(desk: Desk) -> int:
    return _show(desk, desk.options.log, desk.options.lines)


def stdout(desk: Desk) -> int:
    return _show(desk, "stdout", _few(desk))


def stderr(desk: Desk) -> int:
    return _show(desk, "qemu", _few(desk))


def serial(desk: Desk) -> int:
    """On a terminal the console itself; elsewhere, or when a part of its log is asked for, that."""
    options = desk.options
    if options.follow or options.lines is not None or desk.is_json or not (os.isatty(0) and os.isatty(1)):
        return _show(desk, "serial", _few(desk))
    from control.cli.console import console

    for option, value in CONSOLE_DEFAULTS.items():
        setattr(options, option, value)
    return console(desk)


def messages(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    path = _find_log(desk, name, "messages")
    start = _find_start(path, options.lines)
    if desk.is_json:
        desk.show({"name": name, "messages": list(_read_messages(path, start))})
        return 0
    lines = _LineWriter(lambda line: _write(_describe(line).encode("utf-8", "replace") + b"\n"))
    _pour(desk, name, path, start, lines.write, follows=options.follow)
    return 0


def _show(desk: Desk, log: str, lines: int | None) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    path = _find_log(desk, name, log)
    start = _find_start(path, lines)
    if desk.is_json:
        data = path.read_bytes()[max(start, path.stat().st_size - SHOWN_MAX_BYTES) :]
        desk.show({"name": name, "log": log, "file": str(path), "text": data.decode("utf-8", "replace")})
        return 0
    _pour(desk, name, path, start, _write, follows=options.follow)
    return 0


def _few(desk: Desk) -> int:
    lines: int | None = desk.options.lines
    return FEW_LINES if lines is None else lines


def _find_log(desk: Desk, name: str, log: str) -> Path:
    files = look(desk.runtime, name).files
    path = {
        "serial": files.serial_log,
        "hvc0": files.hvc0_log,
        "qemu": files.qemu_log,
        "stdout": files.qemu_output,
        "messages": files.messages,
        "supervisor": files.supervisor_log,
    }[log]
    if not path.exists():
        raise StateError(
            f"{name} has no such log: it was never started, or has nothing that would write it",
            state="DEFINED",
            required=("STARTING",),
            hint=f"unhinged start {name}",
        )
    return path


def _pour(desk: Desk, name: str, path: Path, start: int, write: Write, *, follows: bool) -> None:
    """Write what is in the file from `start` on and, where that is wanted, what comes, until the VM ends."""
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE_BYTES):
            write(piece)
        if not follows:
            return
        seen = look(desk.runtime, name)
        process = find_running(seen.files, seen.record)
        if process is None:
            while piece := os.read(file.fileno(), PIECE_BYTES):
                write(piece)
            return
        with process:
            for piece in follow(file.fileno(), process.fileno()):
                write(piece)


def _find_start(path: Path, lines: int | None) -> int:
    """Where the last `lines` lines begin."""
    if lines is None:
        return 0
    with path.open("rb") as file:
        position = end = file.seek(0, os.SEEK_END)
        left = max(0, lines)
        if left == 0:
            return end
        while position:
            start = max(0, position - PIECE_BYTES)
            file.seek(start)
            piece = file.read(position - start)
            at = len(piece)
            while (at := piece.rfind(b"\n", 0, at)) >= 0:
                if start + at + 1 == end:
                    continue  # the end of the last line begins none
                left -= 1
                if left == 0:
                    return start + at + 1
            position = start
    return 0


class _LineWriter:
    """Cuts what is poured into lines."""

    def __init__(self, take: Write) -> None:
        self._take = take
        self._rest = b""

    def write(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._take(line)


def _read_messages(path: Path, start: int) -> Iterator[Any]:
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - SHOWN_MAX_BYTES))
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue  # the half line at the beginning of what is shown, or the one that is just being written


def _describe(line: bytes) -> str:
    """One message for people: its time, its way, its kind, what it says; the details as they are."""
    try:
        message = json.loads(line)
        data, arrow = message["data"], "->" if message["direction"] == "host-to-vm" else "<-"
        details = json.dumps(data["details"], ensure_ascii=False) if data.get("details") else ""
        shown = f"{message['timestamp']}  {arrow} {message['type']:9}  {data['message']}  {details}"
    except (ValueError, KeyError, TypeError):
        shown = line.decode("utf-8", "replace")
    return printable(shown.rstrip())


def _write(data: bytes) -> None:
    """As it is: a log shown on a terminal may move its cursor, as the console itself does."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
