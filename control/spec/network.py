"""Networks and forwarded ports as facts (floor 1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from control.errors import ConfigError
from control.spec.tomlfile import find_nearest, show_value

Port = int | Literal["auto"]
"""A TCP or UDP port of the host; `auto` is picked when the VM starts, and remembered."""

NetworkKind = Literal["user", "restricted", "none", "lan", "tap", "bridge"]

PLAIN_NETWORKS: tuple[NetworkKind, ...] = ("user", "restricted", "none")
NAMED_NETWORKS: tuple[NetworkKind, ...] = ("lan", "tap", "bridge")
PORT_MAX = 65535
LOOPBACK = "127.0.0.1"
ANY_ADDRESS = ("", "0.0.0.0")  # noqa: S104 - what a user may ask for, not what is opened

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_INTERFACE_MAX = 15
"""IFNAMSIZ is 16 with its NUL (Linux, include/uapi/linux/if.h)."""

_FORWARD = re.compile(r"(?:(?P<address>[0-9.]+):)?(?P<host>\d{1,5}|auto):(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?")
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)(?:\.(?!$)|$)){4}", re.ASCII)


@dataclass(frozen=True)
class Network:
    """One network card of a VM.

    Attributes:
        name: Of the LAN, of the tap interface or of the bridge; empty for the others.
    """

    kind: NetworkKind
    name: str = ""

    @property
    def forwards(self) -> bool:
        """Whether ports of the host can lead to the guest through it."""
        return self.kind in ("user", "restricted")

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True)
class Forward:
    """A port of the host that leads to one of the guest, through the user-mode network.

    Attributes:
        address: The host's address it is opened on.
    """

    host: Port
    guest: int
    address: str = LOOPBACK
    protocol: Literal["tcp", "udp"] = "tcp"

    @property
    def key(self) -> str:
        """By which a port that was picked is remembered; one guest port has at most one such."""
        return f"{self.protocol}:{self.guest}"

    def __str__(self) -> str:
        return f"{self.address}:{self.host}:{self.guest}/{self.protocol}"


def parse_network(text: str) -> Network:
    """Read `user`, `restricted`, `none`, `lan:NAME`, `tap:INTERFACE` or `bridge:INTERFACE`.

    Raises:
        ConfigError: It is none of them.
    """
    kind, colon, name = text.partition(":")
    for plain in PLAIN_NETWORKS:
        if text == plain:
            return Network(plain)
    for named in NAMED_NETWORKS:
        if kind == named and colon:
            most = 63 if named == "lan" else _INTERFACE_MAX
            if _NAME.fullmatch(name) is None or len(name) > most:
                raise ConfigError(
                    f"{show_value(name)} cannot be the name of a {named} network",
                    hint=f"use 1 to {most} letters, digits, '.', '_' or '-'",
                )
            return Network(named, name)
    nearest = find_nearest(kind, (*PLAIN_NETWORKS, *NAMED_NETWORKS))
    meant = f"did you mean {nearest}{':NAME' if nearest in NAMED_NETWORKS else ''}? " if nearest else ""
    raise ConfigError(
        f"{show_value(text)} is not a network",
        hint=f"{meant}networks: user, restricted, none, lan:NAME, tap:INTERFACE, bridge:INTERFACE",
    )


def parse_forward(text: str) -> Forward:
    """Read `HOST:GUEST`, `auto:GUEST` or `ADDRESS:HOST:GUEST`, each with `/udp` or `/tcp` behind it.

    Raises:
        ConfigError: It is none of them, or a port is out of range.

    >>> str(parse_forward("8080:80"))
    '127.0.0.1:8080:80/tcp'
    """
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{show_value(text)} is not a forward",
            hint='write HOST:GUEST, as in "8080:80", "auto:80", "0.0.0.0:8080:80" or "5353:53/udp"',
        )
    host: Port = "auto" if match["host"] == "auto" else check_port(int(match["host"]))
    return Forward(
        host,
        check_port(int(match["guest"])),
        LOOPBACK if match["address"] is None else check_address(match["address"]),
        "udp" if match["protocol"] == "udp" else "tcp",
    )


def check_port(port: int) -> int:
    """Return `port` when it is one. Raises ConfigError."""
    if not 1 <= port <= PORT_MAX:
        raise ConfigError(f"{show_value(port)} is not a port", hint=f"ports go from 1 to {PORT_MAX}")
    return port


def check_address(address: str) -> str:
    """Return `address` when it is an IPv4 address, as QEMU's user-mode network needs. Raises ConfigError."""
    if _IPV4.fullmatch(address) is None:
        raise ConfigError(
            f"{show_value(address)} is not an IPv4 address",
            hint="use 127.0.0.1 for this host alone, 0.0.0.0 for everybody who reaches it",
        )
    return address


def overlap(left: Forward, right: Forward) -> bool:
    """Whether both want the same port of the host."""
    if left.host == "auto" or left.host != right.host or left.protocol != right.protocol:
        return False
    return left.address == right.address or left.address in ANY_ADDRESS or right.address in ANY_ADDRESS


_HOSTFWD = re.compile(r"hostfwd=(?:(tcp|udp):)?([0-9.]*):(\d{1,5})-[^,:]*:(\d{1,5})")


def find_forwards(words: Iterable[str]) -> tuple[Forward, ...]:
    """Find the forwards in a command line for QEMU.

    Source: QEMU manual, `-netdev user,hostfwd=[tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport`.
    """
    found = []
    for word in words:
        for protocol, address, host, guest in _HOSTFWD.findall(word):
            if 1 <= int(host) <= PORT_MAX:
                found.append(Forward(int(host), int(guest), address, "udp" if protocol == "udp" else "tcp"))
    return tuple(found)
