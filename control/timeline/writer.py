"""Writes down when what happens to a VM: `timeline.jsonl` in its directory.

The first line is the header `{"version": 1, "started_at": …, "monotonic": …, …}`; each other line is an entry
`[t, lane, text]` or, for what took a while, `[t, lane, text, duration]`, in seconds since QEMU was started.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from control.errors import HostError

Lane = Literal["phase", "step", "agent", "qmp", "console"]

LIMIT_BYTES = 4 << 20
"""A boot of a large system takes a tenth of that. What comes later is in the recordings of the consoles."""

FULL = "no more is written here"
TEXT_MAX = 300
_LINE_MAX = 4000


def begin_timeline(path: Path, before: Path, about: dict[str, Any]) -> None:
    """Begin a new timeline, whose time 0 is now; the one that is there becomes the one `before`.

    Raises:
        HostError: It cannot be written; there is none then.
    """
    header = {"version": 1, "started_at": time.time(), "monotonic": time.monotonic(), **about}
    try:
        with contextlib.suppress(FileNotFoundError):
            path.replace(before)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(header).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}", hint="make room there") from error


class Writer:
    """Goes on with a timeline; one that cannot be written says so once, and is at its end.

    Args:
        path: The file, which has its header; without one nothing is written.
        say: Is told why nothing more is written.
    """

    def __init__(self, path: Path | None = None, say: Callable[[str], None] = lambda note: None) -> None:
        self._say = say
        self._file: int | None = None
        self._zero = 0.0
        self._left = 0
        self._line = ""
        self._line_began = 0.0
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._zero = float(json.loads(file.readline(_LINE_MAX))["monotonic"])
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._left = LIMIT_BYTES - os.fstat(self._file).st_size
        except FileNotFoundError:
            return  # an earlier version started the VM, and wrote none
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._say(f"there is no timeline of this run: {error}")

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def note(self, lane: Lane, text: str, *, began: float | None = None) -> None:
        """Write down that something happens now, or has since `began` (of the monotonic clock)."""
        now = time.monotonic()
        self._write([_entry(self._zero, now if began is None else began, lane, text, None if began is None else now)])

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Write down how long the body takes; one that fails is not written."""
        began = time.monotonic()
        yield
        self.note("step", text, began=began)

    def note_start(self, text: str) -> None:
        """Write down what has taken all the time since QEMU was started."""
        self.note("step", text, began=self._zero)

    def said(self, text: str) -> None:
        """The console has said `text`, plain; a line counts as said when its first character came."""
        if self._file is None or not text:
            return
        now, entries = time.monotonic(), []
        *lines, rest = text.split("\n")
        for line in lines:
            whole = self._line + line
            if whole.strip():
                entries.append(_entry(self._zero, self._line_began if self._line else now, "console", whole, None))
            self._line = ""
        if rest and not self._line:
            self._line_began = now
        self._line = (self._line + rest)[:_LINE_MAX]
        self._write(entries)

    def close(self) -> None:
        """Write down what stands in a line that has no end; a second time there is nothing left to do."""
        if self._line.strip():
            self._write([_entry(self._zero, self._line_began, "console", self._line, None)])
        self._line = ""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, entries: list[bytes]) -> None:
        if self._file is None or not entries:
            return
        data = b"".join(entries)
        try:
            if len(data) > self._left:
                os.write(self._file, _entry(self._zero, time.monotonic(), "step", FULL, None))
                raise OSError(0, f"it has {LIMIT_BYTES >> 20} MiB")
            self._left -= os.write(self._file, data)
        except OSError as error:
            if error.errno:
                self._say(f"the timeline cannot be written: {error.strerror}; nothing more is written there")
            os.close(self._file)
            self._file = None


def _entry(zero: float, at: float, lane: Lane, text: str, until: float | None) -> bytes:
    shown = text.strip("\r\n").replace("\r", " ")[:TEXT_MAX]
    values: list[object] = [round(at - zero, 6), lane, shown]
    if until is not None:
        values.append(round(until - at, 6))
    return json.dumps(values).encode() + b"\n"
