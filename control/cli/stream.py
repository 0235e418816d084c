"""Carries a call's bytes between our standard streams and a supervisor (floor 6); `exec` uses it."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

from control.descriptors import is_open, write_all
from control.errors import StateError
from control.vm.collect import Collected
from control.vm.remote import PIECE_BYTES, WINDOW_BYTES, Remote, decode_output, encode_input, read_answer

CLOSE_S = 5.0


class Streaming:
    """One call whose output is shown as it comes, and which reads what we read."""

    def __init__(self, remote: Remote, *, reads_stdin: bool, is_terminal: bool) -> None:
        self._remote = remote
        self._call = 0
        self._outstanding = 0
        self._is_terminal = is_terminal and os.isatty(0)
        self._reads = reads_stdin and is_open(0) and (is_terminal or not os.isatty(0))
        self._tells_size = False
        self._has_size_changed = False
        self._interrupts = 0

    def run(self, method: str, params: dict[str, Any], collected: Collected | None = None) -> dict[str, Any]:
        """Make the call and return its result; Ctrl-C goes to the program, the second one ends the call as well.

        Raises:
            RemoteError: It failed.
            StateError: The supervisor is gone.
        """
        if method == "exec":
            params = {**params, "stdin": self._reads}
            if self._is_terminal:
                params["terminal"] = _find_size()
                self._tells_size = True
        with self._catching_signals():
            self._call = self._remote.begin(method, params)
            with _raw_terminal() if self._is_terminal else contextlib.nullcontext():
                return self._exchange(collected)

    def _exchange(self, collected: Collected | None) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._remote, selectors.EVENT_READ)
            listening = False
            while True:
                while (message := self._remote.take_message()) is not None:
                    if message.get("id") == self._call and "method" not in message:
                        result: dict[str, Any] = read_answer(message)
                        return result
                    self._take(message, collected)
                wants = self._reads and self._outstanding + PIECE_BYTES <= WINDOW_BYTES
                if wants != listening:
                    listening = self._listen(selector, wants)
                for key, _ in selector.select(0.25 if self._is_terminal else None):
                    if key.fileobj == 0:
                        self._read_stdin()
                    elif not self._remote.receive():
                        raise StateError(
                            "the VM's supervisor has gone in the middle of this",
                            state="unknown",
                            required=("RUNNING",),
                            hint="unhinged status NAME tells whether the VM runs on",
                        )
                if self._has_size_changed:
                    self._has_size_changed = False
                    size = _find_size()
                    self._remote.notify("resize", call=self._call, rows=size["rows"], columns=size["columns"])

    def _listen(self, selector: selectors.BaseSelector, wants: bool) -> bool:
        if not wants:
            selector.unregister(0)
            return False
        try:
            selector.register(0, selectors.EVENT_READ)
        except PermissionError:  # an ordinary file, which epoll does not take because it is always ready
            self._read_stdin()
            return False
        return True

    def _read_stdin(self) -> None:
        try:
            data = os.read(0, PIECE_BYTES)
        except OSError:
            data = b""  # a terminal whose other end is gone
        if not data:
            self._reads = False
        self._outstanding += len(data)
        self._remote.notify("input", call=self._call, data=encode_input(data), end=not data)

    def _take(self, message: dict[str, Any], collected: Collected | None) -> None:
        params = message.get("params", {})
        if message.get("method") == "taken":
            self._outstanding -= params["bytes"]
        elif message.get("method") == "output":
            data = decode_output(params)
            if collected is not None:
                collected.take(params["stream"], data)
            else:
                write_all(2 if params["stream"] == "stderr" else 1, data)

    @contextlib.contextmanager
    def _catching_signals(self) -> Iterator[None]:
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt),
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, self._on_resize),
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_interrupt(self, number: int, frame: object) -> None:
        self._interrupts += 1
        if self._interrupts > 1 or not self._call:
            raise KeyboardInterrupt
        self._remote.notify("signal", call=self._call, name="INT")

    def _on_resize(self, number: int, frame: object) -> None:
        self._has_size_changed = self._tells_size


def _find_size() -> dict[str, Any]:
    try:
        size = os.get_terminal_size(0)
    except OSError:
        size = os.terminal_size((80, 24))
    term = os.environ.get("TERM", "") or "xterm-256color"
    return {"rows": max(1, size.lines), "columns": max(1, size.columns), "term": term[:64]}


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
