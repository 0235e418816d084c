"""What all parts of one web server share (floor 5), and how they refuse."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.failure import build_failure
from control.web.access import Access, AccessError, Session
from control.web.audit import Audit
from control.web.live import Live
from control.web.machines import Machines
from control.web.thumbnails import Pictures

_STATUS_OF_KIND = {"ConfigError": 400, "StateError": 409, "WaitTimeout": 504, "AgentCallError": 422}


@dataclass(frozen=True)
class Settings:
    """How a server is to be.

    Attributes:
        address: Where it listens: an IP address.
        port: 0 for any that is free.
        directory: Where its token, sessions, users and audit log are, mode 0700.
        hosts: Names under which it may be asked for, besides its address; what else a browser names is refused.
        certificate, key: PEM files of a TLS server; None for plain HTTP.
        libraries: Where the browser's libraries lie, by name.
        upload_bytes: The largest file that is taken.
    """

    address: str
    port: int
    directory: Path
    libraries: dict[str, Path]
    hosts: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    upload_bytes: int = 16 << 30

    @property
    def is_tls(self) -> bool:
        return self.certificate is not None


@dataclass(frozen=True)
class Context:
    """What the handlers of one server work with."""

    settings: Settings
    machines: Machines
    live: Live
    access: Access
    audit: Audit
    pictures: Pictures


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
SESSION: web.RequestKey[Session] = web.RequestKey("session", Session)


def get_context(request: web.Request) -> Context:
    return request.app[CONTEXT]


def get_session(request: web.Request) -> Session:
    """The session of a request that was let in. Raises AccessError for one that has none."""
    if SESSION not in request:
        raise AccessError("you are not logged in", 401, hint="open the address that `unhinged web` printed")
    return request[SESSION]


def get_address(request: web.Request) -> str:
    return request.remote or ""


def choose_machine(request: web.Request) -> str:
    """Return the machine a request is about.

    Raises:
        AccessError: There is none of that name that this session may see.
    """
    return check_machine(request, request.match_info["name"])


def check_machine(request: web.Request, name: str) -> str:
    """Return `name` when there is such a machine for this session. Raises AccessError."""
    context = get_context(request)
    try:
        if not get_session(request).may_see(name):
            raise ConfigError("it is not for this session")
        return context.machines.check(name)
    except ConfigError as error:
        raise AccessError(f"there is no machine {name[:80]!r} here", 404, hint="GET /api/vms lists them") from error


def note(request: web.Request, action: str, vm: str = "", **details: object) -> None:
    """Write down in the audit log what whoever makes this request does."""
    user = request[SESSION].user if SESSION in request else ""
    get_context(request).audit.note(action, user=user, address=get_address(request), vm=vm, **details)


def refuse(error: ControlError) -> web.Response:
    """Say over HTTP what went wrong (`schemas/cli/error.json`)."""
    failure = build_failure(error)
    headers = {}
    if isinstance(error, AccessError):
        status = error.status
        if error.retry_s is not None:
            headers["Retry-After"] = str(round(error.retry_s))
    else:
        by_type = next(
            (each.__name__ for each in (StateError, WaitTimeout, ConfigError) if isinstance(error, each)), ""
        )
        status = _STATUS_OF_KIND.get(by_type) or _STATUS_OF_KIND.get(str(failure["kind"]), 502)
    return answer({"error": failure}, status=status, headers=headers)


def answer(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    text = json.dumps(document)
    return web.Response(text=text, status=status, content_type="application/json", headers=headers)
