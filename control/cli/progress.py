"""Shows on a terminal how several VMs are getting on, a line each, until they are there (floor 6)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from control.units import format_duration

DRAW_S = 0.1
"""Often enough for tenths of seconds to move."""

_UP, _CLEAR = "\x1b[{}F", "\x1b[J"


class Board:
    """A line for each VM that is under way: its name, what it does, since when. Off a terminal it shows nothing.

    It draws from a thread of its own, which ends with the body; the terminal is then as if it had not been.
    """

    def __init__(self, names: Iterable[str], *, is_shown: bool) -> None:
        self._doing = dict.fromkeys(names, "")
        self._since = dict.fromkeys(self._doing, 0.0)
        self._width = max([4, *map(len, self._doing)])
        self._drawn = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw_on) if is_shown else None

    def __enter__(self) -> Self:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            with self._lock:
                self._write("")

    def tell(self, name: str, doing: str) -> None:
        """Say what the VM `name` does from now on; nothing once it is there."""
        with self._lock:
            if doing and not self._doing[name]:
                self._since[name] = time.monotonic()
            self._doing[name] = doing

    def say(self, line: str) -> None:
        """Show a line that stays, above the board."""
        with self._lock:
            self._write(f"{line}\n")

    def _draw_on(self) -> None:
        while not self._over.wait(DRAW_S):
            with self._lock:
                self._write("")

    def _write(self, above: str) -> None:
        """Draw anew: what was drawn is wiped out, `above` takes its place, and the board follows if it is not over."""
        lines = [] if self._over.is_set() or self._thread is None else self._list_lines()
        wipe = (_UP.format(self._drawn) if self._drawn else "") + (_CLEAR if self._thread is not None else "")
        sys.stderr.write(wipe + above + "".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)

    def _list_lines(self) -> list[str]:
        columns, rows = _find_size()
        now = time.monotonic()
        busy = [name for name, doing in self._doing.items() if doing]
        lines = [
            f"  {name:{self._width}}  {self._doing[name]:16} {format_duration(now - self._since[name]):>8}"[
                : columns - 1
            ]
            for name in busy
        ]
        room = max(1, rows - 2)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"  and {len(busy) - room + 1} more"]
        return lines


def _find_size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(2)
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24
