"""What is typed on a console (floor 2): the FIFO from which QEMU, or a holder, reads it; made by `control.vm`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from control.errors import ConsoleError


class Typed:
    """The way to one console's input. Not thread-safe; any number of writers, each of whose pieces arrives whole."""

    def __init__(self, fifo: Path) -> None:
        self._fifo = fifo
        self._descriptor = -1
        self._lock = asyncio.Lock()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def write(self, data: bytes) -> None:
        """Type `data`; returns when all of it was handed over, which takes as long as the guest does not read.

        Raises:
            ConsoleError: Nobody reads the FIFO any more; how much of `data` arrived is unknown.
        """
        async with self._lock:
            try:
                if self._descriptor < 0:
                    self._descriptor = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                view = memoryview(data)
                while view:
                    try:
                        view = view[os.write(self._descriptor, view) :]
                    except BlockingIOError:
                        await self._wait_for_room()
            except OSError as error:
                raise ConsoleError(
                    "the console is gone: nobody reads what is typed", hint="is the machine still running?"
                ) from error

    async def _wait_for_room(self) -> None:
        loop = asyncio.get_running_loop()
        room = asyncio.Event()
        loop.add_writer(self._descriptor, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._descriptor)
