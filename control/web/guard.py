"""What every request goes through (floor 5): whom it is for, where it comes from, who makes it; what answers carry.

A page of somebody else's, open in the same browser, can make it send requests to us. It cannot read our answers, it
has not our cookie (SameSite=Strict), and it cannot keep the browser from saying in `Origin` where it comes from; a name
of its own that leads to our address (DNS rebinding) shows in `Host`.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Awaitable, Callable

from aiohttp import web

from control.errors import ControlError, HostError
from control.log import LOG
from control.web.access import AccessError
from control.web.context import SESSION, Settings, get_address, get_context, note, refuse

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    # xterm.js puts style sheets of its own into the page; scripts come from our files only.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


def cookie_name(request: web.Request) -> str:
    """Cookies are not kept apart by port, so that two servers of one host need two names."""
    return f"unhinged-{request.url.port or 0}"


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what must not get further, find out who asks, and answer for what goes wrong."""
    try:
        check_host(request)
        check_origin(request)
        _find_out_who(request)
        return await handler(request)
    except AccessError as error:
        note(request, "refused", path=request.path, why=str(error))
        return refuse(error)
    except ControlError as error:
        return refuse(error)
    except web.RequestPayloadError as error:
        return refuse(AccessError(f"the body did not come whole: {error}", 400))
    except web.HTTPException as error:
        return refuse(AccessError(f"{error.status} {error.reason}: {request.path[:80]}", error.status))
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise  # whoever asked is gone
        return refuse(HostError(f"{error.strerror or error}"))
    except Exception:  # a fault of ours in one request must be told, here and there, and end no other
        LOG.exception("a request failed: %s %s", request.method, request.path)
        return refuse(ControlError("an error of ours", hint="see what the server wrote, and please report it"))


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put what all answers carry into this one."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if get_context(request).settings.is_tls:
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    if "Server" in response.headers:
        response.headers["Server"] = "unhinged"


def check_host(request: web.Request) -> None:
    """Raise AccessError when the browser believes to talk to somebody else."""
    name = _host_of(request.headers.get("Host", ""))
    if not is_our_host(name, get_context(request).settings):
        raise AccessError(f"this server is not {name[:80]!r}", 421, hint="a name it has is given with --host-name")


def is_our_host(name: str, settings: Settings) -> bool:
    """Whether `name`, as in a URL, is one of ours.

    Addresses are: they are nobody's to point elsewhere. Of names, `localhost` is on loopback, and what is given.
    """
    if name.lower() in {each.lower() for each in settings.hosts}:
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() == "localhost" and is_loopback(settings.address)
    return address.is_loopback or not is_loopback(settings.address)


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _host_of(header: str) -> str:
    """The name in a `Host` header, without the port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def check_origin(request: web.Request) -> None:
    """Raise AccessError when something that changes anything, or opens a WebSocket, comes from another page."""
    is_socket = request.headers.get("Upgrade", "").lower() == "websocket"
    if request.method in ("GET", "HEAD", "OPTIONS") and not is_socket:
        return
    origin = request.headers.get("Origin")
    scheme = "https" if get_context(request).settings.is_tls else "http"
    if origin is None:
        if "Cookie" in request.headers:
            raise AccessError("a browser says where it comes from, and this one does not (Origin)", 403)
        return  # a program, which shows its token itself
    if origin != f"{scheme}://{request.headers.get('Host', '')}":
        raise AccessError(f"this comes from another page: {origin[:80]!r}", 403)


def _find_out_who(request: web.Request) -> None:
    access = get_context(request).access
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        request[SESSION] = access.check_bearer(token.strip(), get_address(request))
        return
    session = access.find_session(request.cookies.get(cookie_name(request), ""))
    if session is not None:
        request[SESSION] = session


def who_is(request: web.Request) -> str:
    """What others at a console are told of whoever makes this request."""
    return f"{request[SESSION].user} at {get_address(request)} (web, pid {os.getpid()})"
