"""What one console of a guest says (floor 2); `control.vm` opens it. What is typed on it goes through `typed`.

QEMU itself writes it into a file. So the file is the console, byte for byte, whoever comes and goes and is killed, and
nobody who reads it can hold the guest up.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import HostError

if TYPE_CHECKING:
    from control.console.changes import Changes

CHUNK_BYTES = 256 * 1024
"""Read at once: large enough that a burst costs few system calls, small enough to stay responsive."""

LOOK_S = 5.0


class ConsoleChannel:
    """A console of a VM. Not thread-safe; one reader.

    Args:
        log: The file of what the guest says.
        position: Where in the file to begin to read; None for its end.

    Attributes:
        missed: Bytes that were given back of the file before they were read.

    Raises:
        HostError: The file cannot be opened.
    """

    def __init__(self, log: Path, *, position: int | None = 0) -> None:
        try:
            self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"the console's log {log} cannot be read: {error.strerror}") from error
        os.lseek(self._log, position or 0, os.SEEK_SET if position is not None else os.SEEK_END)
        self.missed = 0
        self._changes: Changes | None = None
        self._is_whole = False

    def close(self) -> None:
        """Let go of the file; the guest goes on."""
        os.close(self._log)

    @property
    def position(self) -> int:
        """Where in the file the next chunk begins."""
        return os.lseek(self._log, 0, os.SEEK_CUR)

    def finish(self) -> None:
        """Nobody will write any more: `chunks` ends once all was read."""
        self._is_whole = True
        if self._changes is not None:
            self._changes.wake()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield what the guest wrote, unchanged and complete, as it comes. Raises HostError."""
        from control.console.changes import Changes  # they load what a start has no time for
        from control.console.follow import skip_hole

        self._changes = Changes(self._log)
        try:
            while True:
                is_whole = self._is_whole  # looked at before the file is
                self.missed += skip_hole(self._log)
                while chunk := os.read(self._log, CHUNK_BYTES):
                    yield chunk
                    self.missed += skip_hole(self._log)
                    if len(chunk) < CHUNK_BYTES:
                        break  # a guest that speaks byte by byte is heard a little later, and not for each of them
                    # A guest that always has more to say would otherwise be all this event loop ever sees.
                    await asyncio.sleep(0)
                if is_whole:
                    return
                await self._changes.wait(LOOK_S)
        finally:
            self._changes.close()
            self._changes = None
