"""The guest's messages on their way to whoever listens (floor 2); used by `client`.

Answers must not wait behind a listener that is busy, and least of all behind one that asks the guest something itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

WAITING_BYTES = 256 * 1024
"""How much may wait for a listener before the guest is not read from any more, its answers neither."""

Listener = Callable[[str, object], Awaitable[None]]


class Notices:
    """Hands notifications to `listener` one at a time, in order, while `run` runs."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._waiting: deque[tuple[str, object, int]] = deque()
        self._waiting_bytes = 0
        self._more = asyncio.Event()
        self._less = asyncio.Event()

    async def put(self, method: str, params: object, size: int) -> None:
        """Add a notification whose line had `size` bytes; wait while too much waits already."""
        while self._waiting and self._waiting_bytes + size > WAITING_BYTES:
            self._less.clear()
            await self._less.wait()
        self._waiting.append((method, params, size))
        self._waiting_bytes += size
        self._more.set()

    async def run(self) -> None:
        """Hand on what comes, for ever; what the listener raises goes through."""
        while True:
            await self._more.wait()
            await self._hand_on()
            self._more.clear()

    async def drain(self) -> None:
        """Wait until all that came has been handed on."""
        while self._waiting:
            self._less.clear()
            await self._less.wait()

    async def _hand_on(self) -> None:
        while self._waiting:
            method, params, size = self._waiting[0]
            await self._listener(method, params)
            self._waiting.popleft()
            self._waiting_bytes -= size
            self._less.set()
