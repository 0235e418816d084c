"""Hears of devices that come and go (guest floor): the kernel's uevent socket, as udev itself hears it.

Source: Linux, lib/kobject_uevent.c; netlink(7). No udev is needed.
"""

import _socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_AF_NETLINK = 16
_NETLINK_KOBJECT_UEVENT = 15
_FROM_KERNEL = 1
_MAX_EVENT_BYTES = 65536


class Uevents:
    """Calls `heard(event)` for each kernel event, a dictionary with ACTION, SUBSYSTEM, DEVNAME and the like.

    Once this exists no event is missed, so look at sysfs after making it, not before. When the kernel had to drop
    events, `heard({})` says that anything may have changed.
    """

    def __init__(self, loop: "Loop", heard: "Callable[..., Any]") -> None:
        self._heard = heard
        self._socket = _socket.socket(_AF_NETLINK, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
        self._socket.setblocking(False)
        self._socket.bind((0, _FROM_KERNEL))
        loop.add(self._socket.fileno(), 1, self._read)

    def _read(self, _events: int) -> None:
        while True:
            try:
                data, sender = self._socket.recvfrom(_MAX_EVENT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._heard({})  # ENOBUFS: the socket's buffer overflowed
                continue
            if sender[0] != 0:
                continue  # only the kernel speaks with port 0; anybody may send to a netlink socket
            event = {}
            for field in data.split(b"\0")[1:]:
                key, equals, value = field.partition(b"=")
                if equals:
                    event[key.decode("ascii", "replace")] = value.decode("utf-8", "replace")
            self._heard(event)
