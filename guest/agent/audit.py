"""The audit log (guest floor): one line of JSON for each call, in a file that is rotated; written by `guard`.

A line has `time`, `session`, `method`, `params` (a summary, never contents or passwords), `code` (0, or that of the
error) and `seconds`. Lines are gathered for a moment, so that a ping does not wait for a disk. Never more than
`audit_log_bytes` times `audit_log_files` lie on the disk.
"""

import os
import time

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_GATHER_S = 0.1
_MAX_GATHERED_BYTES = 65536
# A line is at most this long, whatever the host sends.
_MAX_LINE_BYTES = 2048
_MAX_TEXT = 256
# A disk that was full is asked again after so long.
_RETRY_S = 10.0

# Parameters whose text says what was done. Any other text may be a password or content: only its length is kept.
_SPEAKING = frozenset(
    (
        "cwd", "device", "hostname", "mount", "name", "path", "service", "session", "signal", "to", "type", "unit",
        "user",
    )
)  # fmt: skip


def summarise(params: "object") -> "dict[str, Any]":
    """What may be kept of the parameters of a call."""
    found: "dict[str, Any]" = {}
    if not isinstance(params, dict):
        return found
    for key, value in params.items():
        if len(found) == 16:
            break
        if value is None or isinstance(value, (bool, int, float)):
            found[key[:64]] = value
        elif key == "argv" and isinstance(value, list) and value and isinstance(value[0], str):
            # The program, and how many arguments: a password may be among them.
            found[key] = [value[0][:_MAX_TEXT], len(value) - 1]
        elif isinstance(value, str):
            found[key[:64]] = value[:_MAX_TEXT] if key in _SPEAKING else {"characters": len(value)}
        elif isinstance(value, (list, dict)):
            found[key[:64]] = {"entries": len(value)}
    return found


class AuditLog:
    """The file, opened when there is something to write.

    Args:
        limit: Bytes of one file; `files` of them are kept: PATH, PATH.1, PATH.2 …
        report: Told in one sentence when writing begins to fail.
    """

    def __init__(self, loop: "Loop", path: str, limit: int, files: int, report: "Callable[[str], Any]") -> None:
        self._loop = loop
        self._path = path
        self._limit = limit
        self._files = files
        self._report = report
        self._fd = -1
        self._size = 0
        self._gathered: "list[bytes]" = []
        self._gathered_bytes = 0
        self._lost = 0
        self._failed = False
        self._waits = False
        self.held = False  # while it is, nothing is written to the disk

    def write(self, session: "str | None", method: str, params: "dict[str, Any]", code: int, seconds: float) -> None:
        """Adds a line, on its way to the disk within a tenth of a second."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%03dZ" % int(now % 1 * 1000)
        entry: "dict[str, Any]" = {
            "time": stamp,
            "session": session,
            "method": method,
            "params": params,
            "code": code,
            "seconds": round(seconds, 6),
        }
        line = wire.encode(entry)
        if len(line) > _MAX_LINE_BYTES:
            entry["params"] = {"entries": len(params)}
            line = wire.encode(entry)
        if self._gathered_bytes + len(line) > _MAX_GATHERED_BYTES:
            self.flush()
        if self._gathered_bytes + len(line) > _MAX_GATHERED_BYTES:
            self._lost += 1  # it cannot be written; that has been reported
            return
        self._gather(line)
        self._wait(_GATHER_S)

    def flush(self) -> None:
        """Writes what was gathered; what cannot be written now is tried again, as far as there is room for it."""
        try:
            while self._gathered:
                self._append(self._take_chunk())
                if self._lost and not self._gathered:
                    # The place of this line is where lines are missing: after those that were kept.
                    self._gather(wire.encode({"lost": self._lost}))
                    self._lost = 0
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._report("the audit log %s cannot be written: %s" % (self._path, error.strerror))
            self._wait(_RETRY_S)
            return
        self._failed = False

    def _gather(self, line: bytes) -> None:
        self._gathered.append(line)
        self._gathered_bytes += len(line)

    def close(self) -> None:
        """Writes what there is and lets go of the file."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _wait(self, delay_s: float) -> None:
        if not self._waits:
            self._waits = True
            self._loop.later(delay_s, self._flush_late)

    def _flush_late(self) -> None:
        self._waits = False
        self.flush()

    def _take_chunk(self) -> "list[bytes]":
        """The next lines that fit into the file; into the next one where none does."""
        if self._fd < 0:
            self._open()
        if self._size + len(self._gathered[0]) > self._limit and self._size:
            self._rotate()
        size = self._size
        count = 0
        while count < len(self._gathered) and size + len(self._gathered[count]) <= self._limit:
            size += len(self._gathered[count])
            count += 1
        return self._gathered[:count]

    def _append(self, lines: "list[bytes]") -> None:
        data = b"".join(lines)
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            # A line cut in two would spoil the next one as well.
            os.ftruncate(self._fd, self._size)
            raise
        self._size += written
        del self._gathered[: len(lines)]
        self._gathered_bytes -= written

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            fd = os.open(self._path, flags, 0o600)
        self._fd = fd
        self._size = os.fstat(fd).st_size

    def _rotate(self) -> None:
        for number in range(self._files - 1, 0, -1):
            older = "%s.%d" % (self._path, number)
            newer = "%s.%d" % (self._path, number - 1) if number > 1 else self._path
            try:
                os.rename(newer, older)
            except FileNotFoundError:
                continue
        os.close(self._fd)
        self._fd = -1
        if self._files == 1:
            os.unlink(self._path)
        self._open()
