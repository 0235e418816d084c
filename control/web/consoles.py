"""A console in a browser (floor 5): a WebSocket that carries what it says, from its file, and what is typed.

Binary messages are bytes, both ways. Text messages are JSON objects with a `type`:

| to the browser | |
|---|---|
| `attached` | `run`, `position` and `size`: which log it is, where in it the bytes that follow begin, how long it is |
| `skipped` | so many `bytes` are left out because the browser was too far behind; the log has them |
| `turn`, `refused`, `note` | as a supervisor tells them (docs/control.md) |
| `ended` | the machine has ended (`state`); when it runs again, `attached` follows |

| to the server | |
|---|---|
| `ack` | so many `bytes` in all are shown: at most 2 MiB are on their way beyond that |
| `resize` | `rows` and `columns` |
| `turn` | `wants` is `steal`, `write` or `read` |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from control.errors import ControlError
from control.web.context import Context, choose_machine, get_context, get_session, note
from control.web.guard import who_is
from control.web.logs import LogReader, open_log
from control.web.seat import Seat, open_seat

HISTORY_BYTES = 256 * 1024
PIECE_BYTES = 128 * 1024
WINDOW_BYTES = 2 * 1024 * 1024
BEHIND_BYTES = 4 * 1024 * 1024
"""A browser further behind than this is shown the newest again: a person has stopped reading long before."""

MESSAGE_MAX_BYTES = 256 * 1024
HEARTBEAT_S = 20.0
SIZE_MAX = 1000


async def attend_console(request: web.Request) -> web.StreamResponse:
    """`GET /api/vms/NAME/console?console=ttyS0`; see above. Who may only look reads."""
    context, name, session = get_context(request), choose_machine(request), get_session(request)
    console = context.machines.choose_console(name, request.query.get("console", ""))
    context.access.redeem_ticket(request.query.get("ticket", ""), session, name, f"console:{console}")
    note(request, "console", name, console=console, looks_only=session.role != "operator")
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MESSAGE_MAX_BYTES)
    await socket.prepare(request)
    talk = _Talk(context, socket, name, console, who_is(request), may_type=session.role == "operator")
    talk.acks = request.query.get("flow") == "ack"
    with context.live.watching(), contextlib.suppress(ConnectionError):
        await talk.last(request.query.get("run", ""), request.query.get("from", ""))
    return socket


class _Talk:
    """One browser at one console.

    Attributes:
        acks: Whether it says what it has shown.
    """

    def __init__(
        self, context: Context, socket: web.WebSocketResponse, name: str, console: str, who: str, *, may_type: bool
    ) -> None:
        self.acks = False
        self._context = context
        self._socket = socket
        self._name = name
        self._console = console
        self._who = who
        self._may_type = may_type
        self._sent = self._shown = 0
        self._room = asyncio.Event()
        self._size: tuple[int, int] | None = None
        self._mode = "write"
        self._seat: Seat | None = None
        self._seating: asyncio.Task[None] | None = None
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(maxsize=64)

    async def last(self, run: str, position: str) -> None:
        """Serve the browser until it leaves."""
        showing = asyncio.create_task(self._show(run, position))
        hearing = asyncio.create_task(self._hear())
        tasks = {showing, hearing}
        if self._console == "shell" and self._may_type:
            self._take_seat()
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except ControlError as error:
            await self._tell({"type": "note", "text": str(error)})
        finally:
            if self._seating is not None:
                tasks.add(self._seating)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._socket.close()

    async def _tell(self, message: dict[str, Any]) -> None:
        await self._socket.send_str(json.dumps(message))

    # -- what it says ----------------------------------------------------------------------------------------------

    async def _show(self, run: str, position: str) -> None:
        while True:
            log = await self._wait_for_log()
            with open_log(log, -HISTORY_BYTES) as reader:
                # A file of the next run may have the number of one that is gone.
                this = f"{self._context.machines.find_last_run(self._name)}.{reader.inode}"
                if run == this and position.isdecimal() and int(position) <= reader.size:
                    reader.position = int(position)
                elif reader.position > 0:
                    _begin_at_a_line(reader)
                run = ""
                await self._tell({"type": "attached", "run": this, "position": reader.position, "size": reader.size})
                self._sent = self._shown = 0
                if await self._copy(reader, log):
                    await self._tell({"type": "ended", "state": self._find_state()})
                    await self._wait_for_another(log, reader.inode)

    async def _copy(self, reader: LogReader, log: Path) -> bool:
        """Show what the log has and gets; returns whether its machine has ended, False when there is another log."""
        while True:
            while self.acks and self._sent - self._shown >= WINDOW_BYTES:
                self._room.clear()
                await self._room.wait()
            if reader.backlog > BEHIND_BYTES:
                left_out = reader.backlog - HISTORY_BYTES
                reader.position += left_out
                await self._tell({"type": "skipped", "bytes": left_out, "position": reader.position})
            if chunk := reader.read(PIECE_BYTES):
                self._sent += len(chunk)
                await self._socket.send_bytes(chunk)
                if len(chunk) == PIECE_BYTES:
                    continue
            await reader.wait_for_more()
            if reader.backlog:
                continue
            if self._find_run() == "":
                return True
            if _find_inode(log) != reader.inode:
                return False

    async def _wait_for_log(self) -> Path:
        """The log of the console, once there is one."""
        log = self._context.machines.files(self._name).console_logs[self._console]
        is_told = False
        while not log.exists():
            if not is_told:
                await self._tell({"type": "ended", "state": self._find_state()})
                is_told = True
            await self._context.live.wait_for_look()
        return log

    async def _wait_for_another(self, log: Path, inode: int) -> None:
        while self._find_run() == "" or _find_inode(log) in (inode, 0):
            await self._context.live.wait_for_look()

    def _find_run(self) -> str:
        """What the live picture says of the run; `?` while it has not looked."""
        found = self._context.live.find(self._name)
        return "?" if found is None else str(found["run"])

    def _find_state(self) -> str:
        found = self._context.live.find(self._name)
        return "STOPPED" if found is None else str(found["state"])

    # -- what is typed ---------------------------------------------------------------------------------------------

    async def _hear(self) -> None:
        async for message in self._socket:
            if message.type is WSMsgType.BINARY:
                await self._take_typed(message.data)
            elif message.type is WSMsgType.TEXT:
                await self._take_word(message.data)

    async def _take_typed(self, data: bytes) -> None:
        if not self._may_type:
            await self._tell({"type": "refused", "why": "you may look, and not type", "holder": ""})
            return
        self._take_seat()
        await self._typed.put(data)

    async def _take_word(self, text: str) -> None:
        try:
            word = json.loads(text)
            kind = word["type"]
            if kind == "ack":
                self._shown = min(self._sent, max(self._shown, int(word["bytes"])))
                self._room.set()
            elif kind == "resize":
                self._size = (_bound(word["rows"]), _bound(word["columns"]))
                if self._seat is not None:
                    await self._seat.resize(*self._size)
            elif kind == "turn" and self._may_type and word["wants"] in ("steal", "write", "read"):
                self._mode = word["wants"]
                if self._seat is not None:
                    await self._seat.wish(self._mode)
                elif self._mode != "read":
                    self._take_seat()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            await self._tell({"type": "note", "text": f"this message is none: {error!r}"[:200]})

    def _take_seat(self) -> None:
        """Those who only look have none; a seat is asked for when somebody first types."""
        if self._seating is None or self._seating.done():
            self._seating = asyncio.create_task(self._sit())

    async def _sit(self) -> None:
        try:
            remote = await self._context.machines.connect(self._name)
            async with open_seat(
                remote, console=self._console, mode=self._mode, who=self._who, tell=self._tell
            ) as seat:
                if self._size is not None:
                    await seat.resize(*self._size)
                self._seat = seat
                typing = asyncio.create_task(self._type(seat))
                try:
                    await seat.last()
                finally:
                    typing.cancel()
                    await asyncio.gather(typing, return_exceptions=True)
        except (ControlError, TimeoutError) as error:
            with contextlib.suppress(ConnectionError):
                await self._tell({"type": "refused", "why": str(error) or "no answer", "holder": ""})
        finally:
            self._seat = None
            self._mode = "write"
            while not self._typed.empty():
                self._typed.get_nowait()

    async def _type(self, seat: Seat) -> None:
        while True:
            await seat.type(await self._typed.get())


def _begin_at_a_line(reader: LogReader) -> None:
    """Leave out the rest of a line, so that the history does not begin in the middle of a character or an escape."""
    begin = reader.position
    end = reader.read(4096).find(b"\n")
    reader.position = begin + end + 1


def _find_inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _bound(number: Any) -> int:
    return max(1, min(SIZE_MAX, int(number)))
