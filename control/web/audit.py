"""What was done, by whom, from where (floor 5): one JSON object in each line of a file that is kept bounded."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from control.errors import HostError

LIMIT_BYTES = 16 * 1024 * 1024
VALUE_MAX = 300


class Audit:
    """Writes the audit log; what is beyond its limit goes to `NAME.1`, of which there is one.

    Raises:
        HostError: The file cannot be written (when it is made).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._open()

    def note(self, action: str, *, user: str = "", address: str = "", vm: str = "", **details: object) -> None:
        """Write down one thing that was done or refused. No secret may be among the details."""
        row = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "action": action,
            "user": user,
            "address": address,
            **({"vm": vm} if vm else {}),
            **{key: _shorten(value) for key, value in details.items()},
        }
        os.write(self._descriptor, json.dumps(row).encode() + b"\n")
        if os.fstat(self._descriptor).st_size > LIMIT_BYTES:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            os.close(self._descriptor)
            self._descriptor = self._open()

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError(f"{self.path} cannot be written: {error.strerror}", hint="make room there") from error


def _shorten(value: object) -> object:
    return value[:VALUE_MAX] if isinstance(value, str) else value
