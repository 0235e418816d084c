"""The keys of machines that no QEMU runs (floor 1); `declaration` reads a VM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from control.errors import ConfigError
from control.spec.held import FLOWS, PARITIES, PORT_SCHEMES, HeldSpec, ProcessSpec, SerialSpec
from control.spec.limits import Limits
from control.spec.tables import Table
from control.spec.tomlfile import show_value

if TYPE_CHECKING:
    from control.spec.declaration import Surroundings

COMMON_KEYS = ("kind", "abstract", "extends", "depends_on", "restart", "vars")
PROCESS_KEYS = ("command", "cwd", "env", "limits")
SERIAL_KEYS = ("port", "baud", "data_bits", "parity", "stop_bits", "flow", "dtr", "rts")

BAUD_MIN, BAUD_MAX = 50, 20_000_000
"""From the slowest of termios (POSIX) to more than any adapter is known to do."""


def read_held(table: Table, kind: str, name: str, limits: Limits, around: Surroundings) -> HeldSpec | None:
    """Read a machine of `kind`; None when it lacks what it cannot do without, which is reported."""
    return _read_process(table, name, limits, around) if kind == "process" else _read_serial(table, name, around)


def check_kind(table: Table, kind: str, keys_of_kind: Mapping[str, tuple[str, ...]]) -> None:
    """Report each key that says nothing of a machine of `kind`."""
    for owner, keys in keys_of_kind.items():
        for key in keys:
            if key in table and key not in keys_of_kind[kind]:
                what = "a VM" if kind == "vm" else f"a {kind} machine"
                table.report(key, f"{key} says nothing of {what}", hint=f"it belongs to a {owner} machine")


def _read_process(table: Table, name: str, limits: Limits, around: Surroundings) -> ProcessSpec | None:
    command = table.texts("command") or ()
    directory = table.parse("cwd", around.path) or around.directory
    env = _read_env(table)
    if "command" not in table:
        if not table.values.get("abstract"):
            table.report(None, "a process needs a command", hint='as in command = ["lua5.4", "-i"]')
        return None
    if not command or not command[0]:
        table.report("command", "the command is empty", hint='as in command = ["lua5.4", "-i"]')
        return None
    return ProcessSpec(name, command, directory, env, limits)


def _read_env(table: Table) -> dict[str, str]:
    env = table.table("env")
    found = {}
    for key in env.values if env is not None else ():
        assert env is not None
        if not key or "=" in key or "\0" in key:
            env.report(key, f"{show_value(key)} cannot be the name of a variable", hint='as in env = { TERM = "dumb" }')
        elif (text := env.text(key)) is not None:
            found[key] = text
    return found


def _read_serial(table: Table, name: str, around: Surroundings) -> SerialSpec | None:
    port = table.parse("port", lambda text: _parse_port(text, around))
    spec = {
        "baud": table.integer("baud", BAUD_MIN, BAUD_MAX, "a number of symbols per second"),
        "data_bits": table.integer("data_bits", 5, 8, "a number of data bits"),
        "parity": table.choice("parity", PARITIES),
        "stop_bits": table.integer("stop_bits", 1, 2, "a number of stop bits"),
        "flow": table.choice("flow", FLOWS),
        "dtr": table.boolean("dtr"),
        "rts": table.boolean("rts"),
    }
    if "port" not in table and not table.values.get("abstract"):
        table.report(None, "a serial machine needs a port", hint='as in port = "/dev/ttyUSB0"')
    if port is None:
        return None
    return SerialSpec(name, port, **cast(Any, {key: value for key, value in spec.items() if value is not None}))


def _parse_port(text: str, around: Surroundings) -> str:
    scheme, separator, rest = text.partition("://")
    if not separator:
        return str(around.path(text))
    if scheme + separator not in PORT_SCHEMES:
        raise ConfigError(
            f"{scheme}:// is no port we open", hint=f"a device, or one of: {', '.join(PORT_SCHEMES)} HOST:PORT"
        )
    host, _, number = rest.partition("/")[0].partition("?")[0].rpartition(":")
    if not host or not number.isdecimal() or not 1 <= int(number[:6]) <= 65535:
        raise ConfigError(f"{show_value(text)} names no host and port", hint=f"as in {scheme}://localhost:4000")
    return text
