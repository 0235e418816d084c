"""The one dispatcher of message commands (guest floor), whatever carrier they come by.

A command is answered exactly once, through the `reply` of its carrier: by `VERB done` or by an error message.
"""

import os
from time import monotonic

from . import PROTOCOL, VERSION, config, dispatch, message, mounts, power, services, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .main import Agent

_START = system.read_uptime_s()


class Refusal(Exception):
    """A command that is answered with an error message; `code` is the short name of the reason."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Command:
    """One command under way; ended by exactly one `done` or `fail`."""

    def __init__(
        self, agent: "Agent", verb: str, details: "dict[str, Any]", id_: "str | None", reply: "Callable[..., Any]"
    ) -> None:
        self.agent = agent
        self.verb = verb
        self.details = details
        self._id = id_
        self._reply = reply
        self._begin = monotonic()

    def done(self, details: "dict[str, Any]") -> None:
        self._record(0)
        self._reply(message.build("status", self.verb + " done", details, self._id))

    def fail(self, code: str, text: str) -> None:
        self._record(dispatch.NOT_PERMITTED if code == "not-permitted" else dispatch.FAILED)
        self._reply(message.build("error", text, {"code": code, "command": self.verb}, self._id))

    def _record(self, code: int) -> None:
        self.agent.guard.record("message " + self.verb[:64], self.details, code, monotonic() - self._begin)


def handle(agent: "Agent", envelope: "Any", reply: "Callable[..., Any]") -> None:
    """Carries out the message `envelope` and answers it with `reply(message)`, now or later."""
    counters = agent.counters
    counters["messages"] += 1
    fault = message.find_fault(envelope)
    if fault is not None:
        counters["messages_refused"] += 1
        id_ = envelope.get("id") if isinstance(envelope, dict) else None
        answered = id_ if message.is_id(id_) else None
        reply(message.build("error", "the message was refused: " + fault, {"code": "bad-message"}, answered))
        return
    id_, type_ = envelope.get("id"), envelope["type"]
    data = envelope["data"]
    if envelope["direction"] != "host-to-vm":
        counters["messages_refused"] += 1
        text = "the message was refused: it came from the host and says that it comes from the guest"
        reply(message.build("error", text, {"code": "bad-direction"}, id_))
        return
    if type_ not in ("command", "graphics"):
        return  # the host may tell us how it is; only commands are answered
    command = Command(agent, data["message"], data["details"], id_, reply)
    try:
        entry = _COMMANDS.get((type_, command.verb))
        if entry is None:
            raise Refusal("unknown-command", "there is no %s %s" % (type_, command.verb[:64]))
        agent.guard.admit_verb(command.verb)
        function, keys = entry
        _check_details(command.details, keys)
        function(command)
    except Refusal as refusal:
        counters["messages_refused"] += 1
        command.fail(refusal.code, str(refusal))
    except dispatch.CallError as refusal:
        counters["messages_refused"] += 1
        command.fail("not-permitted", str(refusal))
    except OSError as error:
        command.fail("failed", "%s: %s" % (command.verb, error.strerror or error))


def _check_details(details: "dict[str, Any]", keys: "dict[str, Any]") -> None:
    for key in details:
        if key not in keys:
            raise Refusal("bad-details", "%s is not a detail of this command" % key[:64])
    for key, (required, expected, is_right) in keys.items():
        if key in details and not is_right(details[key]):
            raise Refusal("bad-details", "%s is not %s" % (key, expected))
        if required and key not in details:
            raise Refusal("bad-details", "%s is missing" % key)


def _diagnostics(command: Command) -> None:
    agent = command.agent

    def finish(states: "list[dict[str, Any]]") -> None:
        memory = system.read_memory()
        uptime_s = system.read_uptime_s()
        command.done(
            {
                "agent": {
                    "version": VERSION,
                    "protocol": PROTOCOL,
                    "pid": os.getpid(),
                    "memory_bytes": system.read_own_memory(),
                    "uptime_s": round(uptime_s - _START, 2),
                },
                "system": {
                    "hostname": system.read_hostname(),
                    "os": system.read_os_name(),
                    "kernel": system.read_kernel(),
                    "architecture": system.read_architecture(),
                    "cpus": system.count_cpus(),
                    "load": system.read_load(),
                    "uptime_s": uptime_s,
                },
                "memory": {
                    "total_bytes": memory["MemTotal"],
                    "available_bytes": memory["MemAvailable"],
                    "free_bytes": memory["MemFree"],
                    "swap_total_bytes": memory["SwapTotal"],
                    "swap_free_bytes": memory["SwapFree"],
                },
                "disks": mounts.list_disks(),
                "display": _find_display(),
                "services": states,
                "carriers": agent.list_carriers(),
                "counters": dict(agent.counters),
            }
        )

    services.collect_states(agent.loop, finish)


def _find_display() -> "dict[str, Any] | None":
    from .display import find_display

    return find_display()


def _start_service(command: Command) -> None:
    _change_service(command, "start", "started")


def _stop_service(command: Command) -> None:
    _change_service(command, "stop", "stopped")


def _change_service(command: Command, action: str, state: str) -> None:
    name = command.details["name"]

    def done(reason: "str | None") -> None:
        seen = state if reason is None else "failed"
        if reason is None or action == "start":
            details = {"service": name, "state": seen}
            command.agent.emit("status", "service %s %s" % (name, seen), details)
        if reason is None:
            command.done({"service": name, "state": state})
        else:
            command.fail("failed", "%s %s: %s" % (command.verb, name, reason))

    try:
        services.change(command.agent.loop, name, action, done)
    except services.ServiceError as error:
        raise Refusal("not-found", str(error)) from None


def _set_configuration(command: Command) -> None:
    key, value = command.details["key"], command.details["value"]
    fault = config.find_fault(key, value)
    if fault is not None:
        raise Refusal("bad-details", "%s %s" % (key[:64], fault))
    if not config.KEYS[key][2]:
        raise Refusal("not-permitted", "%s can only be set in the configuration file" % key)
    command.agent.config[key] = value
    if key == "heartbeat_s":
        command.agent.set_heartbeat()
    command.done({"key": key, "value": value})


def _shutdown(command: Command) -> None:
    _end(command, "poweroff")


def _restart(command: Command) -> None:
    _end(command, "reboot")


def _end(command: Command, action: str) -> None:
    try:
        go = power.prepare(command.agent, action)
    except power.PowerError as error:
        raise Refusal("not-found", str(error)) from None
    command.done({})
    go()


def _show_text(command: Command) -> None:
    from .display import screen

    screen.show_text(command)


def _show_picture(command: Command) -> None:
    from .display import screen

    if ("data" in command.details) == ("path" in command.details):
        raise Refusal("bad-details", "a picture comes by data or by path: give exactly one of them")
    screen.show_picture(command)


def _set_mode(command: Command) -> None:
    from .display import screen

    screen.set_mode(command)


def _is_text(limit: int) -> "Callable[[object], bool]":
    return lambda value: isinstance(value, str) and len(value) <= limit


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) <= 4096


def _is_size(value: object) -> bool:
    return type(value) is int and 1 <= value <= 16384


_SERVICE = {"name": (True, "the name of a service", services.is_name)}
_SIZE = (True, "an integer from 1 to 16384", _is_size)
_ANYTHING = (True, "a value", lambda _value: True)

# (type, verb): the function, and its details as key: (required, what is expected, check)
_COMMANDS: "dict[tuple[str, str], tuple[Callable[[Command], None], dict[str, Any]]]" = {
    ("command", "diagnostics"): (_diagnostics, {}),
    ("command", "start service"): (_start_service, _SERVICE),
    ("command", "stop service"): (_stop_service, _SERVICE),
    ("command", "set configuration"): (
        _set_configuration,
        {"key": (True, "a string of at most 64 characters", _is_text(64)), "value": _ANYTHING},
    ),
    ("command", "shutdown"): (_shutdown, {}),
    ("command", "restart"): (_restart, {}),
    ("graphics", "show text"): (
        _show_text,
        {"text": (True, "a string of at most 16384 characters", _is_text(16384))},
    ),
    ("graphics", "show picture"): (
        _show_picture,
        {
            "format": (True, "ppm or png", lambda value: value in ("ppm", "png")),
            "data": (False, "base64", _is_text(4 * 1024 * 1024)),
            "path": (False, "an absolute path", _is_path),
        },
    ),
    ("graphics", "set mode"): (_set_mode, {"width": _SIZE, "height": _SIZE}),
}
