"""`unhinged logs` (floor 4): what a VM has written, read from its files; a VM that runs writes on meanwhile."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from control.cli.desk import Desk
from control.console.follow import follow
from control.errors import StateError
from control.vm.instance import find_running
from control.vm.reach import look

PIECE_BYTES = 1 << 20
SHOWN_MAX_BYTES = 16 << 20
"""What `--json` shows of a log, its end."""


def logs(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    files = look(desk.runtime, name).files
    path = {
        "serial": files.serial_log,
        "hvc0": files.hvc0_log,
        "qemu": files.qemu_log,
        "messages": files.messages,
        "supervisor": files.supervisor_log,
    }[options.log]
    if not path.exists():
        raise StateError(f"{name} has no such log: it was never started", state="DEFINED", required=("STARTING",))
    start = _find_start(path, options.lines)
    if desk.is_json:
        data = path.read_bytes()[max(start, path.stat().st_size - SHOWN_MAX_BYTES) :]
        desk.show({"name": name, "log": options.log, "file": str(path), "text": data.decode("utf-8", "replace")})
        return 0
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(PIECE_BYTES):
            _write(piece)
        if options.follow:
            _follow(desk, name, file.fileno())
    return 0


def _follow(desk: Desk, name: str, descriptor: int) -> None:
    seen = look(desk.runtime, name)
    process = find_running(seen.files, seen.record)
    if process is None:
        while piece := os.read(descriptor, PIECE_BYTES):
            _write(piece)
        return
    with process:
        for piece in follow(descriptor, process.fileno()):
            _write(piece)


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


def _write(data: bytes) -> None:
    """As it is: a log shown on a terminal may move its cursor, as the console itself does."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
