"""One console of a guest, as a stream of bytes both ways (floor 2); `control.vm` opens it, the faces read it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from control.errors import ConsoleError

CHUNK_BYTES = 256 * 1024
"""Read at once: large enough that a burst costs few system calls, small enough to stay responsive."""


class ConsoleChannel:
    """The socket of a QEMU character device. Not thread-safe; one reader, any number of writers."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._write_lock = asyncio.Lock()

    def close(self) -> None:
        """Hang up; QEMU goes on and keeps writing its log."""
        self._connection.close()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what the guest wrote, unchanged and complete, until QEMU hangs up.

        Nothing is read ahead: while the consumer is busy QEMU waits, and so does the guest's serial line.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                chunk = await loop.sock_recv(self._connection, CHUNK_BYTES)
            except ConnectionResetError:
                return  # QEMU was killed
            if not chunk:
                return
            yield chunk
            # A guest that always has more to say would otherwise be all this event loop ever sees.
            await asyncio.sleep(0)

    async def write(self, data: bytes) -> None:
        """Type `data` on the console; returns when QEMU has taken all of it.

        Raises:
            ConsoleError: QEMU hung up; how much of `data` arrived is unknown.
        """
        loop = asyncio.get_running_loop()
        async with self._write_lock:
            try:
                await loop.sock_sendall(self._connection, data)
            except OSError as error:
                raise ConsoleError("the console is gone: QEMU hung up", hint="is the VM still running?") from error
