"""Builds the configuration file by which ssh, scp and sftp reach one VM (floor 2); pure.

`control.vm` writes the text to the instance directory and runs `ssh -F FILE NAME`.

Source: ssh_config(5) of OpenSSH 9.2.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from control.errors import ConfigError
from control.paths import UNIX_PATH_MAX_BYTES
from control.spec import ssh_options
from control.spec.declaration import SshValue
from control.spec.tomlfile import find_nearest, show_value

DEFAULTS: Mapping[str, SshValue] = {
    # A guest makes new host keys whenever it is made anew, and on 127.0.0.1 the next guest has the same address.
    "StrictHostKeyChecking": False,
    "UserKnownHostsFile": "/dev/null",
    "LogLevel": "ERROR",
    "ConnectTimeout": 10,
    "ServerAliveInterval": 15,
}
"""What holds unless `[ssh]` or the VM says otherwise."""

CONTROL_PERSIST_S = 60
"""How long a connection is kept for the next command."""

CONTROL_SOCKET = "ssh.socket"

_CONTROL_SUFFIX_BYTES = 17
"""ssh listens at the path with a dot and 16 characters behind it first (OpenSSH sources, mux.c)."""


@dataclass(frozen=True)
class SshTarget:
    """One VM as ssh sees it.

    Attributes:
        name: The word after `ssh` on the command line.
        port: On the host; None when an option tells where the VM is.
        directory: What relative paths in options are relative to.
        control_path: Where one connection is shared by many commands; None to open a new one each time.
    """

    name: str
    port: int | None
    directory: Path
    control_path: Path | None = None


def find_control_path(sockets: Path) -> Path | None:
    """Return where ssh can keep a shared connection in the directory `sockets`; None when no such path would do."""
    path = sockets / CONTROL_SOCKET
    if len(os.fsencode(path)) + _CONTROL_SUFFIX_BYTES > UNIX_PATH_MAX_BYTES or "${" in str(path):
        return None
    return path


def build_ssh_config(target: SshTarget, *layers: Mapping[str, SshValue]) -> str:
    """Return the text of an ssh_config for `target` alone.

    Args:
        layers: Options, the global ones first; a later one goes over an earlier one, in whatever case it is written.

    Raises:
        ConfigError: An option has a name or a value that cannot stand in such a file; names it.
    """
    options = _merge(_control_options(target), DEFAULTS, *layers)
    if target.port is not None:
        _take(options, "Port")
        options = {"port": ("Port", target.port), **options}
    host = _take(options, "HostName") or ("HostName", "127.0.0.1")
    lines = [f"Host {target.name}", *_lines(*host, target)]
    for name, value in options.values():
        lines += _lines(name, value, target)
    return "\n    ".join(lines) + "\n"


def find_unknown_options(options: Mapping[str, SshValue]) -> tuple[tuple[str, str], ...]:
    """Return the options we do not know, each with the nearest one we do; ssh itself may know them."""
    known = {name.lower() for name in ssh_options.KNOWN}
    return tuple((name, find_nearest(name, ssh_options.KNOWN)) for name in options if name.lower() not in known)


_Options = dict[str, tuple[str, SshValue]]


def _merge(*layers: Mapping[str, SshValue]) -> _Options:
    merged: _Options = {}
    for layer in layers:
        for name, value in layer.items():
            merged[name.lower()] = (name, value)
    return merged


def _take(options: _Options, name: str) -> tuple[str, SshValue] | None:
    return options.pop(name.lower(), None)


def _control_options(target: SshTarget) -> dict[str, SshValue]:
    if target.control_path is None:
        return {"ControlMaster": False}
    return {
        "ControlMaster": "auto",
        # A percent sign would begin a token (ssh_config(5), "TOKENS").
        "ControlPath": str(target.control_path).replace("%", "%%"),
        "ControlPersist": CONTROL_PERSIST_S,
    }


def _lines(name: str, value: SshValue, target: SshTarget) -> list[str]:
    _check_name(name)
    values = value if isinstance(value, tuple) else (value,)
    return [f"{name} {_show(name, each, target)}" for each in values]


def _check_name(name: str) -> None:
    if not (name.isascii() and name.isalnum() and name[0].isalpha()) or name.lower() in ssh_options.SECTIONS:
        raise ConfigError(
            f"{show_value(name)} cannot be an option of ssh",
            key=f"ssh.{name}",
            hint="options are like ServerAliveInterval; a VM has one section, which is made here",
        )


def _show(name: str, value: str | int | bool, target: SshTarget) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not value.strip() or any(not char.isprintable() and char != "\t" for char in value):
        raise ConfigError(
            f"{name} {show_value(value)} cannot stand in an ssh_config",
            key=f"ssh.{name}",
            hint="a value is one line that is not empty",
        )
    if name.lower() in ssh_options.RAW_REST:
        return value.strip()
    if name.lower() in ssh_options.ONE_FILE:
        return _show_file(name, value.strip(), target)
    _check_quotes(name, value)
    return value.strip()


def _show_file(name: str, value: str, target: SshTarget) -> str:
    if value[0] in "\"'":
        _check_quotes(name, value)
        return value
    is_word = value.lower() in ("none", "ssh_auth_sock", "internal") or value[0] in "/~%$"
    if name.lower() == "controlpath" and not is_word and target.control_path is not None:
        # qqmgr keeps such sockets with the VM, wherever it is called from.
        value = str(target.control_path.parent).replace("%", "%%") + "/" + value.rpartition("/")[2]
    elif not is_word:
        value = str(target.directory).replace("%", "%%") + "/" + value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if escaped != value or any(char in " \t#'" for char in value) else value


def _check_quotes(name: str, value: str) -> None:
    """ssh refuses its whole configuration for one quote that is not closed."""
    try:
        shlex.split(value)
    except ValueError as error:
        raise ConfigError(
            f"{name} {show_value(value)} has a quote that is not closed",
            key=f"ssh.{name}",
            hint='close it, or write \\" for one that means itself',
        ) from error
