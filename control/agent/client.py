"""Calls methods of the guest agent over JSON-RPC 2.0 (floor 2); handed a connected socket by `control.vm`.

The guest is not trusted: lines are bounded, answers nobody asked for are counted and dropped, and a guest that breaks
off
fails every pending call at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from control.agent.lines import LineDecoder
from control.errors import AgentCallError, AgentProtocolError, WaitTimeout
from control.log import LOG

DEFAULT_TIMEOUT_S = 30.0
CHUNK_BYTES = 256 * 1024
WRITE_TIMEOUT_S = 10.0
"""A guest that does not read for this long has lost its agent; the port's queue holds far more than one line."""

Notification = Callable[[str, object], Awaitable[None]]
"""Told of the guest's notifications, one at a time: while it is busy the guest has to wait."""

_NOBODY = (0, "", None)
"""What stands for a call that nobody waits for."""


class AgentClient:
    """The host's end of one agent channel. `serve()` must run while calls are made.

    Attributes:
        info: What the agent said of itself at the handshake; empty before.
        ready: Set while an agent that finished the handshake is there.
        dropped: How many lines from the guest were of no use: not JSON, too long, or an answer to nothing.
    """

    def __init__(self, connection: socket.socket, on_notification: Notification) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._on_notification = on_notification
        self._write_lock = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()
        self._pending: dict[str, tuple[int, str, asyncio.Future[Any]]] = {}
        # An identity no earlier connection can have used: late answers to those are then recognised and dropped.
        self._prefix = secrets.token_hex(6)
        self._count = 0
        self._lines = LineDecoder()
        self._useless = 0
        self._handshake: asyncio.Future[Any] | None = None
        self._asked_at = 0
        self._last_line = b""
        self._ended = False
        self.info: Mapping[str, Any] = {}
        self.ready = asyncio.Event()

    @property
    def dropped(self) -> int:
        return self._useless + self._lines.dropped_lines

    def close(self) -> None:
        self._connection.close()

    async def serve(self) -> None:
        """Shake hands as soon as an agent is there, then receive until the channel ends; every pending call then
        fails.
        """
        loop = asyncio.get_running_loop()
        try:
            await self.shake_hands()
            while chunk := await loop.sock_recv(self._connection, CHUNK_BYTES):
                for line in self._lines.feed(chunk):
                    await self._take_line(line)
                # A guest that always has more to say would otherwise be all this event loop ever sees.
                await asyncio.sleep(0)
        except OSError as error:
            LOG.debug("agent channel: %s", error)
        finally:
            self._ended = True
            self.ready.clear()
            self._fail_pending("the guest agent's channel has ended")
            # A line that is half written, its caller perhaps long gone, must not outlive the channel.
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            await asyncio.gather(*self._writes, return_exceptions=True)

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Any:
        """Call `method` and return its result.

        Raises:
            AgentCallError: The agent answered with an error.
            AgentProtocolError: The channel ended, or the agent was restarted, before it answered.
            WaitTimeout: No answer within `timeout_s`; whether the call took effect is unknown.
        """
        answer = await self._send_request(method, params or {})
        return await self._wait_for(answer, method, timeout_s)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification; nothing comes back.

        Raises:
            AgentProtocolError: The channel has ended, or the guest does not read.
        """
        await self._write({"jsonrpc": "2.0", "method": method, "params": params})

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until an agent is there.

        Raises:
            WaitTimeout: None came within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.ready.wait()
        except TimeoutError:
            last_seen = self._last_line.decode("utf-8", "replace")[:200]
            raise WaitTimeout(
                "the guest agent",
                timeout_s,
                last_seen=(f"last line on its port: {last_seen}",) if last_seen else ("nothing came over its port",),
                hint="does the guest run the agent? The built-in image does",
            ) from None

    def forget_agent(self, why: str) -> None:
        """Forget the agent that was there, for the guest was reset or closed its port: its answers will not come."""
        self.ready.clear()
        self._fail_pending(why)

    async def shake_hands(self) -> None:
        """Ask the agent who it is; `ready` is set when it answers, which may be long after a guest has booted.

        Asked already and not answered yet, it is not asked again: the question waits in the port.
        On a channel that has ended nothing happens: `serve` comes to its end, and that is told to who waits.
        """
        try:
            # The newline ends whatever half line an earlier client of ours left in the guest's buffer.
            await self._send_bytes(b"\n")
            if self._handshake is None or self._handshake.done():
                self._asked_at = self._count + 1
                self._handshake = await self._send_request("get_agent_info", {})
                self._handshake.add_done_callback(self._end_handshake)
        except AgentProtocolError as error:
            LOG.debug("agent handshake: %s", error)

    def _end_handshake(self, answer: asyncio.Future[Any]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            return
        info = answer.result()
        if not isinstance(info, dict):
            return
        if self.info and _identity(info) != _identity(self.info):
            self._fail_pending("the guest agent was restarted", before=self._asked_at)
        self.info = info
        self.ready.set()

    async def _send_request(self, method: str, params: Mapping[str, Any]) -> asyncio.Future[Any]:
        self._count += 1
        request_id = f"{self._prefix}-{self._count}"
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Whether or not somebody still waits for it, an answer that fails is not an error nobody saw.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending[request_id] = (self._count, method, answer)
        answer.add_done_callback(lambda _: self._pending.pop(request_id, None))
        try:
            await self._write({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        except BaseException:
            answer.cancel()
            raise
        return answer

    async def _wait_for(self, answer: asyncio.Future[Any], method: str, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise WaitTimeout(f"the guest agent's answer to {method}", timeout_s) from None

    async def _write(self, value: Mapping[str, Any]) -> None:
        await self._send_bytes(json.dumps(value, separators=(",", ":")).encode() + b"\n")

    async def _send_bytes(self, data: bytes) -> None:
        """Send a whole line, even when the caller is cancelled: half a line would swallow the next one."""
        if not self._writes:  # nobody is in the middle of a line
            data = data[self._send_at_once(data) :]
            if not data:
                return
        write = asyncio.create_task(self._send_whole(data))
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        await asyncio.shield(write)

    def _send_at_once(self, data: bytes) -> int:
        """Send what the socket takes without waiting, nearly always all of it; return how much that was."""
        if self._ended:
            raise AgentProtocolError("the guest agent's channel has ended")
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise AgentProtocolError("the guest agent's channel has ended") from error

    async def _send_whole(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        async with self._write_lock:
            if self._ended:
                raise AgentProtocolError("the guest agent's channel has ended")
            try:
                async with asyncio.timeout(WRITE_TIMEOUT_S):
                    await loop.sock_sendall(self._connection, data)
            except TimeoutError:
                self._connection.shutdown(socket.SHUT_RDWR)
                raise AgentProtocolError("the guest does not read from the agent's port any more") from None
            except OSError as error:
                raise AgentProtocolError("the guest agent's channel has ended") from error

    async def _take_line(self, line: bytes) -> None:
        if not line:
            return
        self._last_line = line[:400]
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
            self._useless += 1
        elif isinstance(value.get("method"), str) and "id" not in value:
            await self._on_notification(value["method"], value.get("params"))
        else:
            self._take_answer(value)

    def _take_answer(self, value: dict[str, Any]) -> None:
        request_id = value.get("id")
        _, method, answer = self._pending.get(request_id, _NOBODY) if isinstance(request_id, str) else _NOBODY
        error = value.get("error")
        if answer is None or answer.done():
            self._useless += 1
        elif "result" in value:
            answer.set_result(value["result"])
        elif isinstance(error, dict) and isinstance(error.get("code"), int):
            answer.set_exception(
                AgentCallError(
                    f"{method}: {str(error.get('message', ''))[:500]}",
                    method=method,
                    code=error["code"],
                    data=error.get("data"),
                )
            )
        else:
            answer.set_exception(AgentProtocolError(f"the guest agent's answer to {method} has no result and no error"))

    def _fail_pending(self, why: str, *, before: float = math.inf) -> None:
        """Fail every call that waits for an answer, or only those made before the call number `before`."""
        last_seen = self._last_line.decode("utf-8", "replace")[:200]
        for number, method, answer in list(self._pending.values()):
            if number < before and not answer.done():
                answer.set_exception(
                    AgentProtocolError(
                        f"{why} before it answered {method}",
                        hint=f"last line on its port: {last_seen}" if last_seen else "",
                    )
                )


def _identity(info: Mapping[str, Any]) -> tuple[object, object]:
    """What tells one life of an agent from another."""
    return info.get("boot_id"), info.get("pid")
