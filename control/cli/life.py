"""`unhinged start`, `stop`, `kill`, `restart`, `pause`, `resume`, `wait` (floor 6): many VMs at once, one fate each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from control.cli.desk import Desk, describe_error, show_error
from control.cli.progress import Board
from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.spec.fleet import build_start_layers, get_vm
from control.units import format_duration
from control.vm import lifetime
from control.vm.reach import connect, kill_directly, look

KILL_ANSWER_S = 5.0
"""A supervisor that has not killed its VM by then is not waited for."""

PARALLEL_MAX = 32


@dataclass
class Fate:
    """What became of one VM."""

    name: str
    outcome: str
    seconds: float = 0.0
    error: ControlError | None = None

    def to_plain(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 3),
            "error": describe_error(self.error) if self.error is not None else None,
        }


def start(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    return conclude(desk, _start_all(desk, names, is_paused=desk.options.paused))


def restart(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    fates = {fate.name: fate for fate in for_each(names, lambda name: _stop_one(desk, name, desk.options.timeout))}
    stopped = [name for name in names if fates[name].error is None]
    failed = [fates[name] for name in names if fates[name].error is not None]
    return conclude(desk, [*failed, *_start_all(desk, stopped, is_paused=False)])


def stop(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    fates: list[Fate] = []
    for layer in _list_stop_layers(desk, names):
        fates += for_each(layer, lambda name: _stop_one(desk, name, desk.options.timeout))
    return conclude(desk, fates)


def kill(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    return conclude(desk, for_each(names, lambda name: _kill_one(desk, name)))


def pause(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    return conclude(desk, for_each(names, lambda name: _tell_one(desk, name, "pause", "paused")))


def resume(desk: Desk) -> int:
    names = desk.choose_names(desk.options.names, everything=desk.options.all)
    return conclude(desk, for_each(names, lambda name: _tell_one(desk, name, "resume", "resumed")))


def wait(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    started = time.monotonic()
    if options.what == "stopped" and not desk.look(name).is_running:
        seconds = 0.0
    else:
        _wait_for(desk, name, options.what, options.timeout)
        seconds = time.monotonic() - started
    desk.show({"name": name, "for": options.what, "seconds": round(seconds, 3)})
    return 0


# -- starting ----------------------------------------------------------------------------------------------------------


def _start_all(desk: Desk, names: list[str], *, is_paused: bool) -> list[Fate]:
    """Start `names` and what they depend on, one layer after the other; a layer waits for what the user waits for."""
    layers = build_start_layers(desk.fleet, names)
    with desk.open_board(name for layer in layers for name in layer) as board:
        return _start_layers(desk, layers, board, is_paused=is_paused)


def _start_layers(desk: Desk, layers: Iterable[Iterable[str]], board: Board, *, is_paused: bool) -> list[Fate]:
    fates: dict[str, Fate] = {}
    for layer in layers:
        ready = []
        for name in layer:
            missing = [need for need in get_vm(desk.fleet, name).depends_on if fates[need].error is not None]
            if missing:
                error = StateError(
                    f"{name} was not started: {missing[0]}, on which it depends, was not either",
                    state="STOPPED",
                    required=(missing[0],),
                )
                fates[name] = Fate(name, "failed", error=error)
            else:
                ready.append(name)
        for fate in for_each(ready, lambda name: _start_one(desk, name, board, is_paused=is_paused)):
            fates[fate.name] = fate
    return list(fates.values())


def _start_one(desk: Desk, name: str, board: Board, *, is_paused: bool) -> Fate:
    board.tell(name, "starting QEMU")
    try:
        return _start_and_wait(desk, name, board, is_paused=is_paused)
    finally:
        board.tell(name, "")


def _start_and_wait(desk: Desk, name: str, board: Board, *, is_paused: bool) -> Fate:
    started = time.monotonic()
    say = (lambda note: None) if desk.is_json else desk.note_once
    was_started = lifetime.start(desk.fleet, name, is_paused=is_paused, hired=desk.hired.get(name), say=say)
    outcome = "started" if was_started else "already running"
    if not is_paused and desk.options.wait != "running":
        board.tell(name, "waiting")
        _wait_for(desk, name, desk.options.wait, desk.options.wait_timeout, lambda phase: board.tell(name, phase))
    return Fate(name, outcome, time.monotonic() - started)


def _wait_for(
    desk: Desk, name: str, what: str, timeout_s: float, on_phase: Callable[[str], None] | None = None
) -> None:
    from control.vm.declared import find_ssh_port

    more: dict[str, Any] = {}
    if what == "ssh":
        from control.vm.declared import find_ssh_port

        record = look(desk.runtime, name).record
        port = find_ssh_port(get_vm(desk.fleet, name), record.ports if record is not None else {})
        if port is None:
            raise ConfigError(f"{name} has no port for ssh", key=f"vm.{name}.ssh", hint='declare one: port = "auto"')
        more["port"] = port
    lifetime.wait_for(desk.runtime, name, what, timeout_s, on_phase, **more)


# -- ending ------------------------------------------------------------------------------------------------------------


def _list_stop_layers(desk: Desk, names: list[str]) -> list[list[str]]:
    """Those that depend on others go first."""
    layers = [[name for name in layer if name in names] for layer in build_start_layers(desk.fleet, names)]
    return [layer for layer in reversed(layers) if layer]


def _stop_one(desk: Desk, name: str, timeout_s: float) -> Fate:
    started = time.monotonic()
    if desk.look(name).foreign is not None:
        return _end_foreign(desk, name, "stopped", patience_s=timeout_s)
    if not lifetime.stop(desk.runtime, name, timeout_s=timeout_s):
        return Fate(name, "already stopped")
    return Fate(name, "stopped", time.monotonic() - started)


def _kill_one(desk: Desk, name: str) -> Fate:
    started = time.monotonic()
    if desk.look(name).foreign is not None:
        return _end_foreign(desk, name, "killed", patience_s=None)
    try:
        with lifetime.reach_anyhow(desk.runtime, name) as remote:
            if remote is None:
                return Fate(name, "already stopped")
            remote.call("kill", timeout_s=KILL_ANSWER_S)
    except (WaitTimeout, StateError):
        if not kill_directly(desk.runtime, name):
            return Fate(name, "already stopped")
    lifetime.wait_until_free(desk.runtime, name)
    return Fate(name, "killed", time.monotonic() - started)


def _end_foreign(desk: Desk, name: str, outcome: str, *, patience_s: float | None) -> Fate:
    from control.vm.foreign import end_foreign

    started = time.monotonic()
    directory = desk.look(name).foreign
    if directory is not None:
        end_foreign(directory, patience_s=patience_s)
    return Fate(name, outcome, time.monotonic() - started)


def _tell_one(desk: Desk, name: str, method: str, outcome: str) -> Fate:
    started = time.monotonic()
    with connect(desk.runtime, name) as remote:
        remote.call(method)
    return Fate(name, outcome, time.monotonic() - started)


# -- many at once ------------------------------------------------------------------------------------------------------


def for_each(names: Iterable[str], work: Callable[[str], Fate]) -> list[Fate]:
    """Do `work` for all of them at once; the failure of one is its fate and nobody else's."""

    def attempt(name: str) -> Fate:
        try:
            return work(name)
        except ControlError as error:
            return Fate(name, "failed", error=error)
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            return Fate(name, "failed", error=ControlError(f"{what}{error.strerror or error}"))

    names = list(names)
    if len(names) < 2:
        return [attempt(name) for name in names]
    with ThreadPoolExecutor(min(len(names), PARALLEL_MAX)) as pool:
        return list(pool.map(attempt, names))


def conclude(desk: Desk, fates: list[Fate]) -> int:
    """Say what became of each VM; the exit code is that of the first failure."""
    exit_code = next((fate.error.exit_code for fate in fates if fate.error is not None), 0)
    if desk.is_json:
        desk.show({"vms": [fate.to_plain() for fate in fates], "exit_code": exit_code})
        return exit_code
    for fate in fates:
        if fate.error is not None:
            show_error(fate.error, is_json=False)
        else:
            took = f" ({format_duration(fate.seconds)})" if fate.seconds else ""
            desk.note(f"{fate.name}: {fate.outcome}{took}")
    return exit_code
