"""The REST interface (floor 5): what is asked of machines and done with them, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from control.errors import ControlError
from control.vm.hands import point, press, type_text
from control.vm.reach import connect
from control.vm.snapshots import list_snapshots
from control.vm.viewers import build_vnc, build_vv
from control.web import consoles, files, screens
from control.web.access import TICKET_S, AccessError
from control.web.context import answer, check_machine, choose_machine, get_address, get_context, get_session, note
from control.web.guard import cookie_name
from control.web.libraries import LIBRARIES
from control.web.logs import follow_lines
from control.web.openapi import build_openapi
from control.web.routes import Doing, Route, doing, read_body

CALL_S = 60.0
EXEC_S = 300.0
"""A program whose caller says no `timeout_s` is killed after so long: the browser that asked may be gone."""

HEARTBEAT_S = 20.0
COPY_S = 24 * 3600.0
MESSAGES_TAIL_BYTES = 256 * 1024
MESSAGE_MAX_BYTES = 1 << 20
KEEP_ALIVE_S = 15.0
LOG_TAIL_BYTES = 1 << 20
STATUS_S = 5.0
ADDRESSES_MAX = 8


# -- coming in -----------------------------------------------------------------------------------------------------


async def log_in(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer with a session for who knows the token, or a name and its password."""
    access, address = get_context(request).access, get_address(request)
    if "token" in body:
        cookie = access.log_in_by_token(body["token"], address)
    else:
        cookie = await asyncio.to_thread(access.log_in_by_password, body["user"], body["password"], address)
    session = access.find_session(cookie)
    assert session is not None
    get_context(request).audit.note("log in", user=session.user, address=address)
    response = answer({"user": session.user, "role": session.role, "vm": session.vm})
    set_cookie(request, response, cookie)
    return response


async def _log_in(request: web.Request) -> web.StreamResponse:
    return await log_in(request, await read_body(request, "web/login"))


def set_cookie(request: web.Request, response: web.StreamResponse, cookie: str) -> None:
    """Give a session to the browser: no script sees it, and no page of others can have it sent."""
    is_tls = get_context(request).settings.is_tls
    response.set_cookie(
        cookie_name(request), cookie, httponly=True, samesite="Strict", secure=is_tls, path="/", max_age=7 * 24 * 3600
    )


async def _log_out(request: web.Request) -> web.StreamResponse:
    session = get_session(request)
    get_context(request).access.log_out(session)
    note(request, "log out")
    response = answer({})
    response.del_cookie(cookie_name(request), path="/")
    return response


async def _list_libraries(request: web.Request) -> web.StreamResponse:
    rows = [
        {"name": each.name, "package": each.package, "version": each.version, "licence": each.licence[0],
         "licence_file": each.licence[1]}
        for each in LIBRARIES
    ]  # fmt: skip
    return answer({"libraries": rows})


async def _tell_who(request: web.Request) -> web.StreamResponse:
    session = get_session(request)
    return answer({"user": session.user, "role": session.role, "vm": session.vm})


# -- what there is -------------------------------------------------------------------------------------------------


async def _list(request: web.Request) -> web.StreamResponse:
    machines, session = get_context(request).machines, get_session(request)

    def describe() -> list[dict[str, Any]]:
        return [machines.describe(name) for name in machines.list_names() if session.may_see(name)]

    return answer({"vms": await machines.run(describe)})


async def _status(request: web.Request) -> web.StreamResponse:
    """What a list shows, and what the supervisor of one that runs says."""
    machines, name = get_context(request).machines, choose_machine(request)
    seen = await machines.run(machines.describe, name)
    living: dict[str, Any] = {}
    if seen["pid"] is not None:
        try:
            living = await machines.call(name, "status", {}, timeout_s=STATUS_S)
        except ControlError as error:
            living = {"trouble": str(error)}
    return answer({**seen, **{key: living.get(key, default) for key, default in _LIVING.items()}})


_LIVING: Mapping[str, Any] = {
    "runstate": None, "agent_ready": False, "phases": {}, "restarts": 0, "trouble": "", "notes": [],
}  # fmt: skip


async def _log(request: web.Request) -> web.StreamResponse:
    """The end of a log, as it is: what a guest wrote is no page of ours, whatever it looks like."""
    machines, name = get_context(request).machines, choose_machine(request)
    found = machines.files(name)
    logs = {"serial": found.serial_log, "hvc0": found.hvc0_log, "qemu": found.qemu_log,
            "messages": found.messages, "supervisor": found.supervisor_log}  # fmt: skip
    path = logs.get(request.match_info["log"])
    if path is None or not path.exists():
        raise AccessError("there is no such log", 404, hint=f"there are {', '.join(logs)}")

    def read() -> bytes:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            return file.read(LOG_TAIL_BYTES)

    return web.Response(body=await machines.run(read), content_type="text/plain", charset="utf-8")


async def _picture(request: web.Request) -> web.StreamResponse:
    context, name = get_context(request), choose_machine(request)
    return web.Response(body=await context.pictures.take(name), content_type="image/png")


async def _connection_file(request: web.Request) -> web.StreamResponse:
    """A file for a viewer on this host: `screen.vnc`, or `screen.vv` where the machine has SPICE."""
    context, name, kind = get_context(request), choose_machine(request), request.match_info["kind"]
    found = context.machines.files(name)
    sockets = {"vnc": found.vnc_socket, "vv": found.spice_socket}
    if kind not in sockets or not sockets[kind].exists():
        raise AccessError(f"{name} has no screen for such a file", 404, hint="screen.vnc, or screen.vv for SPICE")
    text = build_vnc(str(sockets[kind])) if kind == "vnc" else build_vv(name, sockets[kind])
    disposition = f'attachment; filename="{name}.{kind}"'
    headers = {"Content-Disposition": disposition, "Content-Type": _VIEWER_TYPES[kind]}
    return web.Response(body=text.encode(), headers=headers)


_VIEWER_TYPES = {"vnc": "application/x-vnc", "vv": "application/x-virt-viewer"}


async def _all_events(request: web.Request) -> web.StreamResponse:
    context, session = get_context(request), get_session(request)
    return await _stream(request, _named("vms", context.live.changes(session.vm)))


async def _events_of_one(request: web.Request) -> web.StreamResponse:
    """The messages between host and guest, the last ones first."""
    context, name = get_context(request), choose_machine(request)
    lines = follow_lines(context.machines.files(name).messages, MESSAGES_TAIL_BYTES, MESSAGE_MAX_BYTES)
    return await _stream(request, _as_messages(lines))


async def _live(request: web.Request) -> web.StreamResponse:
    """The same events over one WebSocket: `{"event", "data"}`. A browser has six connections for all its tabs, and any
    number of WebSockets."""
    context, session = get_context(request), get_session(request)
    context.access.redeem_ticket(request.query.get("ticket", ""), session, "", "live")
    streams = [_named("vms", context.live.changes(session.vm))]
    if name := request.query.get("messages"):
        path = context.machines.files(check_machine(request, name)).messages
        streams.append(_as_messages(follow_lines(path, MESSAGES_TAIL_BYTES, MESSAGE_MAX_BYTES)))
    socket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, max_msg_size=1024)
    await socket.prepare(request)

    async def send(events: AsyncIterator[tuple[str, str]]) -> None:
        async for event, data in events:
            await socket.send_str(f'{{"event": "{event}", "data": {data}}}')

    tasks = [asyncio.create_task(send(stream)) for stream in streams]
    tasks.append(asyncio.create_task(_read_until_closed(socket)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await socket.close()
    return socket


async def _read_until_closed(socket: web.WebSocketResponse) -> None:
    async for _ in socket:
        pass  # nothing is expected of a browser here but that it leaves


async def _named(name: str, values: AsyncIterator[Any]) -> AsyncIterator[tuple[str, str]]:
    async for value in values:
        yield name, json.dumps(value)


async def _as_messages(lines: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, str]]:
    async for line in lines:
        with contextlib.suppress(ValueError):
            yield "message", json.dumps(json.loads(line))


async def _stream(request: web.Request, events: AsyncIterator[tuple[str, str]]) -> web.StreamResponse:
    """Send events as they come (HTML standard, server-sent events), and a comment now and then while none comes."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    pending: asyncio.Task[tuple[str, str]] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            await asyncio.wait((pending,), timeout=KEEP_ALIVE_S)
            if not pending.done():
                await response.write(b": nothing new\n\n")
                continue
            name, data = pending.result()
            pending = None
            await response.write(f"event: {name}\ndata: {data}\n\n".encode())
    except (ConnectionError, StopAsyncIteration):
        return response  # the browser has left, or there is no more
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


# -- what is done --------------------------------------------------------------------------------------------------


def _call(method: str, timeout_s: float = CALL_S) -> Doing:
    """What a method of the supervisor does, with its own parameters and answer."""

    async def work(request: web.Request, body: dict[str, Any]) -> Any:
        name = choose_machine(request)
        note(request, method, name)
        return await get_context(request).machines.call(name, method, body, timeout_s=timeout_s)

    return work


async def _start(request: web.Request, body: dict[str, Any]) -> Any:
    name = choose_machine(request)
    note(request, "start", name)
    return {
        "name": name,
        "started": await get_context(request).machines.start(name, is_paused=body.get("paused", False)),
    }


async def _stop(request: web.Request, body: dict[str, Any]) -> Any:
    name = choose_machine(request)
    note(request, "stop", name)
    return {"name": name, "stopped": await get_context(request).machines.stop(name, body.get("timeout_s", 20.0))}


async def _restart(request: web.Request, body: dict[str, Any]) -> Any:
    name, machines = choose_machine(request), get_context(request).machines
    note(request, "restart", name)
    await machines.stop(name, body.get("timeout_s", 20.0))
    return {"name": name, "started": await machines.start(name)}


async def _kill(request: web.Request, body: dict[str, Any]) -> Any:
    name = choose_machine(request)
    note(request, "kill", name)
    await get_context(request).machines.kill(name)
    return {"name": name}


async def _exec(request: web.Request, body: dict[str, Any]) -> Any:
    name = choose_machine(request)
    note(request, "exec", name, argv=" ".join(body["argv"]))
    return {"name": name, **await get_context(request).machines.exec(name, {"timeout_s": EXEC_S, **body})}


async def _list_addresses(request: web.Request) -> web.StreamResponse:
    """What the guest's agent says; none of a guest whose agent is not there, and none that only the guest has."""
    machines, name = get_context(request).machines, choose_machine(request)
    interfaces: list[dict[str, Any]] = []
    with contextlib.suppress(ControlError):
        if (await machines.call(name, "status", {}, timeout_s=STATUS_S))["agent_ready"]:
            told = await machines.call(name, "agent", {"method": "get_network_info", "timeout_s": STATUS_S})
            interfaces = told["return"]["interfaces"]
    found = [each["address"] for one in interfaces for each in one["addresses"] if each["scope"] in ("global", "site")]
    return answer({"name": name, "addresses": found[:ADDRESSES_MAX]})


async def _list_snapshots(request: web.Request) -> web.StreamResponse:
    machines, name = get_context(request).machines, choose_machine(request)
    kept = await machines.run(list_snapshots, machines.files(name))
    return answer({"name": name, "snapshots": [each.describe() for each in kept]})


async def _snapshot(request: web.Request, body: dict[str, Any]) -> Any:
    name, action, tag = choose_machine(request), body["action"], body.get("tag", "")
    note(request, f"snapshot {action}", name, tag=tag)
    live = body.get("live", False)
    return await get_context(request).machines.work_with_snapshot(name, action, tag, live=live)


def _by_hand(work: Any, action: str) -> Doing:
    """What hands do at the guest's keyboard and pointer (`control.vm.hands`)."""

    async def does(request: web.Request, body: dict[str, Any]) -> Any:
        name, machines = choose_machine(request), get_context(request).machines
        note(request, action, name)

        def at_the_machine() -> None:
            with connect(machines.location.runtime, name) as remote:
                work(remote, **body)

        await machines.run(at_the_machine)
        return {"name": name}

    return does


async def _issue_live_ticket(request: web.Request, body: dict[str, Any]) -> Any:
    return {"ticket": get_context(request).access.issue_ticket(get_session(request), "", "live"), "seconds": TICKET_S}


async def _issue_ticket(request: web.Request, body: dict[str, Any]) -> Any:
    name, session = choose_machine(request), get_session(request)
    context, purpose = get_context(request), "screen"
    if body["for"] == "console":
        purpose = f"console:{context.machines.choose_console(name, body.get('console', ''))}"
    return {"ticket": context.access.issue_ticket(session, name, purpose), "seconds": TICKET_S}


async def _share(request: web.Request, body: dict[str, Any]) -> Any:
    name, session = choose_machine(request), get_session(request)
    link = get_context(request).access.share(name, session.user, body["minutes"] * 60.0)
    note(request, "share", name, minutes=body["minutes"])
    return {"path": f"/share/{link}", "minutes": body["minutes"]}


async def _end_shares(request: web.Request, body: dict[str, Any]) -> Any:
    name = choose_machine(request)
    note(request, "end shares", name)
    return {"ended": get_context(request).access.end_shares(name)}


async def _describe_api(request: web.Request) -> web.StreamResponse:
    return answer(_find_openapi())


@functools.cache
def _find_openapi() -> dict[str, Any]:
    return build_openapi(ROUTES)


_VM = "/api/vms/{name}"
_FILES = {"path": "an absolute path of the guest"}


def _doing(method: str, path: str, summary: str, work: Doing, takes: str, gives: str) -> Route:
    return Route(method, path, "operator", summary, doing(work, takes), takes, gives, is_shared=False)


def _calling(method: str, summary: str, timeout_s: float = CALL_S) -> Route:
    takes, gives = f"control/{method}.params", f"control/{method}.result"
    return _doing("POST", f"{_VM}/{method.replace('_', '-')}", summary, _call(method, timeout_s), takes, gives)


ROUTES = (
    Route("POST", "/api/login", "nobody", "Gives a session for the token, or a name and its password.", _log_in,
          "web/login", "web/me"),
    Route("POST", "/api/logout", "viewer", "Ends this session.", _log_out, gives="web/nothing"),
    Route("GET", "/api/me", "viewer", "Says who this session belongs to, and what they may do.", _tell_who,
          gives="web/me"),
    Route("GET", "/api/openapi.json", "nobody", "This document.", _describe_api, gives="application/json"),
    Route("GET", "/api/libraries", "viewer", "Lists what the pages are made of.", _list_libraries,
          gives="web/libraries"),
    Route("GET", "/api/vms", "viewer", "Lists the machines.", _list, gives="web/vms"),
    Route("GET", "/api/events", "viewer", "Tells of all machines, then of changes: events `vms`.", _all_events,
          gives="text/event-stream"),
    Route("GET", "/api/live", "viewer", "Tells the same over a WebSocket.", _live, opens_socket=True,
          query={"ticket": "of POST /api/tickets", "messages": "a machine whose messages are told too"}),
    Route("POST", "/api/tickets", "viewer", "Gives a ticket for /api/live.", doing(_issue_live_ticket, "web/nothing"),
          "web/nothing", "web/ticket.result"),
    Route("GET", _VM, "viewer", "Says how a machine is doing.", _status, gives="web/status"),
    Route("GET", f"{_VM}/events", "viewer", "Tells of its messages, as they come: events `message`.", _events_of_one,
          gives="text/event-stream"),
    Route("GET", f"{_VM}/logs/{{log}}", "viewer", "Gives the last MiB of a log: serial, hvc0, qemu, messages, "
          "supervisor.", _log, gives="text/plain"),
    Route("GET", f"{_VM}/screen.png", "viewer", "Gives a picture of its screen.", _picture, gives="image/png"),
    Route("GET", f"{_VM}/screen.{{kind}}", "operator", "Gives a file for a native viewer on this host: screen.vnc, "
          "screen.vv.", _connection_file, gives="application/octet-stream", is_shared=False),
    Route("GET", f"{_VM}/screen", "viewer", "Carries its screen, as RFB.", screens.show_screen,
          query={"ticket": "for `screen`"}, opens_socket=True),
    Route("GET", f"{_VM}/console", "viewer", "Carries a console (docs/web.md).", consoles.attend_console,
          query={"ticket": "for `console`, of that console", "console": "the first it has, when not said",
                 "flow": "`ack`: the browser says what it has shown", "run": "of `attached`, to go on",
                 "from": "a position in that run"}, opens_socket=True),
    Route("POST", f"{_VM}/tickets", "viewer", "Gives a ticket for one WebSocket, good for half a minute.",
          doing(_issue_ticket, "web/ticket.params"), "web/ticket.params", "web/ticket.result"),
    _doing("POST", f"{_VM}/start", "Starts it, unless it runs.", _start, "web/start.params", "web/start.result"),
    _doing("POST", f"{_VM}/stop", "Shuts it down, and kills it when it does not go.", _stop, "control/stop.params",
           "web/stop.result"),
    _doing("POST", f"{_VM}/restart", "Stops it and starts it again.", _restart, "control/stop.params",
           "web/start.result"),
    _doing("POST", f"{_VM}/kill", "Ends it at once.", _kill, "control/kill.params", "web/name"),
    _calling("pause", "Lets it stand still."),
    _calling("resume", "Lets it run on."),
    _calling("wait", "Answers when it is that far.", COPY_S),
    _calling("send", "Sends the guest a message, and gives its answer.", COPY_S),
    _calling("agent", "Calls a method of the guest's agent (docs/agent.md).", COPY_S),
    _calling("qmp", "Runs a command of QEMU's monitor."),
    _calling("monitor", "Runs a line of QEMU's monitor."),
    _calling("forward", "Adds, removes or lists forwarded ports."),
    _calling("line", "Sends a serial machine a break, or sets DTR or RTS."),
    _calling("screen_text", "Reads a screen in text mode."),
    Route("GET", f"{_VM}/addresses", "viewer", "Lists the addresses the guest has, as its agent tells.",
          _list_addresses, gives="web/addresses"),
    Route("GET", f"{_VM}/snapshots", "viewer", "Lists its snapshots.", _list_snapshots, gives="cli/snapshot_list"),
    _doing("POST", f"{_VM}/snapshot", "Takes, restores or deletes a snapshot.", _snapshot, "control/snapshot.params",
           "control/snapshot.result"),
    _doing("POST", f"{_VM}/exec", "Runs a program in the guest, and gives what it said.", _exec,
           "web/exec.params", "cli/exec"),
    _doing("POST", f"{_VM}/keys", "Presses keys together, as ctrl-alt-delete.", _by_hand(press, "keys"),
           "web/keys.params", "web/name"),
    _doing("POST", f"{_VM}/type", "Types a text on the guest's keyboard.", _by_hand(type_text, "type"),
           "web/type.params", "web/name"),
    _doing("POST", f"{_VM}/mouse", "Moves the guest's pointer, and clicks.", _by_hand(point, "mouse"),
           "web/mouse.params", "web/name"),
    Route("PUT", f"{_VM}/files", "operator", "Writes a file of the guest: the body.", files.upload, gives="web/file",
          query=_FILES, is_shared=False, raw_body=True),
    Route("GET", f"{_VM}/files", "operator", "Reads a file of the guest, or a directory as tar.", files.download,
          gives="application/octet-stream", query=_FILES, is_shared=False),
    _doing("POST", f"{_VM}/shares", "Makes a link by which whoever has it may look at it.", _share,
           "web/share.params", "web/share.result"),
    _doing("DELETE", f"{_VM}/shares", "Ends all links to it.", _end_shares, "web/nothing", "web/end-shares"),
)  # fmt: skip
