"""Records when a console said what, and what was typed on it (floor 2): a file of JSON lines beside its log.

The first line is the header `{"version": 1, "started_at": …, "console": …, "columns": …, "rows": …}`, with
`"dropped_s"` once the oldest entries were dropped. Each other line is `[t, kind, value]`, t in seconds since
`started_at`, in order: `"o"` and the offset up to which the log had come; `"i"` and what was typed, masked where the
guest did not echo it (`control.console.echo`); `"m"` and a label; `"r"` and a size. The log itself holds the bytes.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from control.console.echo import WAIT_S, EchoJudge, Fate, Piece
from control.errors import HostError

MERGE_S = 0.01
"""Output that comes within this time is one entry: a screen shows no more than 60 to 120 pictures a second."""

FILE_MAX_BYTES = 32 << 20
"""Beyond it the oldest half is dropped. At the most entries there can be, it holds some three hours."""

LABEL_MAX = 200
LABELS_A_SECOND = 100
"""More than these are left out: the guest chooses how many messages it sends."""

INPUT_MAX = 4096
"""Characters of one entry; longer ones are several."""

_HEADER_MAX_BYTES = 4096
_QUEUE_MAX = 8192


@dataclass
class _Output:
    began: float
    time: float
    offset: int


@dataclass
class _Input:
    time: float
    pieces: list[Piece]


@dataclass
class _Other:
    time: float
    kind: str
    text: str


class Recorder:
    """The recording of one console; a context manager. Not thread-safe.

    A file that is there already is gone on with: its time base and its last offset hold, and what was being written
    when its writer was killed is repaired.

    Args:
        path: The file.
        started_at: Unix seconds at which a new recording begins; an existing one keeps its own.
        console: The console's name.
        columns, rows: Its size, as far as anybody knows.
        clock: A clock that never goes back, in seconds.
        wall: Unix seconds; asked once.

    Raises:
        HostError: The file cannot be opened or written; so do all methods, which have recorded nothing then.
    """

    def __init__(
        self,
        path: Path,
        *,
        started_at: float,
        console: str,
        columns: int = 80,
        rows: int = 24,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._clock = clock
        self._echo = EchoJudge()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._queue: deque[_Output | _Input | _Other] = deque()
        self._labels = 0
        self._labels_since = 0.0
        self._offset = 0
        self._time = 0.0
        header = {
            "version": 1, "started_at": round(started_at, 6), "console": console, "columns": columns, "rows": rows,
        }  # fmt: skip
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            started_at = self._open(header)
        except OSError as error:
            os.close(self._file)
            raise self._cannot_write(error) from error
        # Times stay in order though the host's clock be set, or have been while nobody recorded.
        self._origin = clock() - max(wall() - started_at, self._time)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def offset(self) -> int:
        """Up to where in the log its times are known."""
        return self._offset

    @property
    def due(self) -> float | None:
        """When `flush` has something to do, on the recorder's clock; None when nothing waits."""
        times = []
        if self._queue and isinstance(last := self._queue[-1], _Output):
            times.append(last.began + MERGE_S)
        if (oldest := self._echo.oldest) is not None:
            times.append(oldest + WAIT_S)
        return min(times, default=None)

    def said(self, chunk: bytes, offset_after: int) -> None:
        """Take what the guest has just said; the log ends at `offset_after` with it.

        Without a chunk: what came while nobody recorded.
        """
        now = self._clock()
        self._echo.hear(chunk, now)
        if offset_after <= self._offset:
            return
        self._offset = offset_after
        last = self._queue[-1] if self._queue else None
        if isinstance(last, _Output) and now < last.began + MERGE_S:
            last.time, last.offset = now, offset_after
            return
        self._queue.append(_Output(now, now, offset_after))
        if last is not None:
            self._write_settled(now)

    def typed(self, data: bytes) -> None:
        """Take what is typed; call it before the guest gets it, whose echo may come at once."""
        now = self._clock()
        if pieces := self._echo.type(data, now):
            self._add(_Input(now, pieces))

    def mark(self, label: str) -> None:
        """Put a marker here; a long label is cut, and too many in one second are left out."""
        now = self._clock()
        if now - self._labels_since >= 1:
            self._labels, self._labels_since = 0, now
        self._labels += 1
        if self._labels <= LABELS_A_SECOND:
            self._add(_Other(now, "m", label[:LABEL_MAX]))

    def resized(self, columns: int, rows: int) -> None:
        """The console has this size from now on."""
        self._add(_Other(self._clock(), "r", f"{columns}x{rows}"))

    def flush(self, now: float | None = None) -> None:
        """Settle and write what is due at `now`, on the recorder's clock."""
        self._write_settled(self._clock() if now is None else now)

    def close(self) -> None:
        """Write all that waits, what was typed and not echoed masked, and let go of the file."""
        if self._file < 0:
            return
        try:
            now = self._clock()
            if pieces := self._echo.end(now):
                self._queue.append(_Input(now, pieces))
            self._write_settled(now, everything=True)
        finally:
            os.close(self._file)
            self._file = -1

    def _add(self, entry: _Input | _Other) -> None:
        self._queue.append(entry)
        if len(self._queue) > _QUEUE_MAX:
            self._echo.give_up()
        self._write_settled(entry.time)

    def _write_settled(self, now: float, *, everything: bool = False) -> None:
        self._echo.settle(now)
        lines = []
        while self._queue:
            entry = self._queue[0]
            if isinstance(entry, _Output):
                if len(self._queue) == 1 and now < entry.began + MERGE_S and not everything:
                    break
                lines.append(self._build_line(entry.time, "o", entry.offset))
            elif isinstance(entry, _Input):
                if not all(piece.is_settled for piece in entry.pieces):
                    break
                text = "".join(map(self._render, entry.pieces))
                lines += [
                    self._build_line(entry.time, "i", text[at : at + INPUT_MAX])
                    for at in range(0, len(text), INPUT_MAX)
                ]
            else:
                lines.append(self._build_line(entry.time, entry.kind, entry.text))
            self._queue.popleft()
        if lines:
            self._write("".join(lines).encode())

    def _build_line(self, at: float, kind: str, value: int | str) -> str:
        return json.dumps([round(max(0.0, at - self._origin), 6), kind, value]) + "\n"

    def _render(self, piece: Piece) -> str:
        """What is recorded of it. A character that was typed in two parts stands where its end was typed."""
        text = self._decoder.decode(piece.data)
        return "*" * len(text) if piece.fate is Fate.MASKED else text

    def _write(self, data: bytes) -> None:
        try:
            while data:
                written = os.write(self._file, data)
                self._size += written
                data = data[written:]
            if self._size > FILE_MAX_BYTES:
                self._drop_half()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _open(self, header: dict[str, Any]) -> float:
        """Go on with what is there, or begin; return when the recording began."""
        self._size = os.fstat(self._file).st_size
        first = os.pread(self._file, _HEADER_MAX_BYTES, 0)
        found = _read_header(first)
        if found is None:
            os.ftruncate(self._file, 0)
            self._size = 0
            line = json.dumps(header).encode() + b"\n"
            self._size += os.write(self._file, line)
            return float(header["started_at"])
        data = os.pread(self._file, self._size, 0)
        whole = data.rfind(b"\n") + 1
        if whole < self._size:
            os.ftruncate(self._file, whole)
            self._size = whole
        self._find_end(data[:whole])
        return float(found["started_at"])

    def _find_end(self, data: bytes) -> None:
        """Find the last time and the last offset that were recorded."""
        end = len(data)
        while end > 0:
            start = data.rfind(b"\n", 0, end - 1) + 1
            if start == 0:
                return  # the header
            entry = read_entry(data[start:end])
            if entry is not None:
                self._time = max(self._time, entry[0])
                if isinstance(entry[2], int):
                    self._offset = entry[2]
                    return
            end = start

    def _drop_half(self) -> None:
        data = os.pread(self._file, self._size, 0)
        begin = data.find(b"\n") + 1
        cut = data.find(b"\n", begin + (len(data) - begin) // 2) + 1
        header = _read_header(data) or {}
        first = read_entry(data[cut : data.find(b"\n", cut) + 1])
        header["dropped_s"] = first[0] if first else header.get("dropped_s", 0.0)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            kept = json.dumps(header).encode() + b"\n" + data[cut:]
            temporary.write_bytes(kept)
            temporary.chmod(0o600)
            file = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                temporary.replace(self._path)
            except OSError:
                os.close(file)
                raise
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        os.close(self._file)
        self._file, self._size = file, len(kept)

    def _cannot_write(self, error: OSError) -> HostError:
        return HostError(f"the recording {self._path} cannot be written: {error.strerror}", hint="is that disk full?")


def read_entry(line: bytes) -> tuple[float, str, int | str] | None:
    """Read one entry of a recording; None for what is none, such as the half line a killed writer left."""
    try:
        at, kind, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    wanted = int if kind == "o" else str
    if isinstance(at, int | float) and kind in ("o", "i", "m", "r") and type(value) is wanted:
        return float(at), kind, value
    return None


def _read_header(data: bytes) -> dict[str, Any] | None:
    line, end, _ = data.partition(b"\n")
    return read_header(line) if end else None


def read_header(line: bytes) -> dict[str, Any] | None:
    """Read the first line of a recording; None for what is none of a version we know."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(header, dict) and header.get("version") == 1 and isinstance(header.get("started_at"), int | float):
        return header
    return None
