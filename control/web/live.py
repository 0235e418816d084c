"""How all machines do, as it changes (floor 5): looked at once a second while anybody wants to know, and never else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from control.errors import ControlError
from control.log import LOG
from control.web.machines import Machines

LOOK_S = 1.0
"""The kernel tells of no machine's CPU time or memory by itself, so they are looked at."""


class Live:
    """The latest picture, and those who watch it."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._now: dict[str, dict[str, Any]] = {}
        self._trouble = ""
        self._version = 0
        self._changed = asyncio.Condition()
        self._watchers = 0
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the picture fresh during the body."""
        self._watchers += 1
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._watchers -= 1
            if self._watchers == 0 and self._task is not None:
                self._task.cancel()
                self._task = None

    def find(self, name: str) -> dict[str, Any] | None:
        """The machine as it was seen last; None when it has not been looked at."""
        return self._now.get(name)

    async def changes(self, allowed: str = "") -> AsyncIterator[dict[str, Any]]:
        """Yield all machines first, then what has changed.

        Args:
            allowed: The only machine of which may be told; empty for all.
        """
        with self.watching():
            told: dict[str, dict[str, Any]] = {}
            is_first, version = True, 0
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._version > version)  # noqa: B023 - it waits right here
                    version = self._version
                    now = {name: each for name, each in self._now.items() if not allowed or name == allowed}
                    trouble = self._trouble
                changed = [each for name, each in now.items() if told.get(name) != each]
                gone = [name for name in told if name not in now]
                if changed or gone or is_first:
                    yield {"vms": changed, "gone": gone, "order": list(now), "trouble": trouble}
                told, is_first = now, False

    async def wait_for_look(self) -> None:
        """Return after the next look."""
        async with self._changed:
            version = self._version
            await self._changed.wait_for(lambda: self._version > version)

    async def _look(self) -> None:
        while True:
            try:
                now = await self._machines.run(self._describe_all)
                trouble = ""
            except ControlError as error:
                now, trouble = self._now, f"{error}"
            except Exception:  # a fault of ours must not leave all pages standing still
                LOG.exception("looking at the machines failed")
                now, trouble = self._now, "the machines cannot be looked at; see what the server wrote"
            async with self._changed:
                self._now, self._trouble = now, trouble
                self._version += 1
                self._changed.notify_all()
            await asyncio.sleep(LOOK_S)

    def _describe_all(self) -> dict[str, dict[str, Any]]:
        return {name: self._machines.describe(name) for name in self._machines.list_names()}
