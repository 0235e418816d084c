"""The web server on machines that are quick to start: what it does, and whom and what it does not let in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from yarl import URL

from control.wire.schema import explain
from tests.qemu.fleets import Desk, open_desk, wait_for
from tests.webserver import (
    Person,
    Server,
    come_as_browser,
    come_as_program,
    read_close,
    read_memory_kb,
    read_until,
    read_word,
    run_server,
    send_raw,
)

SHELL = """
[vm.shell]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
env = { PS1 = "ready> ", TERM = "dumb" }

[vm.other]
kind = "process"
command = ["cat"]
"""
PROGRAM_MAX_KB = 120 * 1024


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.declare("screen", more=SHELL)
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


@pytest.fixture
def server(desk: Desk) -> Iterator[Server]:
    with run_server(desk) as server:
        yield server


@pytest.fixture
async def person(server: Server) -> AsyncIterator[Person]:
    async with come_as_program(server) as person:
        yield person


def add_user(desk: Desk, name: str, role: str, password: str) -> None:
    process = desk.begin("web", "--add-user", name, "--role", role, stdin=-1)
    stdout, stderr = process.communicate(password + "\n", timeout=60)
    assert process.returncode == 0, stdout + stderr


# -- what it does --------------------------------------------------------------------------------------------------


async def test_machines_are_started_seen_and_stopped(person: Person) -> None:
    listed = await person.get("/api/vms")
    assert [vm["name"] for vm in listed["vms"]] == ["screen", "shell", "other"]
    assert not explain("web/vms", listed)
    assert (await person.do("/api/vms/shell/start")) == {"name": "shell", "started": True}
    assert (await person.do("/api/vms/shell/start")) == {"name": "shell", "started": False}
    status = await person.get("/api/vms/shell")
    assert not explain("web/status", status)
    assert (status["state"], status["kind"], status["consoles"]) == ("RUNNING", "process", ["console"])
    assert (await person.do("/api/vms/shell/stop", {"timeout_s": 5}))["stopped"]
    assert (await person.get("/api/vms/shell"))["pid"] is None
    actions = [row["action"] for row in person.server.audit()]
    assert actions.count("start") == 2 and "stop" in actions


async def test_what_is_asked_wrongly_is_told(person: Person) -> None:
    for method, path, body, wanted in (
        ("GET", "/api/vms/nobody", None, 404),
        ("GET", "/api/vms/..%2f..", None, 404),
        ("POST", "/api/vms/shell/start", {"paused": "yes"}, 400),
        ("POST", "/api/vms/shell/start", [], 400),
        ("POST", "/api/vms/shell/pause", {}, 409),
        ("POST", "/api/vms/shell/tickets", {"for": "everything"}, 400),
        ("GET", "/api/vms/shell/logs/shadow", None, 404),
        ("GET", "/api/nothing", None, 404),
        ("DELETE", "/api/vms", None, 405),
        ("POST", "/api/vms/screen/keys", {"keys": "ctrl-nothing"}, 409),
    ):
        status, document = await person.ask(method, path, body)
        assert status == wanted, (path, document)
        assert document["error"]["message"]


async def test_live_state_comes_by_itself(person: Person) -> None:
    url = person.server.origin + "/api/events"
    async with asyncio.timeout(30), person.session.get(url, headers=person.headers) as events:
        first = await read_event(events)
        assert {vm["name"]: vm["state"] for vm in first["vms"]} == {
            "screen": "DEFINED", "shell": "DEFINED", "other": "DEFINED",
        }  # fmt: skip
        await person.do("/api/vms/shell/start")
        while not any(vm["name"] == "shell" and vm["state"] == "RUNNING" for vm in first["vms"]):
            first = await read_event(events)
        assert [vm["name"] for vm in first["vms"]] == ["shell"], "only what has changed is told"


async def read_event(events: aiohttp.ClientResponse) -> Any:
    while not (line := await events.content.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return json.loads(line[6:])


async def test_a_configuration_that_changes_is_seen_and_one_that_is_broken_is_told(person: Person) -> None:
    desk = person.server.desk
    desk.write(SHELL + '\n[vm.third]\nkind = "process"\ncommand = ["cat"]\n')
    assert [vm["name"] for vm in (await person.get("/api/vms"))["vms"]] == ["shell", "other", "third"]
    desk.write("[vm.shell\n")
    status, document = await person.ask("GET", "/api/vms")
    assert status == 400 and "unhinged.toml" in document["error"]["message"]
    desk.write(SHELL)
    assert len((await person.get("/api/vms"))["vms"]) == 2


async def test_one_types_and_all_see_it(person: Person) -> None:
    await person.do("/api/vms/shell/start")
    async with (
        come_as_browser(person.server) as other,
        person.socket("shell", "console") as mine,
        other.socket("shell", "console") as theirs,
    ):
        await mine.send_bytes(b"echo $((6*7))\r")
        assert (await read_word(mine, "turn"))["turn"] == "yours"
        for opened in (mine, theirs):
            assert b"42" in await read_until(opened, b"\n42")
        await theirs.send_bytes(b"lost\r")
        refused = await read_word(theirs, "refused")
        assert "token at 127.0.0.1" in refused["holder"]
        await theirs.send_str(json.dumps({"type": "turn", "wants": "steal"}))
        assert (await read_word(theirs, "turn"))["turn"] == "yours"
        await theirs.send_bytes(b"echo $((7*7))\r")
        assert b"49" in await read_until(theirs, b"\n49")
        assert b"lost" not in await read_until(mine, b"\n49")


async def test_a_console_goes_on_where_it_was_and_over_a_restart(person: Person) -> None:
    await person.do("/api/vms/shell/start")
    async with person.socket("shell", "console") as opened:
        attached = await read_word(opened, "attached")
        await opened.send_bytes(b"echo first\r")
        seen = await read_until(opened, b"\nfirst\r\nready> ")
    position = attached["position"] + len(seen)
    query = {"run": attached["run"], "from": str(position)}
    async with person.socket("shell", "console", **query) as opened:
        assert (await read_word(opened, "attached"))["position"] == position
        await opened.send_bytes(b"echo second\r")
        seen = await read_until(opened, b"\nsecond")
        assert seen.startswith(b"echo second") and b"first" not in seen
        await person.do("/api/vms/shell/stop", {"timeout_s": 5})
        assert (await read_word(opened, "ended"))["state"] == "STOPPED"
        await person.do("/api/vms/shell/start")
        again = await read_word(opened, "attached")
        assert again["run"] != attached["run"]
        await opened.send_bytes(b"echo third\r")
        await read_until(opened, b"\nthird")


async def test_what_a_flood_leaves_out_is_told_and_typing_works_in_it(person: Person) -> None:
    """A browser that shows little is shown the newest; another one gets every byte."""
    await person.do("/api/vms/shell/start")
    async with person.socket("shell", "console", flow="ack") as slow, person.socket("shell", "console") as quick:
        await quick.send_bytes(b"yes 0123456789abcdef | head -n 2000000; echo e''nd\r")
        whole = await read_until(quick, b"\nend", within_s=60)
        assert whole.count(b"0123456789abcdef\r\n") == 2_000_000
        await slow.send_str(json.dumps({"type": "ack", "bytes": 600_000}))
        assert (await read_word(slow, "skipped"))["bytes"] > 10_000_000
        shown = 0
        async with asyncio.timeout(60):
            seen = b""
            while b"\nend" not in seen:
                message = await slow.receive()
                if message.type is WSMsgType.BINARY:
                    seen = (seen + message.data)[-400_000:]
                    shown += len(message.data)
                    await slow.send_str(json.dumps({"type": "ack", "bytes": 600_000 + shown}))
        await slow.send_bytes(b"ignored: the other has the keyboard\r")
        assert await read_word(slow, "refused")


async def test_the_screen_is_bridged_to_the_vnc_server(person: Person) -> None:
    await person.do("/api/vms/screen/start")
    width = 0
    while width != 720:  # the text mode that SeaBIOS sets; nothing tells when it does
        async with person.socket("screen", "screen") as opened:
            width, _ = await greet_vnc(opened)
    async with person.socket("screen", "screen") as opened:
        width, height = await greet_vnc(opened)
        pixels = await ask_for_pixels(opened, width, height)
        assert len(pixels) == 4 * width * height and any(pixels), "SeaBIOS has written on it"


async def greet_vnc(opened: aiohttp.ClientWebSocketResponse) -> tuple[int, int]:
    """Speak RFB 3.8 up to ServerInit (RFC 6143, 7.1 to 7.3), and return the size of the screen."""
    stream = _Stream(opened)
    assert await stream.read(12) == b"RFB 003.008\n"
    await opened.send_bytes(b"RFB 003.008\n")
    count = (await stream.read(1))[0]
    assert 1 in await stream.read(count)
    await opened.send_bytes(b"\1")
    assert await stream.read(4) == b"\0\0\0\0"
    await opened.send_bytes(b"\1")
    width, height = struct.unpack("!HH", await stream.read(4))
    await stream.read(16)
    await stream.read(struct.unpack("!I", await stream.read(4))[0])
    return width, height


async def ask_for_pixels(opened: aiohttp.ClientWebSocketResponse, width: int, height: int) -> bytes:
    """Ask for the whole screen, raw, and return the bytes of its rectangles."""
    stream = _Stream(opened)
    await opened.send_bytes(struct.pack("!BxHi", 2, 1, 0) + struct.pack("!BBHHHH", 3, 0, 0, 0, width, height))
    pixels = b""
    while len(pixels) < 4 * width * height:
        assert (await stream.read(2))[0] == 0
        for _ in range(struct.unpack("!H", await stream.read(2))[0]):
            _, _, wide, high, encoding = struct.unpack("!HHHHi", await stream.read(12))
            assert encoding == 0
            pixels += await stream.read(4 * wide * high)
    return pixels


class _Stream:
    """Reads so many bytes from a WebSocket, wherever its messages end."""

    def __init__(self, opened: aiohttp.ClientWebSocketResponse) -> None:
        self._opened = opened
        self._rest = b""

    async def read(self, count: int) -> bytes:
        async with asyncio.timeout(30):
            while len(self._rest) < count:
                self._rest += await self._opened.receive_bytes()
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken


async def test_a_screen_that_goes_is_told(person: Person) -> None:
    await person.do("/api/vms/screen/start")
    async with person.socket("screen", "screen") as opened:
        await greet_vnc(opened)
        await person.do("/api/vms/screen/kill")
        assert await read_close(opened) == 4001
    status, document = await person.ask("GET", "/api/vms/screen/screen?ticket=none", headers=UPGRADE)
    assert status == 403, document


UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}  # fmt: skip


async def test_the_picture_of_a_screen(person: Person) -> None:
    await person.do("/api/vms/screen/start")
    url = person.server.origin + "/api/vms/screen/screen.png"
    async with person.session.get(url, headers=person.headers) as response:
        assert response.content_type == "image/png"
        assert (await response.read()).startswith(b"\x89PNG")


async def test_native_viewers_are_given_files(person: Person) -> None:
    desk = person.server.desk
    desk.start("screen")
    url = person.server.origin + "/api/vms/screen/screen."
    async with person.session.get(url + "vnc", headers=person.headers) as response:
        assert f"ServerName={desk.files('screen').vnc_socket}\n" in await response.text()
        assert 'filename="screen.vnc"' in response.headers["Content-Disposition"]
    assert (await person.ask("GET", "/api/vms/screen/screen.vv"))[0] == 404, "it has no SPICE"
    assert (await person.ask("GET", "/api/vms/screen/screen.exe"))[0] == 404


async def test_the_description_of_the_api_is_served(person: Person) -> None:
    document = await person.get("/api/openapi.json")
    assert document["paths"]["/api/vms/{name}/start"]["post"]["x-needs"] == "operator"


# -- whom it lets in -----------------------------------------------------------------------------------------------


def fill_in(path: str) -> str:
    """A path of the description, about the machine `shell`."""
    for name, value in (("name", "shell"), ("log", "serial"), ("kind", "vnc")):
        path = path.replace(f"{{{name}}}", value)
    return path


async def test_nobody_is_let_in_without_a_session(server: Server) -> None:
    """Each request of the description, but those that say of themselves that anybody may make them."""
    async with aiohttp.ClientSession() as session:
        async with session.get(server.origin + "/api/openapi.json") as response:
            document = await response.json()
        tried = 0
        for path, methods in document["paths"].items():
            for method, about in methods.items():
                if "security" not in about:
                    continue
                url = server.origin + fill_in(path)
                async with session.request(method, url, json={}) as response:
                    assert response.status == 401, (method, path, await response.text())
                tried += 1
        assert tried > 30


async def test_a_viewer_looks_and_does_nothing(server: Server) -> None:
    """Each request that needs an operator is refused; a console may be read, and not typed on."""
    add_user(server.desk, "vera", "viewer", "long enough")
    server.desk.start("screen")
    assert server.desk.run("start", "shell").exit_code == 0
    async with come_as_browser(server, user="vera", password="long enough") as viewer:
        document = await viewer.get("/api/openapi.json")
        refused = 0
        for path, methods in document["paths"].items():
            for method, about in methods.items():
                if about.get("x-needs") != "operator":
                    continue
                status, _ = await viewer.ask(method.upper(), fill_in(path), {})
                assert status == 403, (method, path)
                refused += 1
        assert refused > 20
        assert len((await viewer.get("/api/vms"))["vms"]) == 3
        async with viewer.socket("shell", "console") as opened:
            await opened.send_bytes(b"echo typed\r")
            assert "may look" in (await read_word(opened, "refused"))["why"]
        async with viewer.socket("screen", "screen") as opened:
            await greet_vnc(opened)
            await opened.send_bytes(b"\x04\x01\x00\x00\x00\x00\x00\x61")
            await opened.send_bytes(b"\x99 garbage")
            assert await read_close(opened) == 4002
    assert "typed" not in server.desk.run("logs", "shell").stdout


async def test_a_link_lets_in_to_one_machine(server: Server, person: Person) -> None:
    path = (await person.do("/api/vms/shell/shares", {"minutes": 5}))["path"]
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        guest = Person(server, session, is_browser=True)
        async with session.get(server.origin + path) as response:
            assert response.status == 200 and "/vm/shell" in await response.text()
        assert await guest.get("/api/me") == {"user": "share", "role": "viewer", "vm": "shell"}
        assert [vm["name"] for vm in (await guest.get("/api/vms"))["vms"]] == ["shell"]
        assert (await guest.ask("GET", "/api/vms/other"))[0] == 404
        assert (await guest.ask("POST", "/api/vms/shell/start", {}))[0] == 403
        assert (await guest.ask("POST", "/api/vms/other/tickets", {"for": "console"}))[0] == 404
        assert (await person.ask("DELETE", "/api/vms/shell/shares", {}))[0] == 200
        assert (await guest.ask("GET", "/api/me"))[0] == 401


async def test_cookies_are_for_browsers_only_and_for_this_server(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        body, headers = {"token": server.token}, {"Origin": server.origin}
        async with session.post(server.origin + "/api/login", json=body, headers=headers) as response:
            cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and f"unhinged-{server.port}" in cookie
        async with session.get(f"{server.url}?token={server.token}", allow_redirects=False) as response:
            assert server.token not in await response.text()
            assert response.headers["Referrer-Policy"] == "no-referrer"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "script-src 'self';" in policy
            assert response.headers["X-Frame-Options"] == "DENY"


async def test_other_pages_and_other_names_are_refused(server: Server) -> None:
    async with come_as_browser(server) as browser:
        path = "/api/vms/shell/start"
        for headers, wanted in (
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": server.origin.replace("http:", "https:")}, 403),
            ({"Origin": f"http://localhost:{server.port}"}, 403),
            ({"Host": f"evil.example:{server.port}"}, 421),
            ({"Host": f"evil.example:{server.port}", "Origin": f"http://evil.example:{server.port}"}, 421),
        ):
            status, document = await browser.ask("POST", path, {}, headers=headers)
            assert status == wanted, (headers, document)
        cookies = browser.session.cookie_jar.filter_cookies(URL(server.url))
        cookie = "; ".join(f"{name}={value.value}" for name, value in cookies.items())
        answered = send_raw(
            server.port,
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {cookie}\r\n"
            "Content-Length: 2\r\nConnection: close\r\n\r\n{}".encode(),
        )
        assert b" 403 " in answered.split(b"\r\n")[0], "a cookie without an Origin is no browser of ours"
        ticket = await browser.ticket("shell", "console", "console")
        with pytest.raises(WSServerHandshakeError) as caught:
            await browser.session.ws_connect(
                f"{server.origin}/api/vms/shell/console?ticket={ticket}", headers={"Origin": "http://evil.example"}
            )
        assert caught.value.status == 403
        assert (await browser.get("/api/vms/shell"))["pid"] is None, "nothing of it was done"


async def test_tickets_are_good_once_and_for_one_thing(server: Server, person: Person) -> None:
    await person.do("/api/vms/shell/start")
    used = await person.ticket("shell", "console", "console")
    async with person.socket("shell", "console", console="console", ticket=used):
        pass  # it was good the first time
    async with come_as_browser(server) as other:
        for whose, name, ticket in (
            (person, "shell", used),
            (person, "shell", "made-up"),
            (person, "shell", ""),
            (person, "other", await person.ticket("shell", "console", "console")),
            (person, "shell", await person.ticket("screen", "screen")),
            (other, "shell", await person.ticket("shell", "console", "console")),
        ):
            with pytest.raises(WSServerHandshakeError) as caught:
                async with whose.socket(name, "console", console="console", ticket=ticket):
                    pytest.fail("it was let in")
            assert caught.value.status == 403


async def test_guessing_is_slowed_down(server: Server) -> None:
    async with aiohttp.ClientSession() as session:
        statuses = []
        for number in range(14):
            async with session.get(server.origin, params={"token": f"guess{number}"}) as response:
                statuses.append(response.status)
        assert statuses[:10] == [403] * 10 and statuses[-1] == 429
        async with session.post(
            server.origin + "/api/login", json={"token": server.token}, headers={"Origin": server.origin}
        ) as response:
            assert response.status == 429 and int(response.headers["Retry-After"]) > 0


async def test_sessions_outlive_the_server(desk: Desk) -> None:
    with run_server(desk) as server:
        port = server.port
        async with come_as_browser(server) as browser:
            cookies = {
                name: value.value for name, value in browser.session.cookie_jar.filter_cookies(URL(server.url)).items()
            }
    with run_server(desk, port=port) as server:
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
            session.get(server.origin + "/api/me", cookies=cookies) as response,
        ):
            assert (await response.json())["user"] == "token"


# -- what it puts up with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/users.py", "/static//etc/passwd",
        "/static/..%5cserver.py", "/static/%00", "/libraries/novnc/../../web/archives", "/libraries/xterm/..%2f..%2f",
        "/libraries/xterm/package.json", "/libraries/nothing/lib/x.js", "/static/", "/vm/../../etc/passwd",
    ],
)  # fmt: skip
async def test_paths_do_not_lead_out(server: Server, path: str) -> None:
    answered = send_raw(server.port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert answered.split(b" ")[1] in (b"404", b"400"), answered[:300]


async def test_garbage_half_open_and_oversize_disturb_nobody(server: Server, person: Person) -> None:
    before = read_memory_kb(server.process.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        half = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        half.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        assert len((await person.get("/api/vms"))["vms"]) == 3
        half.settimeout(30)
        assert half.recv(1) == b"", "who does not finish a request is hung up on"
    for data, wanted in (
        (b"\x16\x03\x01garbage\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"400"),
        (b"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n" + b"{" * 3_000_000, b"413"),
    ):
        assert wanted in send_raw(server.port, data).split(b"\r\n")[0]
    assert len((await person.get("/api/vms"))["vms"]) == 3
    assert read_memory_kb(server.process.pid) < before + 40 * 1024


async def test_an_upload_that_breaks_off_leaves_nothing(server: Server, person: Person) -> None:
    head = (
        f"PUT /api/vms/shell/files?path=/root/x HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Length: 1000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"x" * 1000)
        wait_for(lambda: list((server.desk.runtime / "web").glob("transfer.*")))
    wait_for(lambda: not list((server.desk.runtime / "web").glob("transfer.*")))
    assert (await person.ask("PUT", "/api/vms/shell/files?path=/root/"))[0] == 400
    assert (await person.ask("PUT", "/api/vms/shell/files?path=relative"))[0] == 400
    assert (await person.ask("GET", "/api/vms/shell/files?path=/a%00b"))[0] == 400


async def test_frames_that_are_none_end_their_own_socket_only(person: Person) -> None:
    await person.do("/api/vms/shell/start")
    async with person.socket("shell", "console") as good:
        await read_until(good, b"ready> ")
        async with person.socket("shell", "console") as bad:
            for word in ("{", "[]", '{"type": "resize", "rows": "x"}', '{"type": 7}', '{"type": "ack", "bytes": null}'):
                await bad.send_str(word)
            assert "none" in (await read_word(bad, "note"))["text"]
            await bad.send_bytes(b"x" * 1_000_000)
            assert await read_close(bad) == 1009, "too big (RFC 6455, 7.4.1)"
        await good.send_bytes(b"echo $((6*7))\r")
        await read_until(good, b"\n42")


def find_transport(opened: aiohttp.ClientWebSocketResponse) -> asyncio.Transport:
    assert opened._conn is not None
    transport = opened._conn.transport
    assert isinstance(transport, asyncio.Transport)
    return transport


async def test_a_browser_that_stops_reading_costs_nobody_anything(person: Person) -> None:
    """Five read nothing of a flood, one does: it comes through, and no memory is taken for the others."""
    await person.do("/api/vms/shell/start")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            stalled = await stack.enter_async_context(person.socket("shell", "console"))
            transport = find_transport(stalled)
            transport.pause_reading()
            stack.callback(transport.abort)
        reader = await stack.enter_async_context(person.socket("shell", "console"))
        before = read_memory_kb(person.server.process.pid)
        await reader.send_bytes(b"yes | head -c 30000000; echo e''nd\r")
        await read_until(reader, b"\nend", within_s=60)
        assert read_memory_kb(person.server.process.pid) < before + 20 * 1024


async def test_a_vnc_server_that_talks_garbage_is_no_danger(person: Person) -> None:
    """What it says goes to the browser, whose own it is to see that it is none; memory stays bounded."""
    desk = person.server.desk
    desk.start("screen")
    path = desk.files("screen").vnc_socket
    path.unlink()
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while sent < 200_000_000:
                writer.write(os.urandom(65536))
                sent += 65536
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(talk, path)
    async with server, person.socket("screen", "screen") as opened:
        before = read_memory_kb(person.server.process.pid)
        transport = find_transport(opened)
        transport.pause_reading()
        # Nothing tells that no more can be sent: what was sent stands still.
        last = -1
        while last != sent:
            last = sent
            await asyncio.sleep(0.3)
        assert sent < 60_000_000, "a browser that does not read holds the server up"
        assert read_memory_kb(person.server.process.pid) < before + 20 * 1024
        transport.resume_reading()
        seen = 0
        async with asyncio.timeout(60):
            while (message := await opened.receive()).type is WSMsgType.BINARY:
                seen += len(message.data)
        assert seen == sent
        assert (message.type, message.data) == (WSMsgType.CLOSE, 4001)


# -- how it begins and ends ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_named(server: Server) -> None:
    done = server.desk.run("web", "--port", str(server.port))
    assert done.exit_code == 1
    assert f"127.0.0.1 port {server.port} cannot be listened at" in done.stderr and "--port 0" in done.stderr


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--address", "nowhere"), "no IP address"),
        (("--certificate", "c.pem"), "go together"),
        (("--tls", "--no-tls"), "excludes"),
        (("--certificate", "none.pem", "--key", "none.pem"), "cannot be read"),
        (("--certificate", "unhinged.toml", "--key", "unhinged.toml"), "no certificate"),
        (("--upload-limit", "much"), "much"),
        (("--remove-user", "nobody"), "no user"),
        (("--port", "70000"), "port"),
    ],
)
def test_options_that_cannot_be_are_named(desk: Desk, words: tuple[str, ...], wanted: str) -> None:
    done = desk.run("web", *words)
    assert done.exit_code in (1, 2) and wanted in done.stderr, done


async def test_it_serves_tls_with_a_certificate_of_its_own(desk: Desk) -> None:
    with run_server(desk, "--tls") as server:
        assert server.url.startswith("https://127.0.0.1:")
        async with come_as_browser(server) as browser:
            assert (await browser.get("/api/me"))["role"] == "operator"
        assert wait_for((desk.runtime / "web" / "key.pem").exists)
        assert (desk.runtime / "web" / "key.pem").stat().st_mode & 0o777 == 0o600
