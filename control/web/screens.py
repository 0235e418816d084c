"""The guest's screen in a browser (floor 5): a WebSocket that carries RFB from and to QEMU's VNC server.

From the VNC server to the browser one piece is one read, with the frame's head put before it in the same buffer, and
one write: no copy is made, no task woken. That makes it several times as fast as a proxy that composes messages, and
the buffers that the kernel has bound what a browser that stops reading can hold.

Source of the frame's head: RFC 6455, section 5.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import WSMsgType, web

from control.errors import StateError
from control.web.context import choose_machine, get_context, get_session, note
from control.web.rfb import LookingOnly, NotRfb

PIECE_BYTES = 256 * 1024
HEAD_BYTES = 10
PENDING_MAX_BYTES = 256 * 1024
MESSAGE_MAX_BYTES = 1 << 20
HEARTBEAT_S = 20.0
CONNECT_S = 5.0
SERVER_GONE, NOT_RFB = 4001, 4002

Drain = Callable[[], Awaitable[None]]


class _Pipe(asyncio.BufferedProtocol):
    """Carries what the VNC server sends to the browser, and holds it up while that does not read."""

    def __init__(self, browser: asyncio.Transport) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._browser = browser
        self._buffer = bytearray(HEAD_BYTES + PIECE_BYTES)
        self._server: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.full = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._server = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[HEAD_BYTES:]

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < 126:
            head = struct.pack("!BB", 0x82, nbytes)
        elif nbytes < 1 << 16:
            head = struct.pack("!BBH", 0x82, 126, nbytes)
        else:
            head = struct.pack("!BBQ", 0x82, 127, nbytes)
        begin = HEAD_BYTES - len(head)
        self._buffer[begin:HEAD_BYTES] = head
        if self._browser.is_closing():
            return
        self._browser.write(memoryview(self._buffer)[begin : HEAD_BYTES + nbytes])
        pending = self._browser.get_write_buffer_size()
        if pending:
            self._buffer = bytearray(HEAD_BYTES + PIECE_BYTES)  # the transport may still hold the other
        if pending > PENDING_MAX_BYTES and self._server is not None:
            self._server.pause_reading()
            self.full.set()

    def go_on(self) -> None:
        self.full.clear()
        if self._server is not None and not self._server.is_closing():
            self._server.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def wait_for_room(self) -> None:
        await self._room.wait()


async def show_screen(request: web.Request) -> web.StreamResponse:
    """`GET /api/vms/NAME/screen`: the guest's screen, as noVNC wants it. Viewers' keys and pointers stay here."""
    context, name, session = get_context(request), choose_machine(request), get_session(request)
    context.access.redeem_ticket(request.query.get("ticket", ""), session, name, "screen")
    seen = context.machines.look(name)
    if not seen.is_running or not seen.files.vnc_socket.exists():
        raise StateError(
            f"{name} shows no screen" if seen.is_running else f"{name} does not run",
            state=seen.state,
            required=("RUNNING",),
            hint='start it with display = "vnc"' if seen.is_running else f"unhinged start {name}",
        )
    may_do = session.role == "operator"
    note(request, "screen", name, looks_only=not may_do)
    socket = web.WebSocketResponse(
        protocols=("binary",), heartbeat=HEARTBEAT_S, compress=False, max_msg_size=MESSAGE_MAX_BYTES
    )
    writer = await socket.prepare(request)
    transport = request.transport
    if transport is None:
        return socket
    try:
        await bridge(socket, transport, writer.drain, seen.files.vnc_socket, LookingOnly() if not may_do else None)
    except NotRfb as error:
        await socket.close(code=NOT_RFB, message=str(error).encode()[:100])
    except (OSError, TimeoutError):
        await socket.close(code=SERVER_GONE, message=b"the screen cannot be reached")
    return socket


async def bridge(
    socket: web.WebSocketResponse,
    browser: asyncio.Transport,
    drain: Drain,
    path: Path,
    filtered: LookingOnly | None,
) -> None:
    """Carry bytes both ways until one side ends."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_S):
        server, pipe = await loop.create_unix_connection(lambda: _Pipe(browser), str(path))
    tasks = (
        asyncio.create_task(_carry_to_server(socket, server, pipe, filtered)),
        asyncio.create_task(_let_go_on(pipe, drain)),
    )
    try:
        await asyncio.wait((*tasks, pipe.ended), return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
        if pipe.ended.done() and not socket.closed:
            await socket.close(code=SERVER_GONE, message=b"the machine has stopped, or its screen has")
    finally:
        for task in tasks:
            task.cancel()
        server.abort()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry_to_server(
    socket: web.WebSocketResponse, server: asyncio.Transport, pipe: _Pipe, filtered: LookingOnly | None
) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            raise NotRfb("a message that is not binary")
        data = filtered.pass_on(message.data) if filtered is not None else message.data
        if server.is_closing():
            return
        server.write(data)
        await pipe.wait_for_room()


async def _let_go_on(pipe: _Pipe, drain: Drain) -> None:
    """Read on once a browser that was behind has read."""
    while True:
        await pipe.full.wait()
        with contextlib.suppress(ConnectionError):
            await drain()
        pipe.go_on()
