"""Starts, stops and lists the guest's services (guest floor): systemd's, or the scripts in /etc/init.d."""

import os

from . import process, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_INIT_D = "/etc/init.d"
_CHANGE_S = 60.0
_STATUS_S = 5.0
_MAX_SERVICES = 256
_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@.:-")


class ServiceError(Exception):
    """There is no such service."""


def is_name(name: object) -> bool:
    """Whether `name` can be a service: never a path, never an option."""
    return isinstance(name, str) and 1 <= len(name) <= 64 and name[0] not in ".:-" and _NAME_CHARACTERS.issuperset(name)


def has_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


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

    if has_systemd():
        argv = ["systemctl", action, "--", name]
    elif is_name(name) and _is_service(name):
        argv = ["%s/%s" % (_INIT_D, name), action]
    else:
        raise ServiceError("there is no service %s" % name)
    process.Process(loop, argv, ended, timeout_s=_CHANGE_S, limit=4096)


def collect_states(loop: "Loop", done: "Callable[..., Any]") -> None:
    """Calls `done(list of {"name", "state"})` when every service has said how it is, or has had its time to."""
    if has_systemd():
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
            # Source: LSB, init script actions: status exits 0 when running, 3 when not, 1 and 2 when dead.
            codes = {0: "started", 1: "failed", 2: "failed", 3: "stopped"}
            states[name] = "unknown" if result.exit_code is None else codes.get(result.exit_code, "unknown")
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
