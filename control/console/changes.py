"""Tells an event loop that a file was written to (floor 2), as `follow` tells a command."""

from __future__ import annotations

import asyncio
import contextlib
import os

from control.console.follow import REST_S, open_watch

_EVENTS_BYTES = 65536


class Changes:
    """Watches an open file. Not thread-safe; one task waits.

    Args:
        descriptor: The file; it is used no more afterwards.

    Raises:
        HostError: The kernel cannot tell of changes of the file.
    """

    def __init__(self, descriptor: int) -> None:
        self._watch = open_watch(descriptor)
        self._woken = asyncio.Event()
        self._looked_at = 0.0

    def close(self) -> None:
        """Watch no more."""
        os.close(self._watch)

    def wake(self) -> None:
        """Let `wait` return as if the file had changed."""
        self._woken.set()

    async def wait(self, within_s: float) -> None:
        """Return once the file was written to since this returned last, or after so long, though not again at once.

        Some file systems (those of a network among them) tell of no change.
        """
        loop = asyncio.get_running_loop()
        # Heard only here: whoever writes byte by byte would wake the loop for each of them during the rest.
        loop.add_reader(self._watch, self._woken.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._woken.wait()
        finally:
            loop.remove_reader(self._watch)
        await asyncio.sleep(max(0.0, self._looked_at + REST_S - loop.time()))
        self._looked_at = loop.time()
        # Before the caller looks at the file: what is written after that is told of again.
        self._woken.clear()
        with contextlib.suppress(BlockingIOError):
            os.read(self._watch, _EVENTS_BYTES)
