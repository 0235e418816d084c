"""Pictures of screens (floor 5): at most one a second of each, however many browsers show it."""

from __future__ import annotations

import asyncio
import time

from control.web.machines import Machines

FRESH_S = 1.0


class Pictures:
    """The last picture of each machine's screen."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._taken: dict[str, tuple[float, bytes]] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def take(self, name: str) -> bytes:
        """Return the screen of the machine `name` as PNG. Raises what its supervisor says, when it has none."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            at, picture = self._taken.get(name, (0.0, b""))
            if time.monotonic() - at < FRESH_S:
                return picture
            path = self._machines.files(name).directory / ".thumbnail.png"
            try:
                await self._machines.call(name, "screenshot", {"path": str(path)}, timeout_s=10.0)
                picture = await asyncio.to_thread(path.read_bytes)
            finally:
                path.unlink(missing_ok=True)
            self._taken[name] = (time.monotonic(), picture)
            return picture
