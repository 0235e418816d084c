"""Who may come in with a password (floor 5): a file of names, roles and hashes.

The file is JSON of mode 0600: `{"users": [{"name", "role", "hash"}]}`, a hash being `scrypt$N$R$P$SALT$KEY` in hex.
Source of the cost: OWASP Password Storage Cheat Sheet, scrypt (N = 2^15, r = 8, p = 3; 32 MiB and some 0.2 s each).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from control.errors import ConfigError, HostError

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
"""A viewer looks; an operator also does."""

PASSWORD_MAX = 1024
PASSWORD_MIN = 8
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
_N, _R, _P = 1 << 15, 8, 3
_MEMORY_BYTES = 128 * _R * (_N + _P + 4)


@dataclass(frozen=True)
class User:
    """One who has a password; `hash` is of that."""

    name: str
    role: Role
    hash: str


class Users:
    """The users of one file, which is read again when it has changed; a missing file has none.

    Raises (each method):
        ConfigError: The file is no such file; nothing was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int, int] | None = None
        self._users: dict[str, User] = {}
        self._one_at_a_time = threading.Lock()

    def get_all(self) -> dict[str, User]:
        """The users by name."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return {}
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._read_at:
            self._users, self._read_at = _read(self.path), stamp
        return self._users

    def find_role(self, name: str) -> Role | None:
        user = self.get_all().get(name)
        return user.role if user is not None else None

    def check(self, name: str, password: str) -> User | None:
        """Return the user whose password this is. Takes as long whether there is such a user or not."""
        user = self.get_all().get(name)
        known = user.hash if user is not None else _NOBODY
        with self._one_at_a_time:  # each takes 32 MiB
            is_right = _matches(password[:PASSWORD_MAX], known)
        return user if user is not None and is_right else None

    def add(self, name: str, role: Role, password: str) -> None:
        """Add a user, or give one another role and password.

        Raises:
            ConfigError: The name or the password cannot be one.
            HostError: The file cannot be written; the old one stands.
        """
        if NAME.fullmatch(name) is None:
            raise ConfigError(f"{name[:80]!r} cannot be the name of a user", hint="letters, digits, '.', '_', '@', '-'")
        if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
            raise ConfigError(
                f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters, this one {len(password)}",
                hint="type it at the prompt, or give it on stdin",
            )
        self._write({**self.get_all(), name: User(name, role, _hash(password))})

    def remove(self, name: str) -> bool:
        """Remove a user; whether there was one. Their sessions end with them."""
        left = {key: user for key, user in self.get_all().items() if key != name}
        if len(left) == len(self.get_all()):
            return False
        self._write(left)
        return True

    def _write(self, users: dict[str, User]) -> None:
        write_private(self.path, json.dumps({"users": [asdict(user) for user in users.values()]}, indent=1) + "\n")
        self._read_at = None


def write_private(path: Path, text: str) -> None:
    """Replace a file of ours as a whole, with mode 0600. Raises HostError; the old one stands."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise HostError(f"{path} cannot be written: {error.strerror}", hint="make room there") from error


def _read(path: Path) -> dict[str, User]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["users"]
        users = [User(str(row["name"]), row["role"], str(row["hash"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of users: {error}", hint="unhinged web --add-user writes one") from error
    if any(user.role not in ROLES for user in users):
        raise ConfigError(f"{path} has a role that there is not", hint=f"roles are {' and '.join(ROLES)}")
    return {user.name: user for user in users}


def _hash(password: str) -> str:
    salt = secrets.token_bytes(16)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_derive(password, salt, _N, _R, _P).hex()}"


def _matches(password: str, known: str) -> bool:
    try:
        kind, n, r, p, salt, key = known.split("$")
        found = _derive(password, bytes.fromhex(salt), int(n), int(r), int(p))
        return kind == "scrypt" and hmac.compare_digest(found, bytes.fromhex(key))
    except ValueError:
        return False


def _derive(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    return hashlib.scrypt(data, salt=salt, n=n, r=r, p=p, maxmem=2 * _MEMORY_BYTES, dklen=32)


_NOBODY = f"scrypt${_N}${_R}${_P}${'00' * 16}${'00' * 32}"
"""Is checked against when there is no such user."""
