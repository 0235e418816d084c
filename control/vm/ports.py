"""Ports of the host (floor 3): whether one is free, and which one is, before QEMU opens it for a forward."""

from __future__ import annotations

import errno
import socket

from control.errors import HostError
from control.spec.network import ANY_ADDRESS, PORT_MAX, Forward


def check_free(forward: Forward) -> None:
    """Return when the port of the host that `forward` wants can be had. Raises HostError, which says why not."""
    with _open_socket(forward) as probe:
        try:
            probe.bind((_bind_address(forward), int(forward.host)))
        except OSError as error:
            cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
            raise HostError(
                f"port {forward.host} of this host ({forward.protocol}, {_bind_address(forward)}) {cause}",
                hint=f'"ss -lptn sport = :{forward.host}" names what uses it; or choose another port, or "auto"',
            ) from error


def pick_port(forward: Forward, wish: int = 0) -> int:
    """Return a port that is free now: `wish` if it is. Raises HostError."""
    with _open_socket(forward) as probe:
        if 1 <= wish <= PORT_MAX:
            try:
                probe.bind((_bind_address(forward), wish))
            except OSError:
                wish = 0
            else:
                return wish
    with _open_socket(forward) as probe:
        try:
            probe.bind((_bind_address(forward), 0))
        except OSError as error:
            raise HostError(f"no port of this host can be had: {error.strerror}", hint="look at its address") from error
        return int(probe.getsockname()[1])


def _open_socket(forward: Forward) -> socket.socket:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM)
    if forward.protocol == "tcp":
        # As QEMU opens it: connections of an earlier VM that linger are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return probe


def _bind_address(forward: Forward) -> str:
    return "0.0.0.0" if forward.address in ANY_ADDRESS else forward.address  # noqa: S104 - what the user asked for
