"""The requests that are answered (floor 5): one table, of which the server is made and the OpenAPI document too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from control.errors import ConfigError
from control.web.access import AccessError
from control.web.context import answer, get_session
from control.wire.schema import explain

Needs = Literal["nobody", "viewer", "operator"]
"""Who may make a request: anybody, who was let in, or who may do things as well."""

BODY_MAX_BYTES = 1 << 20
BODY_S = 30.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Doing = Callable[[web.Request, dict[str, Any]], Awaitable[Any]]


@dataclass(frozen=True)
class Route:
    """One request.

    Attributes:
        takes: The schema its JSON body fits (`schemas/NAME.json`); empty when it has none.
        gives: The schema of its JSON answer, or the type of another one.
        query: What may stand behind the `?`, and what it is.
        is_shared: Whether those who came by a link to one machine may make it.
        opens_socket: It opens a WebSocket, for which a ticket is needed.
    """

    method: str
    path: str
    needs: Needs
    summary: str
    handler: Handler
    takes: str = ""
    gives: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    is_shared: bool = True
    opens_socket: bool = False
    raw_body: bool = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, of those who may make it. Raises AccessError for all others."""
        if self.needs != "nobody":
            session = get_session(request)
            if self.needs == "operator" and session.role != "operator":
                raise AccessError("you may look, and not do this", 403, hint="an operator may")
            if session.vm and not self.is_shared:
                raise AccessError("this link is for one machine", 403)
        return await self.handler(request)


def doing(work: Doing, takes: str) -> Handler:
    """A handler that reads a JSON body which fits the schema `takes`, and answers with what `work` returns."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return answer(await work(request, await read_body(request, takes)))

    return handler


async def read_body(request: web.Request, schema: str) -> dict[str, Any]:
    """Read a JSON object. Raises ConfigError for what does not fit; an empty body is an empty object."""
    try:
        async with asyncio.timeout(BODY_S):
            text = await request.read()
    except TimeoutError:
        raise AccessError("the body does not come", 408) from None
    try:
        body = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is no JSON: {error}") from error
    wrong = explain(schema, body)
    if wrong:
        raise ConfigError(f"the body does not fit: {wrong}", hint="/api/openapi.json describes it")
    fitting: dict[str, Any] = body
    return fitting
