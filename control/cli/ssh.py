"""`unhinged ssh`, and `put` and `get` by its means (floor 6): the user's own ssh, configured for one VM.

A VM that ssh does not reach is entered through its agent, unless the user insists.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from control.cli.desk import Desk
from control.errors import ConfigError, ControlError, HostError, StateError
from control.process.piped import run_piped
from control.process.run import run
from control.spec.declaration import SshValue, VMDeclaration
from control.spec.fleet import get_vm
from control.ssh.config import SshTarget, build_ssh_config, find_control_path
from control.ssh.copying import build_get, build_put, pack, unpack
from control.ssh.keys import make_key
from control.vm.declared import find_ssh_port
from control.vm.instance import write_atomically
from control.vm.reach import Seen, connect, look

COMMAND_TIMEOUT_S = 24 * 3600.0
"""A command takes as long as it takes; with --json its output is kept until its end."""

BANNER_WAIT_S = 3.0
"""A server says who it is at once (RFC 4253, section 4.2); QEMU takes connections for one that is not there."""

LOGIN_SHELL = 'exec "${SHELL:-/bin/sh}" -l'
DEFAULT_USER = "root"


def ssh(desk: Desk) -> int:
    """Log in, or run a command, as ssh does: the words are joined, and a shell in the guest reads them."""
    name = desk.check_name(desk.options.name)
    line = " ".join(desk.options.words)
    if desk.is_json and not line:
        raise ConfigError("a login has no document", hint=f"name a command: unhinged ssh --json {name} -- true")
    if _choose_way(desk, name) == "agent":
        return _enter_by_agent(desk, name, line)
    argv = [_find("ssh"), "-F", str(write_config(desk, name)), name, *desk.options.words]
    if not desk.is_json:
        _become(argv)
    done = asyncio.run(run(argv, timeout_s=COMMAND_TIMEOUT_S))
    exit_code = done.return_code if done.return_code is not None and done.return_code >= 0 else 255
    texts = {"stdout": done.stdout.decode("utf-8", "replace"), "stderr": done.stderr.decode("utf-8", "replace")}
    desk.show({"name": name, "via": "ssh", "exit_code": exit_code, **texts})
    return exit_code


def copy(desk: Desk, name: str, method: str, paths: list[str]) -> int:
    """Copy as `cp -r` would, through a shell in the guest."""
    *sources, target = paths
    argv = [_find("ssh"), "-F", str(write_config(desk, name)), name]
    if method == "put":
        code, words = run_piped([*argv, build_put(sources, target)], "stdin", lambda pipe: pack(sources, pipe))
    else:
        where = Path(target)
        code, words = run_piped([*argv, build_get(sources)], "stdout", lambda pipe: unpack(pipe, where, sources))
    if code != 0:
        said = words.strip().splitlines()
        raise ControlError(
            f"{method} over ssh failed: {said[0] if said else f'ssh ended with exit code {code}'}",
            hint=f"unhinged ssh {name} tries the same connection; --via agent goes another way",
        )
    desk.show({"name": name, "via": "ssh"})
    return 0


def write_config(desk: Desk, name: str) -> Path:
    """Write the ssh configuration of a VM into its directory, see to it that its key is known there, and say where.

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
    port = _find_port(vm, seen)
    if port is None and not vm.ssh.is_elsewhere:
        raise ConfigError(f"{name} has no port for ssh", key=f"vm.{name}.ssh.port", hint="name the port of the host")
    target = SshTarget(name, port, desk.location.directory, find_control_path(seen.files.sockets))
    options = desk.fleet.ssh_options, vm.ssh.options
    text = build_ssh_config(target, _give_key(desk, name, seen, *options), *options)
    write_atomically(seen.files.ssh_config, text.encode())
    return seen.files.ssh_config


def _give_key(desk: Desk, name: str, seen: Seen, *layers: Mapping[str, SshValue]) -> dict[str, SshValue]:
    """Where the file names no key and the guest has our agent: let a key of the VM's own in, by way of the agent."""
    named = {option.lower(): value for layer in layers for option, value in layer.items()}
    if "identityfile" in named or seen.record is None or not seen.record.agent:
        return {}
    user = str(named.get("user", DEFAULT_USER))
    control = find_control_path(seen.files.sockets)
    if control is None or not control.exists():  # else the door is open already
        try:
            key = asyncio.run(make_key(seen.files.ssh_key, run))
            with connect(desk.runtime, name) as remote:
                remote.call("authorize", {"user": user, "key": key})
        except ControlError as error:
            desk.note(f"{name} was not given a key: {error}")
            return {}
    return {"User": user, "IdentityFile": str(seen.files.ssh_key)}


def _choose_way(desk: Desk, name: str) -> str:
    """`ssh` or `agent`: what the user says, else ssh where it answers, else the agent."""
    chosen: str | None = desk.options.via
    if chosen is not None:
        return chosen
    vm, seen = get_vm(desk.fleet, name), look(desk.runtime, name)
    has_agent = seen.record is not None and seen.record.agent
    if vm.ssh is None or (_find_port(vm, seen) is None and not vm.ssh.is_elsewhere):
        return "agent"
    if vm.ssh.is_elsewhere or not has_agent or not seen.is_running:
        return "ssh"
    port = _find_port(vm, seen)
    if port is not None and _has_banner(port):
        return "ssh"
    desk.note(f"no ssh server answers behind port {port}: {name} is entered through its agent")
    return "agent"


def _enter_by_agent(desk: Desk, name: str, line: str) -> int:
    from control.cli.guest import run_in_guest

    is_terminal = not line and not desk.is_json and os.isatty(0)
    return run_in_guest(
        desk,
        name,
        {"argv": ["sh", "-c", line or LOGIN_SHELL]},
        is_terminal=is_terminal,
        find_more=lambda: {"via": "agent"},
    )


def _find_port(vm: VMDeclaration, seen: Seen) -> int | None:
    return find_ssh_port(vm, seen.record.ports if seen.record is not None else {})


def _has_banner(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=BANNER_WAIT_S) as connection:
            return connection.recv(4).startswith(b"SSH-")
    except OSError:
        return False


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise HostError(f"{program} is not installed", hint="apt-get install openssh-client")
    return found


def _become(argv: list[str]) -> NoReturn:
    """Become that program, so that its exit code, its terminal and its signals are its own."""
    os.execv(argv[0], argv)  # noqa: S606 - no shell is wanted
