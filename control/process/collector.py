"""What a child process of `control.process.run` writes, and when it and its pipes have ended (floor 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from control.process.run import kill_group

OUTPUT_LIMIT_BYTES = 1024 * 1024
"""What is kept of each of stdout and stderr; the rest is read and dropped, so the child never blocks."""


class Collector(asyncio.SubprocessProtocol):
    """Keeps the beginning of what a child process writes, and knows when it has ended and when its pipes have."""

    def __init__(self, on_stdout: Callable[[bytes], bool] | None, on_stderr: Callable[[bytes], None] | None) -> None:
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr
        self.outputs = {1: bytearray(), 2: bytearray()}
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self._open = {1, 2}
        self._pid = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._pid = transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.outputs[fd]
        kept += data[: max(0, OUTPUT_LIMIT_BYTES - len(kept))]
        enough = fd == 1 and self._on_stdout is not None and self._on_stdout(data)
        if enough and not self.exited.is_set():
            kill_group(self._pid)
        if fd == 2 and self._on_stderr is not None:
            self._on_stderr(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()
