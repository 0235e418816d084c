"""A guest agent over a serial line (floor 2): the only module that imports `serial` (pyserial)."""

from __future__ import annotations

import os
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import serial

from control.agent.client import AgentClient, Notification, serve_agent
from control.errors import HostError

DEFAULT_BAUD = 115200
FRAMES_A_SECOND = 20
"""A call waits behind one frame of a stream at most: how short that is at the speed of the line."""

_LEAST_FRAME_BYTES = 128
_MOST_FRAME_BYTES = 65536


class SerialConnection:
    """A serial line as a `Connection`."""

    def __init__(self, path: Path | str, baud: int) -> None:
        try:
            self._port = serial.Serial(str(path), baud, timeout=0, exclusive=True)
        except (serial.SerialException, ValueError, OSError) as error:
            raise HostError(
                f"the serial line {path} cannot be used: {error}", hint="is it there, is it yours, and free?"
            ) from error
        # pyserial has a read without data return at once, as at the end of a file; with VMIN 1 the two differ.
        attributes = termios.tcgetattr(self._port.fileno())
        attributes[6][termios.VMIN] = 1
        termios.tcsetattr(self._port.fileno(), termios.TCSANOW, attributes)

    def setblocking(self, blocking: bool, /) -> None:
        os.set_blocking(self._port.fileno(), blocking)

    def fileno(self) -> int:
        return int(self._port.fileno())

    def recv_into(self, buffer: memoryview, /) -> int:
        return os.readv(self.fileno(), [buffer])

    def send(self, data: bytes | memoryview, /) -> int:
        return os.write(self.fileno(), data)

    def close(self) -> None:
        self._port.close()


@asynccontextmanager
async def open_serial(
    path: Path | str, on_notification: Notification, *, baud: int = DEFAULT_BAUD
) -> AsyncIterator[AgentClient]:
    """Talk to the agent at the other end of the serial line `path` while the body runs; wait for it to be ready first.

    Raises:
        HostError: The line cannot be opened, or another program has it.
    """
    # Ten bits on the line make a byte: start, eight of data, stop.
    frame_bytes = min(max(baud // 10 // FRAMES_A_SECOND, _LEAST_FRAME_BYTES), _MOST_FRAME_BYTES)
    connection = SerialConnection(path, baud)
    client = AgentClient(connection, on_notification, frame_bytes=frame_bytes, may_lose=True)
    async with serve_agent(client):
        yield client
