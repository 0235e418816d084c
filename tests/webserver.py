"""Runs `unhinged web` on a desk, and talks to it as a program or as a browser would (imported by several tiers)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType

from control.paths import cache_directory
from control.wire.schema import explain
from tests.qemu.fleets import COMMAND, Desk

END_WITHIN_S = 20.0


@dataclass
class Server:
    """A server that runs, and the desk whose machines it shows."""

    desk: Desk
    url: str
    token: str
    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return self.url.rstrip("/")

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    def audit(self) -> list[dict[str, Any]]:
        path = self.desk.runtime / "web" / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def run_server(desk: Desk, *words: str, port: int = 0) -> Iterator[Server]:
    """Serve the machines of `desk` during the body; the server ends as Ctrl-C ends it, without a fault of its own."""
    environment = {**os.environ, "HOME": str(desk.directory), "XDG_CACHE_HOME": str(cache_directory().parent)}
    process = subprocess.Popen(
        [*COMMAND, "--json", "web", "--port", str(port), *words], cwd=desk.directory, env=environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    said: list[str] = []
    stderr = process.stderr
    hearing = threading.Thread(target=lambda: said.extend(stderr), name="server's stderr")
    hearing.start()
    try:
        document = _read_document(process.stdout)
        assert not explain("cli/web", document), (document, said)
        yield Server(desk, document["url"], document["token"], process, said)
        process.send_signal(signal.SIGINT)
        assert process.wait(END_WITHIN_S) == 0, said
    finally:
        process.kill()
        process.wait()
        hearing.join()
        process.stdout.close()
        stderr.close()
    assert not any("Traceback" in line or "never awaited" in line for line in said), "".join(said)


def _read_document(stdout: Any) -> Any:
    """Read the JSON document that the server prints, and goes on."""
    text = ""
    for line in stdout:
        text += line
        if line.startswith("}"):
            break
    return json.loads(text)


class Person:
    """One who talks to a server: with a cookie, as a browser, or with the token, as a program."""

    def __init__(self, server: Server, session: aiohttp.ClientSession, *, is_browser: bool) -> None:
        self.server = server
        self.session = session
        self.is_browser = is_browser

    @property
    def headers(self) -> dict[str, str]:
        if self.is_browser:
            return {"Origin": self.server.origin}
        return {"Authorization": f"Bearer {self.server.token}"}

    async def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Make a request, and return the status and the document of its answer; errors fit their schema."""
        url = self.server.origin + path
        given = {**self.headers, **(headers or {})}
        async with self.session.request(method, url, json=body, headers=given, allow_redirects=False) as response:
            document = await response.json()
        if response.status != 200:
            assert not explain("cli/error", document), document
        return response.status, document

    async def get(self, path: str) -> Any:
        status, document = await self.ask("GET", path)
        assert status == 200, document
        return document

    async def do(self, path: str, body: Any = None) -> Any:
        status, document = await self.ask("POST", path, body if body is not None else {})
        assert status == 200, document
        return document

    async def ticket(self, name: str, purpose: str, console: str = "") -> str:
        body = {"for": purpose, **({"console": console} if console else {})}
        ticket: str = (await self.do(f"/api/vms/{name}/tickets", body))["ticket"]
        return ticket

    @asynccontextmanager
    async def socket(
        self, name: str, what: str, *, console: str = "", ticket: str | None = None, **query: str
    ) -> AsyncIterator[ClientWebSocketResponse]:
        """Open a WebSocket with a ticket of its own."""
        if ticket is None:
            ticket = await self.ticket(name, what, console)
        query |= {"ticket": ticket, **({"console": console} if console else {})}
        url = f"{self.server.origin}/api/vms/{name}/{what}"
        async with self.session.ws_connect(url, params=query, headers=self.headers, max_msg_size=0) as opened:
            yield opened


@asynccontextmanager
async def come_as_program(server: Server) -> AsyncIterator[Person]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
        yield Person(server, session, is_browser=False)


@asynccontextmanager
async def come_as_browser(server: Server, **login: str) -> AsyncIterator[Person]:
    """Somebody with a cookie: of the token, or of a user and a password."""
    jar = aiohttp.CookieJar(unsafe=True)  # cookies of an address, which browsers keep too
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False), cookie_jar=jar) as session:
        person = Person(server, session, is_browser=True)
        await person.do("/api/login", login or {"token": server.token})
        yield person


async def read_until(opened: ClientWebSocketResponse, wanted: bytes, *, within_s: float = 30.0) -> bytes:
    """Read what a console says until it has said `wanted`."""
    seen = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for message in opened:
                if message.type is WSMsgType.BINARY:
                    looked_at = max(0, len(seen) - len(wanted))
                    seen += message.data
                    if seen.find(wanted, looked_at) >= 0:
                        return bytes(seen)
    except TimeoutError:
        raise AssertionError(f"{wanted!r} does not come; last came {bytes(seen[-300:])!r}") from None
    raise AssertionError(f"it ended after {bytes(seen[-300:])!r}")


async def read_word(opened: ClientWebSocketResponse, kind: str, *, within_s: float = 30.0) -> Any:
    """Read until the server tells something of the type `kind`, and return it."""

    async with asyncio.timeout(within_s):
        async for message in opened:
            if message.type is WSMsgType.TEXT and (word := json.loads(message.data))["type"] == kind:
                return word
    raise AssertionError(f"it ended without {kind}")


async def read_close(opened: ClientWebSocketResponse, *, within_s: float = 30.0) -> int:
    """Read until the server closes, and return its code; what had been on its way is let go."""
    async with asyncio.timeout(within_s):
        while (message := await opened.receive()).type is not WSMsgType.CLOSE:
            assert message.type in (WSMsgType.BINARY, WSMsgType.TEXT), message
    return int(message.data)


def send_raw(port: int, data: bytes, *, within_s: float = 10.0) -> bytes:
    """Send bytes that no client would, and return what comes until the server hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=within_s) as connection:
        connection.sendall(data)
        seen = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                seen += chunk
        return seen


def read_memory_kb(pid: int) -> int:
    """What a process holds for itself, and its part of what it shares (proc(5), Pss)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("the kernel does not say")
