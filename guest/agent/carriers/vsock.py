"""Listens on a vsock port, for the host to connect to (guest floor); made by `main` for `--vsock`.

Source: vsock(7); Linux, include/uapi/linux/vm_sockets.h.
"""

import _socket
import os

from ..loop import IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..loop import Loop

_AF_VSOCK = 40
_CID_ANY = 0xFFFFFFFF
_CID_LOCAL = 1
_CID_HOST = 2
# Ports below this can be taken by privileged processes only (VMADDR_PORT, net/vmw_vsock/af_vsock.c LAST_RESERVED_PORT).
_UNPRIVILEGED = 1024
_WAITING = 4


class VsockListener:
    """Calls `on_connection(fd)` for each connection of the host, whose new owner it is then.

    A process of the guest itself can connect as well, over the loopback of vsock. It would get everything the agent can
    do, so it is let in only from a port that takes privileges.

    Raises:
        OSError: This kernel has no vsock, or the port is taken.
    """

    def __init__(self, loop: "Loop", port: int, on_connection: "Callable[[int], Any]") -> None:
        self._on_connection = on_connection
        self._socket = _socket.socket(_AF_VSOCK, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._socket.bind((_CID_ANY, port))
        self._socket.listen(_WAITING)
        loop.add(self._socket.fileno(), IN, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            fd, (cid, port) = self._socket._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionError):
            return  # it went away again
        if cid == _CID_HOST or (cid == _CID_LOCAL and port < _UNPRIVILEGED):
            os.set_blocking(fd, False)
            self._on_connection(fd)
        else:
            os.close(fd)
