"""The supervisor's end of `control.socket` (floor 3): JSON-RPC 2.0, one object in each line (docs/control.md).

Knows nothing of VMs: it reads, checks and bounds what callers send, runs one task for each call, and carries what a
call streams. `control.vm.service` holds the methods.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from control.errors import ControlError, HostError
from control.failure import build_failure
from control.log import LOG
from control.wire.schema import explain

LINE_LIMIT_BYTES = 1024 * 1024
CONNECTIONS_MAX = 256
CALLS_MAX = 32
"""For each connection."""

INPUT_WINDOW_BYTES = 256 * 1024
"""How much a caller may send to a call before it was told that it was taken."""

PIECE_BYTES = 64 * 1024
NOTIFICATIONS = ("input", "signal", "resize", "turn", "cancel")
FAREWELL_S = 2.0
"""How long the answers of the last calls may take to be read, once the VM has ended."""

PARSE_ERROR, INVALID_REQUEST, NO_SUCH_METHOD, INVALID_PARAMS = -32700, -32600, -32601, -32602
"""JSON-RPC 2.0, section 5.1."""

FAILED, CANCELLED = -32000, -32001
"""Ours; the data of the first is a failure (`schemas/failure.json`)."""

_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


class Call:
    """One call under way, as its method sees it."""

    def __init__(self, number: int | str, caller: _Caller) -> None:
        self.number = number
        self._caller = caller
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._held_bytes = 0
        self.on_signal: Callable[[str], Awaitable[None]] | None = None
        self.on_resize: Callable[[int, int], Awaitable[None]] | None = None
        self.on_turn: Callable[[str], None] | None = None

    async def send_output(self, stream: str, data: bytes | bytearray | memoryview) -> None:
        """Send bytes to the caller; waits for one that does not read."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE_BYTES):
            piece = base64.b64encode(view[start : start + PIECE_BYTES]).decode("ascii")
            await self.notify("output", {"stream": stream, "data": piece})

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Tell the caller something about this call."""
        await self._caller.send({"jsonrpc": "2.0", "method": method, "params": {"call": self.number, **params}})

    async def read_input(self) -> bytes | None:
        """Return the next bytes the caller sends to this call; None at their end."""
        data = await self._input.get()
        if data is not None:
            self._held_bytes -= len(data)
            await self.notify("taken", {"bytes": len(data)})
        return data

    def take_input(self, data: bytes, *, end: bool) -> bool:
        """Keep what the caller sent; False when it is more than it may send."""
        self._held_bytes += len(data)
        if data:
            self._input.put_nowait(data)
        if end:
            self._input.put_nowait(None)
        return self._held_bytes <= INPUT_WINDOW_BYTES


Method = Callable[[Call, dict[str, Any]], Awaitable[dict[str, Any]]]


class _Caller:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, methods: Mapping[str, Method]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._methods = methods
        self._calls: dict[int | str, Call] = {}
        self._tasks: dict[int | str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    async def serve(self) -> None:
        """Answer calls until the caller hangs up; what it had under way is then ended."""
        try:
            while line := await self._read_line():
                if not await self._take(line):
                    break
        except ConnectionError as error:
            LOG.debug("a caller is gone: %s", error)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def hang_up(self) -> None:
        """Let `serve` end, as if the caller had gone."""
        self._writer.transport.abort()

    async def send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        await self._writer.drain()

    async def _read_line(self) -> bytes:
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return b""  # hung up, perhaps in the middle of a line
        except asyncio.LimitOverrunError:
            await self._refuse(None, PARSE_ERROR, f"a line is longer than {LINE_LIMIT_BYTES} bytes")
            return b""

    async def _take(self, line: bytes) -> bool:
        """Do what a line asks for; False when nothing more can be understood."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            await self._refuse(None, PARSE_ERROR, f"this is not JSON: {error}")
            return False
        wrong = explain("control/request", message)
        if wrong:
            number = message.get("id") if isinstance(message, dict) else None
            await self._refuse(number if isinstance(number, int | str) else None, INVALID_REQUEST, wrong)
            return True
        if "id" in message:
            await self._begin(message["id"], message["method"], message.get("params", {}))
            return True
        return await self._take_notification(message["method"], message.get("params", {}))

    async def _begin(self, number: int | str, name: str, params: dict[str, Any]) -> None:
        method = self._methods.get(name)
        if method is None:
            await self._refuse(number, NO_SUCH_METHOD, f"there is no method {name[:80]}")
        elif number in self._calls or len(self._calls) >= CALLS_MAX:
            await self._refuse(number, INVALID_REQUEST, "this id is in use, or too many calls are under way")
        elif wrong := explain(f"control/{name}.params", params):
            await self._refuse(number, INVALID_PARAMS, wrong)
        else:
            call = Call(number, self)
            self._calls[number] = call
            self._tasks[number] = asyncio.create_task(self._run(call, method, params))

    async def _run(self, call: Call, method: Method, params: dict[str, Any]) -> None:
        try:
            try:
                answer: dict[str, Any] = {"result": await method(call, params)}
            except ControlError as error:
                answer = {"error": {"code": FAILED, "message": str(error), "data": build_failure(error)}}
            except OSError as error:
                failure = build_failure(HostError(f"{error.strerror or error}: {error.filename or 'this host'}"))
                answer = {"error": {"code": FAILED, "message": failure["message"], "data": failure}}
            except Exception as error:  # one call's fault of ours must not end the others, nor the VM's supervisor
                LOG.exception("a call failed")
                failure = build_failure(ControlError(f"an error of ours: {error!r}", hint="please report it"))
                answer = {"error": {"code": FAILED, "message": failure["message"], "data": failure}}
            with contextlib.suppress(ConnectionError):  # then nobody waits for the answer
                await self.send({"jsonrpc": "2.0", "id": call.number, **answer})
        except asyncio.CancelledError:
            error_ = {"code": CANCELLED, "message": "the call was cancelled"}
            self._writer.write(json.dumps({"jsonrpc": "2.0", "id": call.number, "error": error_}).encode() + b"\n")
            raise
        finally:
            self._calls.pop(call.number, None)
            self._tasks.pop(call.number, None)

    async def _take_notification(self, name: str, params: dict[str, Any]) -> bool:
        wrong = explain(f"control/{name}.params", params) if name in NOTIFICATIONS else name
        if wrong:
            LOG.debug("a notification of no use: %s", wrong)
            return True
        number = params["call"]
        call = self._calls.get(number)
        if call is None:
            return True  # it has just ended
        if name == "input":
            try:
                data = base64.b64decode(params.get("data", ""))
            except ValueError:
                return False  # what it meant is lost, and with it the rest of the input
            return call.take_input(data, end=params.get("end", False))
        if name == "cancel":
            self._tasks[number].cancel()
        try:
            if name == "signal" and call.on_signal is not None:
                await call.on_signal(params["name"])
            elif name == "resize" and call.on_resize is not None:
                await call.on_resize(params["rows"], params["columns"])
            elif name == "turn" and call.on_turn is not None:
                call.on_turn(params["wants"])
        except ControlError as error:
            LOG.debug("%s had no effect: %s", name, error)  # what it was meant for has ended
        return True

    async def _refuse(self, number: int | str | None, code: int, why: str) -> None:
        await self.send({"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": why}})


@contextlib.asynccontextmanager
async def serve(path: Path, methods: Mapping[str, Method]) -> AsyncIterator[None]:
    """Answer calls at the socket `path` during the body; on leaving, answers under way are still given.

    The caller holds the instance's lock, so whatever is at `path` was left by a supervisor that is gone.

    Raises:
        HostError: The socket cannot be made.
    """
    callers: dict[_Caller, asyncio.Task[None] | None] = {}

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(callers) >= CONNECTIONS_MAX or not _is_ours(writer):
            writer.close()
            return
        caller = _Caller(reader, writer, methods)
        callers[caller] = asyncio.current_task()
        try:
            await caller.serve()
        finally:
            del callers[caller]

    try:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(take, path, limit=LINE_LIMIT_BYTES)
        finally:
            os.umask(before)
    except OSError as error:
        raise HostError(f"{path} cannot be made: {error.strerror}", hint="make room on that disk") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while any(caller.busy for caller in callers):  # noqa: ASYNC110 - nobody is told when a task set is empty
                    await asyncio.sleep(0.005)
        tasks = [task for task in callers.values() if task is not None]
        for caller in list(callers):
            caller.hang_up()
        await asyncio.gather(*tasks, return_exceptions=True)


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    """Whether the other end belongs to our user, or to root."""
    connection: socket.socket = writer.get_extra_info("socket")
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (os.getuid(), 0)
