"""Hears from systemd that a unit has failed or that the guest goes down (guest floor); made by `events`.

It speaks with process 1 itself, over the socket that `systemctl` uses, so no D-Bus daemon is needed. The messages are
those of D-Bus; of all it may say two signals matter here, and only these are read.
Source: D-Bus Specification, Message Protocol and Authentication Protocol; org.freedesktop.systemd1(5), signals JobNew
and PropertiesChanged.
"""

import os

from .loop import HANGUP, IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_SOCKET = "/run/systemd/private"
_MANAGER = "/org/freedesktop/systemd1"
_UNITS = _MANAGER + "/unit/"
_METHOD_CALL, _SIGNAL = 1, 4
_PATH, _INTERFACE, _MEMBER, _DESTINATION = 1, 2, 3, 6
# A change of state as it lies in a message: the name of the property, and that its value is a string.
_STATE_KEY = b"\x0b\0\0\0ActiveState\0\x01s\0"
_TARGETS = {
    "poweroff.target": "poweroff",
    "reboot.target": "reboot",
    "soft-reboot.target": "reboot",
    "halt.target": "halt",
    "kexec.target": "kexec",
}
_MAX_MESSAGE_BYTES = 1024 * 1024
_MAX_FAILED = 4096
# systemd closes its connections when it executes itself anew.
_AGAIN_S = 5.0


class Systemd:
    """Calls `failed(unit)` and `shutdown(action)`."""

    def __init__(
        self, loop: "Loop", failed: "Callable[[str], Any]", shutdown: "Callable[[str], Any]", path: str = _SOCKET
    ) -> None:
        self._loop = loop
        self._tell_failed = failed
        self._tell_shutdown = shutdown
        self._path = path
        self._fd = -1
        self._data = b""
        self._greeted = False
        self._failed: "set[str]" = set()
        self._connect()

    def _connect(self) -> None:
        import _socket

        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        channel.setblocking(False)
        self._data, self._greeted = b"", False
        uid = str(os.geteuid()).encode().hex().encode()
        try:
            channel.connect(self._path)
            channel.send(b"\0AUTH EXTERNAL " + uid + b"\r\nBEGIN\r\n" + build_call("Subscribe", 1))
        except OSError:
            channel.close()
            self._loop.later(_AGAIN_S, self._connect)
            return
        self._fd = channel.detach()
        self._loop.add(self._fd, IN | HANGUP, self._read)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._data += data
        if not data or not self._take_messages():
            self._loop.remove(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._loop.later(_AGAIN_S, self._connect)

    def _take_messages(self) -> bool:
        """Takes what has arrived whole; False when it is not what it should be."""
        if not self._greeted:
            line, end, rest = self._data.partition(b"\r\n")
            if not end:
                return len(line) < 512
            if not line.startswith(b"OK "):
                return False
            self._greeted, self._data = True, rest
        while len(self._data) >= 16:
            size = measure(self._data)
            if size > _MAX_MESSAGE_BYTES:
                return False
            if len(self._data) < size:
                return True
            message, self._data = self._data[:size], self._data[size:]
            self._take(message)
        return True

    def _take(self, message: bytes) -> None:
        if message[1] != _SIGNAL:
            return
        fields, body = parse(message)
        order = _order_of(message)
        path, member = fields.get(_PATH, ""), fields.get(_MEMBER)
        if member == "JobNew" and path == _MANAGER:
            unit = _read_job_unit(body, order)
            if unit in _TARGETS:
                self._tell_shutdown(_TARGETS[unit])
        elif member == "PropertiesChanged" and path.startswith(_UNITS):
            state = _read_state(body, order)
            if state is not None:
                self._take_state(unescape(path[len(_UNITS) :]), state)

    def _take_state(self, unit: str, state: str) -> None:
        if state != "failed":
            self._failed.discard(unit)
        elif unit not in self._failed and len(self._failed) < _MAX_FAILED:
            self._failed.add(unit)
            self._tell_failed(unit)


def build_call(member: str, serial: int) -> bytes:
    """A call of a method of the manager that takes nothing."""
    fields = b""
    for code, kind, value in (
        (_PATH, b"o", _MANAGER),
        (_DESTINATION, b"s", "org.freedesktop.systemd1"),
        (_INTERFACE, b"s", "org.freedesktop.systemd1.Manager"),
        (_MEMBER, b"s", member),
    ):
        fields += bytes(-len(fields) % 8) + bytes([code, 1]) + kind + b"\0"
        fields += len(value).to_bytes(4, "little") + value.encode("ascii") + b"\0"
    head = b"l" + bytes([_METHOD_CALL, 0, 1]) + bytes(4) + serial.to_bytes(4, "little")
    return head + len(fields).to_bytes(4, "little") + fields + bytes(-len(fields) % 8)


def measure(data: bytes) -> int:
    """How many bytes the message has whose first 16 these are."""
    order = _order_of(data)
    fields = _number(data[12:16], order)
    return 16 + fields + -fields % 8 + _number(data[4:8], order)


def parse(message: bytes) -> "tuple[dict[int, str], bytes]":
    """The fields of a whole message that are strings, and its body."""
    order = _order_of(message)
    end = 16 + _number(message[12:16], order)
    fields = {}
    at = 16
    while at + 8 <= end:
        code, size, kind = message[at], message[at + 1], message[at + 2 : at + 3]
        at += 2 + size + 1
        if kind in (b"s", b"o") and size == 1:
            at += -at % 4
            length = _number(message[at : at + 4], order)
            fields[code] = message[at + 4 : at + 4 + length].decode("utf-8", "replace")
            at += 4 + length + 1
        elif kind == b"g" and size == 1:
            at += 1 + message[at] + 1
        elif kind == b"u" and size == 1:
            at += -at % 4 + 4
        else:
            break
        at += -at % 8
    return fields, message[end + -end % 8 :]


def unescape(name: str) -> str:
    """The unit whose object path this is the end of: `_2e` stands for a dot. Source: sd_bus_path_encode(3)."""
    head, *pieces = name.split("_")
    for piece in pieces:
        try:
            head += chr(int(piece[:2], 16)) + piece[2:]
        except ValueError:
            return ""
    return head


def _read_job_unit(body: bytes, order: str) -> str:
    """The third of: number of the job, its path, its unit."""
    at = 4
    length = _number(body[at : at + 4], order)
    at += 4 + length + 1
    at += -at % 4
    length = _number(body[at : at + 4], order)
    return body[at + 4 : at + 4 + length].decode("utf-8", "replace")


def _read_state(body: bytes, order: str) -> "str | None":
    at = body.find(_STATE_KEY)
    if at < 0 or order != "little":
        return None
    at += len(_STATE_KEY)
    at += -at % 4
    length = _number(body[at : at + 4], order)
    return body[at + 4 : at + 4 + length].decode("utf-8", "replace")


def _order_of(message: bytes) -> str:
    return "big" if message[:1] == b"B" else "little"


def _number(data: bytes, order: str) -> int:
    return int.from_bytes(data, "big" if order == "big" else "little")
