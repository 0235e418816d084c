"""Interfaces, addresses and routes of the guest (guest floor); asked of the kernel over netlink, without any program.

Source: rtnetlink(7); Linux, include/uapi/linux/if_link.h, if_addr.h, rtnetlink.h, if.h.
"""

import _socket
import sys

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

_NETLINK_ROUTE = 0
_AF_INET, _AF_INET6 = _socket.AF_INET, _socket.AF_INET6
_GET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 22, 26
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_NAME, _IFLA_MTU, _IFLA_STATE, _IFLA_STATS64 = 1, 3, 4, 16, 23
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_INTERFACE, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 4, 5, 6, 15
_MAIN_TABLE = 254
# Source: RFC 2863, ifOperStatus, as in IFLA_OPERSTATE.
_STATES = ("unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up")
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_COUNTERS = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
)  # fmt: skip
# The kernel answers a dump at once; a namespace in which it does not must not hold up the agent.
_ANSWER_S = 2.0
_MAX_MESSAGES = 65536


def read_interfaces() -> "Generator[None, None, dict[int, dict[str, Any]]]":
    """The interfaces by index, each with its addresses; to be run a step at a time."""
    interfaces: "dict[int, dict[str, Any]]" = {}
    for body in _dump(_GET_LINK):
        interfaces[_number(body[4:8])] = _read_link(body)
        yield
    for body in _dump(_GET_ADDRESS):
        interface = interfaces.get(_number(body[4:8]))
        if interface is not None and len(interface["addresses"]) < 256:
            address = _read_address(body)
            if address is not None:
                interface["addresses"].append(address)
        yield
    return interfaces


def read_gateways(interfaces: "dict[int, dict[str, Any]]") -> "Generator[None, None, list[dict[str, Any]]]":
    """Where packets go that have no better route, at most 64; the first of a family is the one in use."""
    found = []
    for family in (_AF_INET, _AF_INET6):
        gateways = []
        for body in _dump(_GET_ROUTE, family):
            yield
            attributes = _read_attributes(body, 12)
            table = _number(attributes.get(_RTA_TABLE, body[4:5]))
            # Byte 1 is the length of the destination: 0 is the default route. Source: rtnetlink(7), struct rtmsg.
            if body[1] or table != _MAIN_TABLE or _RTA_GATEWAY not in attributes:
                continue
            interface = interfaces.get(_number(attributes.get(_RTA_INTERFACE, b"")))
            gateway = {
                "address": _socket.inet_ntop(family, attributes[_RTA_GATEWAY]),
                "interface": interface["name"] if interface else "",
                "metric": _number(attributes.get(_RTA_PRIORITY, b"")),
            }
            gateways.append(gateway)
        gateways.sort(key=lambda gateway: gateway["metric"])
        found += gateways[:32]
    return found


def read_dns() -> "dict[str, list[str]]":
    """Servers and search domains of the resolver; behind systemd's stub, those it asks. Source: resolv.conf(5)."""
    servers, search = _read_resolver("/etc/resolv.conf")
    if servers == ["127.0.0.53"]:  # Source: systemd-resolved.service(8)
        servers = _read_resolver("/run/systemd/resolve/resolv.conf")[0] or servers
    return {"servers": servers, "search": search}


def list_addresses() -> "list[str]":
    """The addresses others reach this guest by, at most 16; none where netlink does not answer."""
    found = []
    try:
        for body in _dump(_GET_ADDRESS):
            address = _read_address(body)
            if address is not None and address["scope"] in ("global", "site"):
                found.append(address["address"])
    except OSError:
        return []
    return found[:16]


def _read_resolver(path: str) -> "tuple[list[str], list[str]]":
    servers, search = [], []
    for line in system.read_text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            servers.append(words[1][:64])
        elif words and words[0] in ("search", "domain"):
            search = [word[:255] for word in words[1:]]
    return servers[:16], search[:32]


def _read_link(body: bytes) -> "dict[str, Any]":
    attributes = _read_attributes(body, 16)
    hardware = attributes.get(_IFLA_ADDRESS, b"")
    state = _number(attributes.get(_IFLA_STATE, b""))
    statistics = attributes.get(_IFLA_STATS64, b"")
    counters = {name: _number(statistics[index * 8 : index * 8 + 8]) for index, name in enumerate(_COUNTERS)}
    return {
        "name": attributes.get(_IFLA_NAME, b"").split(b"\0")[0].decode("utf-8", "replace"),
        "index": _number(body[4:8]),
        "mac": ":".join("%02x" % byte for byte in hardware) if hardware.strip(b"\0") else None,
        "up": bool(_number(body[8:12]) & _IFF_UP),
        "state": _STATES[state] if state < len(_STATES) else "unknown",
        "mtu": _number(attributes.get(_IFLA_MTU, b"")),
        "addresses": [],
        "counters": counters,
    }


def _read_address(body: bytes) -> "dict[str, Any] | None":
    family, prefix, scope = body[0], body[1], body[3]
    attributes = _read_attributes(body, 8)
    # On a point-to-point link IFA_ADDRESS is the other end and IFA_LOCAL is ours.
    address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if address is None or len(address) != {_AF_INET: 4, _AF_INET6: 16}.get(family):
        return None
    return {
        "family": "ipv4" if family == _AF_INET else "ipv6",
        "address": _socket.inet_ntop(family, address),
        "prefix": prefix,
        "scope": _SCOPES.get(scope, "site"),
    }


def _dump(kind: int, family: int = 0) -> "Generator[bytes, None, None]":
    """The bodies of all messages with which the kernel answers one question."""
    with _Netlink() as channel:
        # The header, then a zeroed struct of the longest kind (ifinfomsg), whose first byte is the family.
        body = bytes([family]) + bytes(15)
        header = b"".join((_pack(16 + len(body), 4), _pack(kind, 2), _pack(_REQUEST_DUMP, 2), _pack(1, 4), _pack(0, 4)))
        channel.send(header + body)
        messages = 0
        while messages < _MAX_MESSAGES:
            data = channel.recv(262144)
            while len(data) >= 16:
                length, what = _number(data[:4]), _number(data[4:6])
                if what == _NLMSG_DONE:
                    return
                if what == _NLMSG_ERROR:
                    raise OSError(-int.from_bytes(data[16:20], sys.byteorder, signed=True), "netlink refused")
                if not 16 <= length <= len(data):
                    raise OSError(71, "netlink sent a broken message")  # EPROTO
                yield data[16:length]
                messages += 1
                data = data[(length + 3) & ~3 :]


class _Netlink(_socket.socket):
    def __init__(self) -> None:
        super().__init__(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
        self.settimeout(_ANSWER_S)

    def __enter__(self) -> "_Netlink":
        return self

    def __exit__(self, *_reason: object) -> None:
        self.close()


def _read_attributes(body: bytes, start: int) -> "dict[int, bytes]":
    attributes = {}
    while start + 4 <= len(body):
        length, kind = _number(body[start : start + 2]), _number(body[start + 2 : start + 4])
        if length < 4:
            break
        attributes[kind & 0x3FFF] = body[start + 4 : start + length]
        start += (length + 3) & ~3
    return attributes


def _number(data: bytes) -> int:
    return int.from_bytes(data, sys.byteorder)


def _pack(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)
