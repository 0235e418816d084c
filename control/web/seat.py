"""A browser's seat at a console (floor 5): what is typed goes to the machine's supervisor, in the order of turns.

Source of the calls: docs/control.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from control.errors import ControlError, StateError
from control.vm.remote import Remote, encode_input, read_answer

LINE_LIMIT_BYTES = 1 << 20
PIECE_BYTES = 32 * 1024
WINDOW_BYTES = 256 * 1024
SEAT_WAIT_S = 30.0

Tell = Callable[[dict[str, Any]], Awaitable[None]]


class Seat:
    """A seat at one console.

    Attributes:
        log: The file the console is.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tell: Tell) -> None:
        self.log = Path()
        self._reader = reader
        self._writer = writer
        self._tell = tell
        self._outstanding = 0
        self._room = asyncio.Event()
        self._room.set()

    async def sit(self, params: Mapping[str, Any]) -> None:
        """Ask for the seat. Raises what the supervisor says."""
        await self._send({"jsonrpc": "2.0", "id": 1, "method": "attach", "params": dict(params)})
        async with asyncio.timeout(SEAT_WAIT_S):
            while True:
                message = await self._receive()
                if message.get("id") == 1 and "method" not in message:
                    read_answer(message)
                    raise StateError("the console has ended", state="STOPPED", required=("RUNNING",))
                if message.get("method") == "attached":
                    self.log = Path(message["params"]["log"])
                    return

    async def last(self) -> None:
        """Tell what the supervisor says of the seat, until it ends."""
        while True:
            message = await self._receive()
            params = message.get("params", {})
            match message.get("method"):
                case None if message.get("id") == 1:
                    read_answer(message)
                    return
                case "taken":
                    self._outstanding -= params["bytes"]
                    if self._outstanding + PIECE_BYTES <= WINDOW_BYTES:
                        self._room.set()
                case "turn":
                    await self._tell({"type": "turn", "turn": params["turn"], "holder": params["holder"]})
                case "refused":
                    await self._tell({"type": "refused", "why": params["why"], "holder": params["holder"]})
                case "note":
                    await self._tell({"type": "note", "text": params["text"]})

    async def type(self, data: bytes) -> None:
        """Type `data`; waits while more is on its way than the supervisor takes."""
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            await self._room.wait()
            self._outstanding += len(piece)
            if self._outstanding + PIECE_BYTES > WINDOW_BYTES:
                self._room.clear()
            await self._notify("input", data=encode_input(piece))

    async def resize(self, rows: int, columns: int) -> None:
        await self._notify("resize", rows=rows, columns=columns)

    async def wish(self, wants: str) -> None:
        """`steal`, `write` or `read`."""
        await self._notify("turn", wants=wants)

    async def _notify(self, method: str, **params: Any) -> None:
        await self._send({"jsonrpc": "2.0", "method": method, "params": {"call": 1, **params}})

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise _gone() from error

    async def _receive(self) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError) as error:
            raise _gone() from error
        if not line:
            raise _gone()
        message: dict[str, Any] = json.loads(line)
        return message


def _gone() -> ControlError:
    return StateError("the machine's supervisor has gone", state="unknown", required=("RUNNING",))


@contextlib.asynccontextmanager
async def open_seat(remote: Remote, *, console: str, mode: str, who: str, tell: Tell) -> AsyncIterator[Seat]:
    """Take a seat over a fresh connection to a supervisor for the body; whoever waits for the keyboard gets it after.

    Raises:
        RemoteError: There is no such console.
        StateError: The machine is gone.
        TimeoutError: The supervisor, or the guest for a shell, does not answer.
    """
    connection = remote.release()
    connection.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LINE_LIMIT_BYTES)
    try:
        seat = Seat(reader, writer, tell)
        await seat.sit({"console": console, "mode": mode, "who": who})
        yield seat
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
