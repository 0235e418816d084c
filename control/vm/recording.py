"""Keeps the recording of a console while its VM is ours (floor 3): when output and echoes are due is looked after here.

A recording is worth less than the VM: one that cannot be written is named once, and the VM goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from control.console.recorder import Recorder
from control.errors import HostError


class ConsoleRecording:
    """The recording of one console of a VM, in an event loop.

    Args:
        path: The file; one that is there is gone on with.
        say: Is told once that nothing is recorded any more.
        offset: How long the console's log is, whoever saw it come.
    """

    def __init__(self, path: Path, console: str, say: Callable[[str], None], *, offset: int) -> None:
        self._say = say
        self._recorder: Recorder | None = None
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._recorder = Recorder(path, started_at=time.time(), console=console)
        except HostError as error:
            self._give_up(error)
        self.said(b"", offset)

    def said(self, chunk: bytes, offset_after: int) -> None:
        """The guest has said `chunk`, with which its log is `offset_after` bytes long."""
        self._do(lambda recorder: recorder.said(chunk, offset_after))

    def typed(self, data: bytes) -> None:
        """This is about to be typed; call it before the guest gets it."""
        self._do(lambda recorder: recorder.typed(data))

    def mark(self, label: str) -> None:
        """Put a marker here."""
        self._do(lambda recorder: recorder.mark(label))

    def resized(self, columns: int, rows: int) -> None:
        """The console has this size from now on."""
        self._do(lambda recorder: recorder.resized(columns, rows))

    def close(self) -> None:
        """Write all that waits, and let go of the file."""
        self._do(lambda recorder: recorder.close())
        self._recorder = None
        if self._timer is not None:
            self._timer.cancel()

    def _do(self, work: Callable[[Recorder], None]) -> None:
        if self._recorder is None:
            return
        try:
            work(self._recorder)
            if (due := self._recorder.due) is not None:
                self._wake_at(due - time.monotonic())
        except HostError as error:
            self._give_up(error)

    def _wake_at(self, delay_s: float) -> None:
        """Flush after so long, or before, when that is planned already."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, delay_s)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._do(lambda recorder: recorder.flush())

    def _give_up(self, error: HostError) -> None:
        self._say(f"{error}; the console is not recorded from now on")
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            with contextlib.suppress(HostError):  # it has just been told
                recorder.close()
