"""Starts, stops and lists the guest's services (guest floor): systemd's, or the scripts in /etc/init.d."""

import os

from . import dispatch, process, steps, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .loop import Loop

_INIT_D = "/etc/init.d"
_CHANGE_S = 60.0
_STATUS_S = 5.0
# systemd reads every unit's file for its list, which takes seconds where a machine is slow or has just begun.
_LIST_S = 60.0
_MAX_SERVICES = 256
_MAX_LIST_BYTES = 1024 * 1024
# Source: systemd.unit(5), description: the characters of a unit's name, at most 255 of them.
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@.:-\\")
_MAX_NAME = 255
# Source: LSB, init script actions: status exits 0 when running, 3 when not, 1 and 2 when dead.
_SCRIPT_STATES = {0: "started", 1: "failed", 2: "failed", 3: "stopped"}
# Source: org.freedesktop.systemd1(5), property ActiveState.
_UNIT_STATES = {
    "active": "started",
    "reloading": "started",
    "refreshing": "started",
    "inactive": "stopped",
    "failed": "failed",
    "activating": "starting",
    "deactivating": "stopping",
}
_ENDED = "ExecMainExitTimestampMonotonic"
_PROPERTIES = "Id,Description,LoadState,ActiveState,SubState,UnitFileState,MainPID,ExecMainStatus," + _ENDED


class ServiceError(Exception):
    """There is no such service."""


def is_name(name: object) -> bool:
    """Whether `name` can be a service: never a path, never an option."""
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME or name[0] in ".:-\\":
        return False
    return _NAME_CHARACTERS.issuperset(name)


def change(loop: "Loop", name: str, action: str, done: "Callable[..., Any]") -> None:
    """Does `action` (`start` or `stop`), then calls `done(reason)` with None, or what went wrong.

    Raises:
        ServiceError: There is no such service; nothing was done.
    """

    def ended(result: "process.Result") -> None:
        if result.exit_code == 0:
            done(None)
            return
        text = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
        if result.timed_out:
            text = "it took longer than %g seconds" % _CHANGE_S
        done(text[:400] or "exit code %s" % result.exit_code)

    if system.has_systemd():
        argv = ["systemctl", action, "--", name]
    elif is_name(name) and _is_service(name):
        argv = ["%s/%s" % (_INIT_D, name), action]
    else:
        raise ServiceError("there is no service %s" % name)
    process.Process(loop, argv, ended, timeout_s=_CHANGE_S, limit=4096)


def collect_states(loop: "Loop", done: "Callable[..., Any]") -> None:
    """Calls `done(list of {"name", "state"})` when every service has said how it is, or has had its time to."""
    if system.has_systemd():
        _collect_units(loop, done)
    else:
        _collect_scripts(loop, done)


def _collect_units(loop: "Loop", done: "Callable[..., Any]") -> None:
    def ended(result: "process.Result") -> None:
        states = []
        for line in result.stdout.decode("utf-8", "replace").splitlines()[:_MAX_SERVICES]:
            fields = line.split()
            if len(fields) >= 4:
                state = {"active": "started", "inactive": "stopped", "failed": "failed"}.get(fields[2], "unknown")
                states.append({"name": fields[0][:256], "state": state})
        done(states)

    argv = ["systemctl", "list-units", "--type=service", "--all", "--plain", "--no-legend", "--no-pager"]
    process.Process(loop, argv, ended, timeout_s=_STATUS_S)


def _collect_scripts(loop: "Loop", done: "Callable[..., Any]") -> None:
    names = _list_scripts()
    states: "dict[str, str]" = {}

    def finish() -> None:
        done([{"name": name, "state": states[name]} for name in names])

    def ask(name: str) -> None:
        def ended(result: "process.Result") -> None:
            states[name] = _script_state(result)
            ask_next()

        try:
            process.Process(loop, [_INIT_D + "/" + name, "status"], ended, timeout_s=_STATUS_S, limit=256)
        except OSError:
            states[name] = "unknown"  # a script that cannot be executed cannot say how it is
            loop.soon(ask_next)

    waiting = list(names)

    def ask_next() -> None:
        if waiting:
            ask(waiting.pop(0))
        else:
            finish()

    ask_next()


def _list_scripts() -> "list[str]":
    try:
        names = sorted(os.listdir(_INIT_D))
    except OSError:
        return []
    return [name for name in names if is_name(name) and _is_service(name)][:_MAX_SERVICES]


def _is_service(name: str) -> bool:
    """Whether the script is a service's: what init runs at boot and at the end lies there too, and asking that for its
    `status` would run it. A service knows the word, or leaves it to the `run_service` of the built-in guest."""
    path = "%s/%s" % (_INIT_D, name)
    if not os.access(path, os.X_OK):
        return False
    script = system.read_text(path)
    return "status" in script or "run_service" in script


# For the methods: steps that give what they found


def find_all() -> "Generator[Any, Any, dict[str, dict[str, Any]]]":
    """All services by name, with what a list says of each."""
    if system.has_systemd():
        return (yield from _find_units())
    found = {}
    for name in _list_scripts():
        result = yield steps.Run([_INIT_D + "/" + name, "status"], timeout_s=_STATUS_S, limit=256)
        found[name] = {"name": name, "state": _script_state(result), "enabled": None, "description": ""}
    return found


def get_status(name: str) -> "Generator[Any, Any, dict[str, Any]]":
    """How one service is.

    Raises:
        CallError: There is no such service.
    """
    if system.has_systemd():
        return (yield from _get_unit(name))
    if not _is_service(name):
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no service %s" % name)
    result = yield steps.Run([_INIT_D + "/" + name, "status"], timeout_s=_STATUS_S, limit=1024)
    said = (result.stdout + result.stderr).decode("utf-8", "replace").strip()
    return {
        "name": name,
        "state": _script_state(result),
        "detail": said[:1024],
        "enabled": None,
        "pid": None,
        "exit_code": None,
        "description": "",
    }


def carry_out(name: str, action: str, timeout_s: float) -> "Generator[Any, Any, dict[str, Any]]":
    """Starts, stops or restarts a service and waits until it says that this is done; gives its status.

    Raises:
        CallError: There is none, or it failed; the text is what the service manager said.
    """
    before = yield from get_status(name)
    argv = [_INIT_D + "/" + name, action]
    if system.has_systemd():
        argv = ["systemctl", action, "--", before["name"]]
    result = yield steps.Run(argv, timeout_s=timeout_s, limit=4096)
    steps.check_success(result, "%s %s" % (action, name))
    return (yield from get_status(name))


def _find_units() -> "Generator[Any, Any, dict[str, dict[str, Any]]]":
    plain = ["--type=service", "--all", "--plain", "--no-legend", "--no-pager"]
    files = yield steps.Run(["systemctl", "list-unit-files", *plain], timeout_s=_LIST_S, limit=_MAX_LIST_BYTES)
    steps.check_success(files, "systemctl list-unit-files")
    units = yield steps.Run(["systemctl", "list-units", "--full", *plain], timeout_s=_LIST_S, limit=_MAX_LIST_BYTES)
    steps.check_success(units, "systemctl list-units")
    found = {}
    for words in _split_lines(files, 2):
        # A template (name@.service) can only be started under a name of its own.
        if not words[0].endswith("@.service"):
            enabled = words[1] in ("enabled", "enabled-runtime")
            found[words[0]] = {"name": words[0], "state": "stopped", "enabled": enabled, "description": ""}
    for words in _split_lines(units, 4):
        # UNIT LOAD ACTIVE SUB DESCRIPTION
        entry = found.setdefault(words[0], {"name": words[0], "enabled": None})
        entry["state"] = _UNIT_STATES.get(words[2], "unknown")
        entry["description"] = " ".join(words[4:])[:256]
    return found


def _get_unit(name: str) -> "Generator[Any, Any, dict[str, Any]]":
    argv = ["systemctl", "show", "--no-pager", "--property=" + _PROPERTIES, "--", name]
    result = yield steps.Run(argv, timeout_s=_STATUS_S)
    steps.check_success(result, "systemctl show")
    values: "dict[str, str]" = {}
    for line in result.stdout.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition("=")
        values[key] = value
    if values.get("LoadState") in ("not-found", "bad-setting", "error", None):
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no service %s" % name)
    pid = values.get("MainPID", "0")
    ended = values.get(_ENDED, "0") not in ("0", "")
    status = values.get("ExecMainStatus", "")
    enabled = values.get("UnitFileState", "")
    return {
        "name": values.get("Id", name)[:256],
        "state": _UNIT_STATES.get(values.get("ActiveState", ""), "unknown"),
        "detail": values.get("SubState", "")[:1024],
        "enabled": enabled in ("enabled", "enabled-runtime") if enabled else None,
        "pid": int(pid) if pid.isdigit() and pid != "0" else None,
        "exit_code": int(status) if ended and status.isdigit() else None,
        "description": values.get("Description", "")[:256],
    }


def _script_state(result: "process.Result") -> str:
    return "unknown" if result.exit_code is None else _SCRIPT_STATES.get(result.exit_code, "unknown")


def _split_lines(result: "process.Result", least: int) -> "list[list[str]]":
    lines = [line.split() for line in result.stdout.decode("utf-8", "replace").splitlines()]
    return [words for words in lines if len(words) >= least]
