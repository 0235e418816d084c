"""Where console bytes go on the host (floor 2): stdout as a terminal, pipe, file, socket, or nothing at all.

Writing never blocks the event loop, so a reader that has stopped cannot keep a deadline from passing. The descriptor
the user gave us is
never switched to non-blocking: its flags are shared with other processes, their shell among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import stat
from collections.abc import Iterator

from control.errors import ConsoleError

PIPE_BUF_BYTES = select.PIPE_BUF
"""What a writable pipe takes at once without blocking (pipe(7))."""

TIDY = b"\x1b[0m\x1b[?25h\x1b[?7h\x1b[?2004l"
"""What a terminal is left with: default colours, cursor shown, lines wrapped, no bracketed paste.

Firmware, boot loaders and shells change all of these, and cannot set them back when the VM is simply gone."""


TIDY_UP = (
    b"\x1b\\"  # a string that was not ended
    b"\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l"  # reports of the mouse and of focus
    b"\x1b[?47l\x1b7\x1b[r\x1b8\x1b[?1l\x1b>\x1b(B\x0f"  # the other screen, margins, keypad, line drawing
) + TIDY
"""The same after a program that may have had the whole screen: an editor that somebody left by leaving the console."""


class OutputSink:
    """Takes bytes in order, each exactly once; made by `open_output_sink`."""

    def __init__(self, descriptor: int | None, *, waits: bool, at_once: int | None) -> None:
        self._descriptor = descriptor
        self._waits = waits
        self._at_once = at_once
        # An event loop takes one writer for a descriptor, and what two of us write must not be mixed.
        self._in_order = asyncio.Lock()
        self.bytes_written = 0

    async def write(self, data: bytes) -> None:
        """Write all of `data`; returns when the last byte is handed to the kernel.

        Raises:
            ConsoleError: The reader has gone, or the disk is full; `bytes_written` counts what arrived.
        """
        if self._descriptor is not None:
            async with self._in_order:
                await self._write_whole(self._descriptor, data)

    async def _write_whole(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                if self._at_once is not None:
                    await self._wait_for_room(descriptor)
                written = os.write(descriptor, view[: self._at_once])
            except BlockingIOError:
                await self._wait_for_room(descriptor)
                continue
            except BrokenPipeError as error:
                raise ConsoleError("whoever read this output has gone") from error
            except OSError as error:
                raise ConsoleError(f"the output cannot be written: {error.strerror}") from error
            self.bytes_written += written
            view = view[written:]

    async def _wait_for_room(self, descriptor: int) -> None:
        if not self._waits:
            return
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(descriptor, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(descriptor)


@contextlib.contextmanager
def open_output_sink(descriptor: int) -> Iterator[OutputSink]:
    """Prepare `descriptor` (usually 1) for writing without blocking; a closed one swallows what is written."""
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:
        yield OutputSink(None, waits=False, at_once=None)
        return
    if stat.S_ISREG(kind) or (stat.S_ISCHR(kind) and not os.isatty(descriptor)):
        yield OutputSink(descriptor, waits=False, at_once=None)  # files and /dev/null never block
        return
    try:
        # A second open of the same pipe or terminal has flags of its own.
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        # A socket, or a pipe of another user: wait until it is writable and write no more than it must then take.
        yield OutputSink(descriptor, waits=True, at_once=PIPE_BUF_BYTES)
        return
    try:
        yield OutputSink(own, waits=True, at_once=None)
    finally:
        if os.isatty(own):
            with contextlib.suppress(OSError):  # a terminal that was hung up, or whose screen is stopped
                os.write(own, TIDY)
        os.close(own)
