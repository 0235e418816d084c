"""The web server (floor 5): made of the parts around it, run until somebody ends it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import html
import logging
import resource
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from control.errors import HostError
from control.spec.locate import Location
from control.web.access import Access, AccessError
from control.web.api import ROUTES, set_cookie
from control.web.audit import Audit
from control.web.context import CONTEXT, SESSION, Context, Settings, get_address, get_context
from control.web.files import remove_leftovers
from control.web.guard import add_headers, guard
from control.web.libraries import LIBRARIES
from control.web.live import Live
from control.web.machines import Machines
from control.web.routes import BODY_MAX_BYTES
from control.web.thumbnails import Pictures
from control.web.tls import open_tls
from control.web.users import Users

PAGES = Path(__file__).parent / "pages"
CONNECTIONS_MAX = 4000
"""More are hung up on at once; browsers have six each, and a WebSocket for each console and screen."""

FIRST_REQUEST_S = 10.0
"""Who says nothing for so long after coming in is hung up on."""

KEEP_ALIVE_S = 75.0
END_S = 2.0
BACKLOG = 1024

_TYPES = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css",
          ".svg": "image/svg+xml", ".json": "application/json", ".txt": "text/plain", "": "text/plain"}  # fmt: skip


class _Doorkeeper:
    """Makes the protocol of each connection, and hangs up on those that ask for nothing, and on too many."""

    def __init__(self) -> None:
        self._silent: set[RequestHandler] = set()

    def let_in(self, server: web.Server) -> RequestHandler:
        handler = server()
        self._silent.add(handler)
        is_full = len(server.connections) >= CONNECTIONS_MAX
        asyncio.get_running_loop().call_later(0 if is_full else FIRST_REQUEST_S, self._look_at, handler)
        return handler

    def hear(self, handler: RequestHandler) -> None:
        """A whole request has come."""
        self._silent.discard(handler)

    def _look_at(self, handler: RequestHandler) -> None:
        if handler in self._silent:
            self._silent.discard(handler)
            if isinstance(handler.transport, asyncio.Transport):
                handler.transport.abort()


DOORKEEPER: web.AppKey[_Doorkeeper] = web.AppKey("doorkeeper", _Doorkeeper)


@web.middleware
async def _hear(request: web.Request, handler: Any) -> web.StreamResponse:
    request.app[DOORKEEPER].hear(request.protocol)
    response: web.StreamResponse = await handler(request)
    return response


class WebServer:
    """A server that runs; made by `serve`.

    Attributes:
        url: Where it is, without the token.
    """

    def __init__(self, context: Context, url: str) -> None:
        self.context = context
        self.url = url


@contextlib.asynccontextmanager
async def serve(settings: Settings, location: Location, token: str) -> AsyncIterator[WebServer]:
    """Serve during the body.

    Raises:
        HostError: The port is in use or not ours to use, or the directory cannot be written.
        ConfigError: The certificate is none.
    """
    tls = open_tls(settings.certificate, settings.key) if settings.certificate and settings.key else None
    _raise_file_limit()
    remove_leftovers(settings.directory)
    machines = Machines(location)
    audit = Audit(settings.directory / "audit.jsonl")
    try:
        users = Users(settings.directory / "users.json")
        users.get_all()
        access = Access(token, users, settings.directory / "sessions.json")
        context = Context(settings, machines, Live(machines), access, audit, Pictures(machines))
        with _listen(settings) as listener:
            async with _running(context, listener, tls):
                host, port = listener.getsockname()[:2]
                name = f"[{host}]" if ":" in host else host
                yield WebServer(context, f"{'https' if tls else 'http'}://{name}:{port}/")
    finally:
        audit.close()
        machines.close()


@contextlib.asynccontextmanager
async def _running(context: Context, listener: socket.socket, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
    app = build_app(context)
    # It would write a traceback for each request that is none; what is our own fault is written down by the guard.
    quiet = logging.getLogger("unhinged.http")
    quiet.setLevel(logging.CRITICAL)
    runner = web.AppRunner(app, access_log=None, logger=quiet, keepalive_timeout=KEEP_ALIVE_S)
    await runner.setup()
    inner = runner.server
    assert inner is not None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: app[DOORKEEPER].let_in(inner), sock=listener, ssl=tls, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        inner.pre_shutdown()
        await runner.shutdown()
        await inner.shutdown(END_S)
        await runner.cleanup()


def build_app(context: Context) -> web.Application:
    """Make the application of its parts."""
    app = web.Application(middlewares=[_hear, guard], client_max_size=BODY_MAX_BYTES)
    app[CONTEXT] = context
    app[DOORKEEPER] = _Doorkeeper()
    app.on_response_prepare.append(add_headers)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handle)
    app.router.add_get("/", _page("dashboard.html"))
    app.router.add_get("/vm/{name}", _page("vm.html"))
    app.router.add_get("/consoles", _page("consoles.html"))
    app.router.add_get("/about", _page("about.html"))
    app.router.add_get("/login", _log_in_page)
    app.router.add_get("/share/{link}", _come_by_share)
    app.router.add_get("/static/{path:.+}", _static)
    app.router.add_get("/libraries/{library}/{path:.+}", _library)
    app.router.add_get("/favicon.ico", _icon)
    return app


# -- pages ---------------------------------------------------------------------------------------------------------


def _page(name: str) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        if "token" in request.query:
            return _come_by_token(request)
        if SESSION not in request:
            return web.Response(status=303, headers={"Location": "/login"})
        return _send_file(PAGES / name)

    return handler


async def _log_in_page(request: web.Request) -> web.StreamResponse:
    if "token" in request.query:
        return _come_by_token(request)
    return _send_file(PAGES / "login.html")


def _come_by_token(request: web.Request) -> web.StreamResponse:
    """Take the token out of the address at once, so that it is not in the history or on a screenshot for long."""
    context, address = get_context(request), get_address(request)
    try:
        cookie = context.access.log_in_by_token(request.query["token"], address)
    except AccessError as error:
        return _refuse_at_login(request, error)
    context.audit.note("log in", user="token", address=address)
    return _go_on(request, cookie, request.path if request.path != "/login" else "/")


async def _come_by_share(request: web.Request) -> web.StreamResponse:
    context, address = get_context(request), get_address(request)
    try:
        cookie, vm = context.access.log_in_by_share(request.match_info["link"], address)
    except AccessError as error:
        return _refuse_at_login(request, error)
    context.audit.note("log in by share", user="share", address=address, vm=vm)
    return _go_on(request, cookie, f"/vm/{vm}")


def _refuse_at_login(request: web.Request, error: AccessError) -> web.StreamResponse:
    get_context(request).audit.note("refused", address=get_address(request), path="/login", why=str(error))
    page = (PAGES / "login.html").read_text(encoding="utf-8")
    told = html.escape(f"{error}; {error.hint}" if error.hint else str(error))
    return web.Response(
        text=page.replace(" hidden></p>", f">{told}</p>"), content_type="text/html", status=error.status
    )


def _go_on(request: web.Request, cookie: str, path: str) -> web.StreamResponse:
    """Send the browser on by a page of its own: after a redirect, a cookie that is SameSite=Strict is not sent to who
    came by a link elsewhere (RFC 6265bis, 5.2: redirects count)."""
    target = html.escape(path, quote=True)
    response = web.Response(
        text=f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
        f'<title>unhinged</title><a href="{target}">go on</a>',
        content_type="text/html",
    )
    set_cookie(request, response, cookie)
    return response


async def _static(request: web.Request) -> web.StreamResponse:
    return _send_below(PAGES, request.match_info["path"], "no-cache")


async def _library(request: web.Request) -> web.StreamResponse:
    name, path = request.match_info["library"], request.match_info["path"]
    library = next((each for each in LIBRARIES if each.name == name), None)
    if library is None or path.split("/")[0] not in (*library.parts, library.licence[1]):
        raise AccessError("there is no such file", 404)
    return _send_below(get_context(request).settings.libraries[name], path, "private, max-age=86400")


async def _icon(request: web.Request) -> web.StreamResponse:
    return _send_below(PAGES, "icon.svg", "private, max-age=86400")


def _send_below(root: Path, path: str, cached: str) -> web.StreamResponse:
    """Send a file below `root`, whatever `path` tries. Raises AccessError."""
    target = (root / path).resolve() if "\0" not in path else root
    if not target.is_relative_to(root.resolve()) or not target.is_file():
        raise AccessError("there is no such file", 404)
    response = _send_file(target)
    response.headers["Cache-Control"] = cached
    return response


def _send_file(path: Path) -> web.FileResponse:
    kind = _TYPES.get(path.suffix, "application/octet-stream")
    return web.FileResponse(path, headers={"Content-Type": f"{kind}; charset=utf-8"})


# -- the port ------------------------------------------------------------------------------------------------------


def _listen(settings: Settings) -> socket.socket:
    """Raises HostError."""
    family = socket.AF_INET6 if ":" in settings.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.address, settings.port))
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        where = f"{settings.address} port {settings.port}"
        hint = "--port 0 takes one that is free" if error.errno == errno.EADDRINUSE else "choose another"
        raise HostError(f"{where} cannot be listened at: {error.strerror}", hint=hint) from error
    return listener


def _raise_file_limit() -> None:
    """A console in a browser takes three descriptors, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16384 if hard == resource.RLIM_INFINITY else min(hard, 16384)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
