"""Who has logged in (guest floor): by the log of logins, or by the sessions of systemd's logind; read by `patrol`.

Source: utmp(5), the layout of glibc; systemd, src/login/logind-session.c, the files below /run/systemd/sessions.
"""

import os
import sys

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Union

    Login = tuple[str, str, str]
    Source = Union["Wtmp", "Sessions"]

_WTMP = "/var/log/wtmp"
_SESSIONS = "/run/systemd/sessions"
_RECORD_BYTES = 384
_USER_PROCESS = 7
_MAX_AT_ONCE = 64


def find_source() -> "Source | None":
    """Where this guest writes down who logs in; None where it does not, and its scripts have to say so themselves."""
    if os.path.exists(_WTMP):
        return Wtmp(_WTMP)
    return Sessions(_SESSIONS) if os.path.isdir(_SESSIONS) else None


class Wtmp:
    """Reads what is added to the file; what is there at the beginning is old."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._at = self._read_size()

    def read_new(self) -> "list[Login]":
        size = self._read_size()
        if size < self._at:
            self._at = 0  # it was rotated
        if size - self._at < _RECORD_BYTES:
            return []
        with open(self._path, "rb", 0) as file:
            file.seek(self._at)
            data = file.read(_RECORD_BYTES * _MAX_AT_ONCE)
        whole = len(data) - len(data) % _RECORD_BYTES
        self._at += whole
        records = [data[at : at + _RECORD_BYTES] for at in range(0, whole, _RECORD_BYTES)]
        return [login for login in map(parse, records) if login is not None]

    def _read_size(self) -> int:
        try:
            return os.stat(self._path).st_size
        except OSError:
            return 0


def parse(record: bytes) -> "Login | None":
    """User, terminal and host of a record; None for one that is not a login."""
    if int.from_bytes(record[:2], sys.byteorder) != _USER_PROCESS:
        return None
    terminal, user, host = record[8:40], record[44:76], record[76:332]
    return _read_text(user), _read_text(terminal), _read_text(host)


def _read_text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


class Sessions:
    """Looks at which sessions there are, one file each."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._known = set(self._list())

    def read_new(self) -> "list[Login]":
        names = self._list()
        new = [name for name in names if name not in self._known]
        self._known = set(names)
        logins = []
        for name in new[:_MAX_AT_ONCE]:
            lines = system.read_text("%s/%s" % (self._path, name), 4096).splitlines()
            values = dict(line.partition("=")[::2] for line in lines)
            if values.get("CLASS") == "user":
                logins.append((values.get("USER", ""), values.get("TTY", ""), values.get("REMOTE_HOST", "")))
        return logins

    def _list(self) -> "list[str]":
        try:
            return [name for name in os.listdir(self._path) if not name.endswith(".ref")]
        except OSError:
            return []
