"""`unhinged ssh`, and `put` and `get` by its means (floor 4): the user's own ssh, configured for one VM."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

from control.cli.desk import Desk
from control.errors import ConfigError, HostError, StateError
from control.spec.fleet import get_vm
from control.ssh.config import SshTarget, build_ssh_config, find_control_path
from control.vm.declared import find_ssh_port
from control.vm.instance import write_atomically
from control.vm.reach import look


def ssh(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    _become(["ssh", "-F", str(write_config(desk, name)), name, *desk.options.words])


def copy(desk: Desk, name: str, method: str, paths: list[str]) -> int:
    """Copy with scp."""
    if desk.is_json:
        raise ConfigError("scp prints no JSON", hint="leave out --json, or --via ssh")
    *sources, target = paths
    if method == "put":
        sources, target = [_local(path) for path in sources], f"{name}:{target}"
    else:
        sources, target = [f"{name}:{path}" for path in sources], _local(target)
    _become(["scp", "-r", "-p", "-F", str(write_config(desk, name)), "--", *sources, target])


def write_config(desk: Desk, name: str) -> Path:
    """Write the ssh configuration of a VM into its directory, and say where.

    Raises:
        ConfigError: It has none.
        StateError: It does not run.
    """
    vm = get_vm(desk.fleet, name)
    if vm.ssh is None:
        raise ConfigError(
            f"{name} has no ssh", key=f"vm.{name}.ssh", hint=f"add [vm.{name}.ssh]; or: unhinged exec {name} -- …"
        )
    seen = look(desk.runtime, name)
    if not seen.is_running:
        raise StateError(f"{name} does not run", state=seen.state, required=("RUNNING",), hint=f"unhinged start {name}")
    port = find_ssh_port(vm, seen.record.ports if seen.record is not None else {})
    if port is None and not vm.ssh.is_elsewhere:
        raise ConfigError(f"{name} has no port for ssh", key=f"vm.{name}.ssh.port", hint="name the port of the host")
    target = SshTarget(name, port, desk.location.directory, find_control_path(seen.files.sockets))
    text = build_ssh_config(target, desk.fleet.ssh_options, vm.ssh.options)
    write_atomically(seen.files.ssh_config, text.encode())
    return seen.files.ssh_config


def _local(path: str) -> str:
    """A path that scp does not take for another host's."""
    return path if path.startswith(("/", "./", "../")) else f"./{path}"


def _become(argv: list[str]) -> NoReturn:
    """Become that program, so that its exit code, its terminal and its signals are its own."""
    program = shutil.which(argv[0])
    if program is None:
        raise HostError(f"{argv[0]} is not installed", hint="apt-get install openssh-client")
    os.execv(program, argv)  # noqa: S606 - no shell is wanted
