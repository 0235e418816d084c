"""The web console: the bridge to VNC beside websockify, many at once, a flood in a browser, a hundred machines."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.paths import ROOT
from tests.bench import rfb_source
from tests.bench.figures import Figure, Samples, Target
from tests.bench.memory import read_proportional_mb
from tests.bench.registry import Settings, benchmark
from tests.qemu.fleets import Desk, find_free_port, open_desk
from tests.webserver import Server, run_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLOOD_S, QUICK_FLOOD_S = 3.0, 0.5
PINGS, QUICK_PINGS = 2000, 100
CLIENTS = 50
MACHINES = 100
IDLE_S, QUICK_IDLE_S = 10.0, 1.0
MEGABYTE, MILLISECOND = 1e6, 1000.0
BUFFER = bytearray(1 << 20)
POUR = """
import os, sys, time
end = time.monotonic() + float(sys.argv[1])
line = b"0123456789012345678901234567890123456789\\r\\n" * 4762
while time.monotonic() < end:
    os.write(1, line)
    time.sleep(0.01)
print("\\ndone")
"""
"""20 MB in a second, somewhat more than a guest's fastest console gives. A program that says all it can would take both
CPUs of a small machine, and what is to be measured is the browser."""

POUR_S, QUICK_POUR_S = 8.0, 2.0
TICK_HZ = os.sysconf("SC_CLK_TCK")

SHELL = """
[vm.shell]
kind = "process"
command = ["bash", "--norc", "--noprofile", "-i"]
env = { PS1 = "ready> ", TERM = "dumb" }
"""


@benchmark("web")
def measure_web(settings: Settings) -> list[Figure]:
    """The bridge to VNC beside websockify, fifty clients, a flood in a browser, a hundred machines, idling."""
    figures: list[Figure] = []
    directory = settings.directory / "web"
    directory.mkdir()
    with open_desk(directory) as desk:
        desk.declare("screen", more=SHELL)
        desk.start("screen")
        assert desk.run("start", "shell").exit_code == 0
        with run_server(desk) as server:
            figures += _measure_idling(settings, server)
            figures += _measure_bridge(settings, server)
            if shutil.which("chromium"):
                figures += _measure_browser(settings, server)
            else:
                settings.say("web: no Chromium here: make deps-install-browser")
        desk.run("kill", "--all")
        desk.wait_until_gone()
    return figures


# -- a client that does as little as can be ------------------------------------------------------------------------


class _Socket:
    """A WebSocket of which only bytes are counted; the same for both sides."""

    def __init__(self, port: int, path: str, headers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n{headers}\r\n"
        )
        self.socket.sendall(request.encode())
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += self.socket.recv(1)
        if b" 101 " not in seen:
            raise RuntimeError(seen.decode())

    def send(self, data: bytes) -> None:
        """One frame of less than 126 bytes, masked with zeros (RFC 6455, 5.3)."""
        self.socket.sendall(struct.pack("!BBI", 0x82, 0x80 | len(data), 0) + data)

    def count(self, seconds: float) -> float:
        """Read for so long, and return how many bytes came in a second."""
        while self.socket.recv_into(BUFFER) < 1:
            pass  # the first of it: what came before is no part of the measurement
        began, total = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            total += self.socket.recv_into(BUFFER)
        return total / (time.perf_counter() - began)

    def ping(self, times: int) -> float:
        """Send so many frames of 10 bytes, and return the median time until each is back, in seconds."""
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            self.send(b"0123456789")
            left = 12
            while left > 0:
                left -= self.socket.recv_into(BUFFER)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def close(self) -> None:
        self.socket.close()


def _ask(server: Server, path: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.origin + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def _open_ours(server: Server, name: str = "screen", what: str = "screen") -> _Socket:
    ticket = _ask(server, f"/api/vms/{name}/tickets", {"for": what})["ticket"]
    return _Socket(server.port, f"/api/vms/{name}/{what}?ticket={ticket}", f"Authorization: Bearer {server.token}\r\n")


# -- the bridge ----------------------------------------------------------------------------------------------------


def _measure_bridge(settings: Settings, server: Server) -> list[Figure]:
    settings.say("web: the bridge to VNC")
    path = server.desk.files("screen").vnc_socket
    path.unlink()
    seconds = QUICK_FLOOD_S if settings.quick else FLOOD_S
    pings = QUICK_PINGS if settings.quick else PINGS
    with _run_source(path), _run_websockify(path) as port:
        flood, their_flood, latency, their_latency, many = [], [], [], [], []
        for _ in range(settings.runs):
            flood.append(_flood(_open_ours(server), seconds))
            their_flood.append(_flood(_Socket(port, "/"), seconds))
            latency.append(_ping(_open_ours(server), pings))
            their_latency.append(_ping(_Socket(port, "/"), pings))
            many.append(_flood_many(server, seconds))
    clients = "the same client, which only counts bytes, and the same source at a UNIX socket."
    return [
        Figure(
            "VNC to a browser's WebSocket", "MB/s", Samples("unhinged web", tuple(flood)),
            Samples("websockify", tuple(their_flood)), (Target(3.0, "higher", "ratio"),), (clients,),
        ),
        Figure(
            "there and back through it, 10 bytes", "ms", Samples("unhinged web", tuple(latency)),
            Samples("websockify", tuple(their_latency)), (Target(1.0, "lower", "ratio"),),
        ),
        Figure(
            f"{CLIENTS} clients at once, all together", "MB/s", Samples("one server", tuple(many)), None, (),
            ("a run in which one of them got nothing would have failed.",),
        ),
    ]  # fmt: skip


def _flood(client: _Socket, seconds: float) -> float:
    with contextlib.closing(client):
        client.send(rfb_source.FLOOD)
        return client.count(seconds) / MEGABYTE


def _ping(client: _Socket, times: int) -> float:
    with contextlib.closing(client):
        client.send(rfb_source.ECHO)
        client.ping(times // 10)
        return client.ping(times) * MILLISECOND


def _flood_many(server: Server, seconds: float) -> float:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(_open_ours(server))) for _ in range(CLIENTS)]
        for client in clients:
            client.send(rfb_source.FLOOD)
            client.socket.setblocking(False)
        totals = dict.fromkeys(range(CLIENTS), 0)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            for number, client in enumerate(clients):
                with contextlib.suppress(BlockingIOError):
                    totals[number] += client.socket.recv_into(BUFFER)
        took = time.perf_counter() - began
    if not all(totals.values()):
        raise RuntimeError(f"of {CLIENTS} clients {sum(not each for each in totals.values())} got nothing")
    return sum(totals.values()) / took / MEGABYTE


@contextlib.contextmanager
def _run_source(path: Path) -> Iterator[None]:
    words = [sys.executable, str(ROOT / "tests" / "bench" / "rfb_source.py"), str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as source:
        try:
            assert source.stdout is not None
            source.stdout.readline()
            yield
        finally:
            source.kill()
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _run_websockify(path: Path) -> Iterator[int]:
    port = find_free_port()
    words = [sys.executable, "-m", "websockify", f"--unix-target={path}", f"127.0.0.1:{port}"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            _wait_for_port(port, process)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)  # a program that is about to listen tells nobody


# -- idling --------------------------------------------------------------------------------------------------------


def _measure_idling(settings: Settings, server: Server) -> list[Figure]:
    settings.say("web: idling")
    memory, cpu = [], []
    for _ in range(settings.runs):
        before = _read_cpu_s(server.process.pid)
        time.sleep(QUICK_IDLE_S if settings.quick else IDLE_S)
        cpu.append(100 * (_read_cpu_s(server.process.pid) - before) / (QUICK_IDLE_S if settings.quick else IDLE_S))
        memory.append(read_proportional_mb(server.process.pid))
    return [
        Figure("a web server that idles", "MB", Samples("Pss", tuple(memory)), None, (Target(60.0),)),
        Figure("its CPU, percent of one", "", Samples("of 10 s", tuple(cpu)), None, (Target(1.0),)),
    ]


def _read_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK_HZ


# -- in a browser --------------------------------------------------------------------------------------------------


def _measure_browser(settings: Settings, server: Server) -> list[Figure]:
    from playwright.sync_api import sync_playwright

    settings.say("web: a flood in a browser")
    seconds = QUICK_POUR_S if settings.quick else POUR_S
    (server.desk.directory / "pour.py").write_text(POUR)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{server.url}?token={server.token}")
        page.wait_for_selector(".card")
        floods, delays = [], []
        for _ in range(settings.runs):
            rate, delay = _flood_page(page, server, seconds)
            floods.append(rate)
            delays.append(delay)
        paints = _measure_dashboard(settings, server, page)
        browser.close()
    return [
        Figure("a console's flood, shown by xterm.js", "MB/s", Samples("Chromium", tuple(floods)), None,
               (Target(10.0, "higher"),), ("of 20 MB/s that a program says; what it is behind is skipped.",)),
        Figure("a key pressed in it, until the page hears of it", "ms", Samples("the slowest of 20", tuple(delays)),
               None, (Target(100.0),)),
        Figure(f"a dashboard of {MACHINES} machines, until all are painted", "s", Samples("Chromium", tuple(paints)),
               None, (Target(1.0),)),
    ]  # fmt: skip


def _flood_page(page: Page, server: Server, seconds: float) -> tuple[float, float]:
    """MB/s that a page shows while a program says all it can, and how late it hears of keys, in ms."""
    page.goto(f"{server.origin}/vm/shell")
    page.wait_for_function("() => globalThis.console_?.run && !console_.isHistory")
    page.evaluate(
        """() => { globalThis.late = [];
            addEventListener("keydown", (event) => late.push(performance.now() - event.timeStamp), true); }"""
    )
    page.locator("#console .xterm-helper-textarea").focus()
    page.keyboard.type(f"{sys.executable} -S {server.desk.directory}/pour.py {seconds}")
    page.evaluate(
        """() => { const { show } = console_; globalThis.shownBytes = 0;
            console_.show = function (data) { shownBytes += data.byteLength; show.call(this, data); }; }"""
    )
    page.evaluate("() => { late.length = 0; globalThis.began = performance.now(); }")
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Shift")
        time.sleep(seconds / 30)
    rate = page.evaluate("() => shownBytes / (performance.now() - began) / 1000")
    slowest = page.evaluate("() => Math.max(...late)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.xterm-rows > div')].some((row) => row.textContent.startsWith('done'))",
        timeout=120_000,
    )
    return float(rate), float(slowest)


def _measure_dashboard(settings: Settings, server: Server, page: Page) -> list[float]:
    settings.say(f"web: {MACHINES} machines on a page")
    desk: Desk = server.desk
    text = (desk.directory / "unhinged.toml").read_text()
    desk.write(
        text + "".join(f'[vm.m{number}]\nkind = "process"\ncommand = ["cat"]\n' for number in range(MACHINES - 2))
    )
    times = []
    for _ in range(settings.runs):
        page.goto(f"{server.origin}/about")
        page.goto(f"{server.origin}/", wait_until="commit")
        page.wait_for_function(f"() => document.querySelectorAll('.card').length >= {MACHINES}")
        times.append(
            page.evaluate("() => new Promise((done) => requestAnimationFrame(() => done(performance.now())))") / 1000
        )
    desk.write(text)
    return times
