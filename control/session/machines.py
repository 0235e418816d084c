"""Machines of a configuration for scripts (floor 4): started, stopped, and in clusters."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from control.errors import ConfigError, ControlError
from control.session.cluster import Cluster
from control.session.configuration import Config, find_configuration
from control.session.session import Session, attach_to_vm
from control.session.shell import Done
from control.spec.fleet import Fleet, build_start_layers, get_vm
from control.vm import lifetime
from control.vm.clones import load_fleet_with_clones

START_TIMEOUT_S = 300.0
PARALLEL_MAX = 32

Readiness = Literal["running", "boot", "agent"]


def start_machine(
    name: str, *, config: Config = None, until: Readiness = "running", timeout: float = START_TIMEOUT_S
) -> bool:
    """Start a machine and those it depends on, and wait until it is that far; whether it did not run before.

    Args:
        config: As `open_session` has it.
        until: What each is waited for: that it runs, that its guest is up, or that its agent answers.
        timeout: Seconds that each may take.

    Raises:
        ConfigError: There is no such machine, or it cannot be as it is declared.
        ControlError: It could not be started, or did not come up in time; what was started is stopped again.
    """
    fleet = load_fleet_with_clones(find_configuration(config))
    get_vm(fleet, name)
    return _start_all(fleet, [name], until, timeout)[name]


def stop_machine(name: str, *, config: Config = None, timeout: float = lifetime.STOP_TIMEOUT_S) -> bool:
    """Shut a machine down, and kill what has not gone after `timeout` seconds; whether it ran. Raises ControlError."""
    fleet = load_fleet_with_clones(find_configuration(config))
    get_vm(fleet, name)
    return lifetime.stop(fleet.location.runtime, name, timeout_s=timeout)


class MachineMember:
    """A machine of a configuration as a member of a `Cluster`: what it is told, it runs at a shell.

    Args:
        console: At which that shell is; empty for one of the agent's where the machine has an agent, else its first.
        is_ours: Whether the machine is stopped when the cluster is cleaned up.
    """

    def __init__(self, fleet: Fleet, name: str, console: str, *, is_ours: bool) -> None:
        vm = get_vm(fleet, name)
        self.name = name
        self._location = fleet.location
        self._console = console or ("shell" if vm.held is None and vm.agent is not False and not vm.is_raw else "")
        self._is_ours = is_ours
        self._session: Session | None = None
        self._using = threading.Lock()

    def execute(self, task: str, /, *args: Any, timeout: float) -> Done:
        """Run a command. Raises CommandTimeout when it takes too long, and then it was interrupted; ControlError."""
        if args:
            raise ConfigError("a command has its arguments in itself", key="args", hint="one command for each: scatter")
        with self._using:
            if self._session is None:
                config = self._location.path
                self._session = attach_to_vm(self.name, console=self._console, config=config, timeout=timeout)
            return self._session.run(task, timeout=timeout)

    def close(self) -> None:
        """Stop the machine, which ends what it runs; of one that is not ours, what it runs is waited for."""
        try:
            if self._is_ours:
                lifetime.stop(self._location.runtime, self.name)
        finally:
            with self._using:
                if self._session is not None:
                    self._session.close()


def create_cluster(
    names: Iterable[str],
    *,
    config: Config = None,
    console: str = "",
    until: Readiness | None = None,
    timeout: float = START_TIMEOUT_S,
) -> Cluster[Done]:
    """Start machines of a configuration, all at once, as one cluster; its `cleanup` stops those that did not run.

    Args:
        console: At which their shells are; empty for one of the agent's where they have an agent, else their first.
        until: What each is waited for; None for the agent of those that have one.

    Raises:
        ConfigError: There is no such machine.
        ControlError: One could not be started; those that were are stopped again.
    """
    fleet = load_fleet_with_clones(find_configuration(config))
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        get_vm(fleet, name)
    started = _start_all(fleet, wanted, until, timeout)
    members = [MachineMember(fleet, name, console, is_ours=started[name]) for name in wanted]
    return Cluster("-".join(wanted[:3]), members)


def _start_all(fleet: Fleet, names: list[str], until: Readiness | None, timeout: float) -> dict[str, bool]:
    """Start machines, one layer of dependencies after the other. Raises what one failed of; none of ours is left."""
    started: dict[str, bool] = {}

    def start(name: str) -> ControlError | None:
        try:
            started[name] = lifetime.start(fleet, name)
            vm = get_vm(fleet, name)
            has_agent = vm.held is None and vm.agent is not False and not vm.is_raw
            what = until or ("agent" if has_agent else "boot")
            if what != "running":
                lifetime.wait_for(fleet.location.runtime, name, what, timeout)
        except ControlError as error:
            return error
        return None

    for layer in build_start_layers(fleet, names):
        with ThreadPoolExecutor(min(len(layer), PARALLEL_MAX)) as pool:
            failures = [error for error in pool.map(start, layer) if error is not None]
        if failures:
            for name in [name for name, is_ours in started.items() if is_ours]:
                lifetime.stop(fleet.location.runtime, name)
            raise failures[0]
    return started
