"""Reads what a console has said together with when (floor 2): for a replay, and as an asciinema recording.

The log holds the bytes, its recording the times (`control.console.recorder`). Both may still be growing: what is read
is what was there when they were opened.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from control.console.recorder import read_entry, read_header
from control.errors import ConfigError, ConsoleError

PIECE_BYTES = 256 * 1024
MARKS_SHOWN = 20
_NAME_MAX_BYTES = 4096
_SIZE_MAX = 9999


@dataclass(frozen=True)
class Event:
    """Something that happened on the console `time` seconds after the recording's beginning: `kind` as recorded."""

    time: float
    kind: str
    data: bytes = b""
    text: str = ""


@dataclass(frozen=True)
class Place:
    """A place in a recording: its time, and the offsets in the log and in the file of times where it lies."""

    time: float
    offset: int
    entry: int


class Recording:
    """A console's log with its times; a context manager, made by `open_recording`.

    Attributes:
        started_at: Unix seconds of time 0.
        columns, rows: The console's size in the beginning.
        beginning: Where it begins: after what was given back of a log that grew too long, and after the times that
            were dropped.
    """

    def __init__(self, log: BinaryIO, times: BinaryIO, header: dict[str, Any]) -> None:
        self._log = log
        self._times = times
        self._end = log.seek(0, os.SEEK_END)
        self.started_at = float(header["started_at"])
        self.columns = _read_size(header, "columns", 80)
        self.rows = _read_size(header, "rows", 24)
        dropped = header.get("dropped_s", 0.0)
        self.beginning = Place(
            float(dropped) if isinstance(dropped, int | float) else 0.0, _find_data(log, self._end), times.tell()
        )

    def __enter__(self) -> Recording:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._times.close()

    def marks(self) -> Iterator[tuple[str, Place]]:
        """Yield the markers and where they are, in order."""
        offset = self.beginning.offset
        for entry, at, kind, value in self._entries(self.beginning.entry):
            if isinstance(value, int):
                offset = max(offset, min(value, self._end))
            elif kind == "m":
                yield value, Place(at, offset, entry)

    def find_mark(self, mark: str) -> Place:
        """Find the first marker that is called `mark`, or else whose label begins so.

        Raises:
            ConfigError: There is none; it names those there are.
        """
        first = None
        labels: dict[str, None] = {}
        for label, place in self.marks():
            if label == mark:
                return place
            if first is None and label.startswith(mark):
                first = place
            if len(labels) < MARKS_SHOWN:
                labels[label] = None
        if first is not None:
            return first
        known = ", ".join(map(repr, labels))
        raise ConfigError(
            f"the recording has no marker {mark[:80]!r}",
            key="--from",
            hint=f"it has: {known}" if labels else "it has none at all",
        )

    def find_time(self, at: float) -> Place:
        """Find where the recording is `at` seconds after its time 0; outside of it, its beginning or its end."""
        place = self.beginning
        for entry, time, _, value in self._entries(place.entry):
            if time >= at:
                return place
            offset = min(value, self._end) if isinstance(value, int) else place.offset
            place = Place(time, max(place.offset, offset), entry)
        return place if at <= place.time else Place(at, self._end, place.entry)

    def events(self, start: Place | None = None) -> Iterator[Event]:
        """Yield what happened from `start` on, in order; large outputs in several pieces.

        What the log holds beyond the last time that was recorded comes with that time. Raises ConsoleError.
        """
        place = start or self.beginning
        at, offset = place.time, place.offset
        for _, at, kind, value in self._entries(place.entry):
            if not isinstance(value, int):
                yield Event(at, kind, text=value)
                continue
            for data in self._read(offset, min(value, self._end)):
                yield Event(at, kind, data)
            offset = max(offset, min(value, self._end))
        for data in self._read(offset, self._end):
            yield Event(at, "o", data)

    def replay(self, start: Place | None = None) -> Iterator[tuple[float, bytes]]:
        """Yield what the console said from `start` on and when, byte for byte. Raises ConsoleError."""
        for event in self.events(start):
            if event.kind == "o":
                yield event.time, event.data

    def _entries(self, begin: int) -> Iterator[tuple[int, float, str, int | str]]:
        """Yield the entries and where they begin; what is none (a half line) is passed over."""
        self._times.seek(begin)
        for line in self._times:
            if (entry := read_entry(line)) is not None:
                yield begin, *entry
            begin += len(line)

    def _read(self, begin: int, end: int) -> Iterator[bytes]:
        while begin < end:
            try:
                data = os.pread(self._log.fileno(), min(PIECE_BYTES, end - begin), begin)
            except OSError as error:
                raise ConsoleError(f"the console's log cannot be read: {error.strerror}") from error
            if not data:
                return  # it was emptied meanwhile: another run of this machine has begun
            yield data
            begin += len(data)


def open_recording(log: Path, times: Path) -> Recording:
    """Open the recording of a console.

    Raises:
        FileNotFoundError: There is no log, or no recording of it.
        ConsoleError: A file cannot be read, or is no recording.
    """
    said = _open(log)
    try:
        recorded = _open(times)
    except BaseException:
        said.close()
        raise
    header = read_header(recorded.readline(_NAME_MAX_BYTES))
    if header is None:
        said.close()
        recorded.close()
        raise ConsoleError(f"{times} is no recording that can be read", hint="the log itself is in " + str(log))
    return Recording(said, recorded, header)


def read_untimed(log: Path) -> Iterator[bytes]:
    """Yield all that a log without a recording holds. Raises FileNotFoundError, ConsoleError."""
    with _open(log) as file:
        file.seek(_find_data(file, file.seek(0, os.SEEK_END)))
        while data := file.read(PIECE_BYTES):
            yield data


def build_cast(recording: Recording, title: str, start: Place | None = None) -> Iterator[str]:
    """Yield the lines of an asciinema recording, version 2, each with its line end.

    The texts of its `o` events, put together and encoded, are the bytes of the log, where these are UTF-8: a character
    whose bytes came at two times is in the later event. What is no UTF-8 becomes U+FFFD, as in the log that lost the
    beginning of a character with its oldest blocks. Times count from `start`.

    Source: https://docs.asciinema.org/manual/asciicast/v2/
    """
    place = start or recording.beginning
    header = {
        "version": 2,
        "width": recording.columns,
        "height": recording.rows,
        "timestamp": int(recording.started_at + place.time),
        "title": title,
        "env": {"TERM": "xterm-256color"},
    }
    yield json.dumps(header) + "\n"
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    at = 0.0
    for event in recording.events(start):
        at = round(max(at, event.time - place.time), 6)
        text = decoder.decode(event.data) if event.kind == "o" else event.text
        if text or event.kind != "o":
            yield json.dumps([at, event.kind, text]) + "\n"
    if rest := decoder.decode(b"", final=True):
        yield json.dumps([at, "o", rest]) + "\n"


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConsoleError(f"{path} cannot be read: {error.strerror}") from error


def _find_data(log: BinaryIO, end: int) -> int:
    """Find where the log begins: its oldest blocks may have been given back (`control.process.punch`).

    Source: lseek(2), SEEK_DATA: ENXIO says that nothing but a hole follows; a file system without holes has data at 0.
    """
    try:
        return os.lseek(log.fileno(), 0, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else 0


def _read_size(header: dict[str, Any], name: str, default: int) -> int:
    size = header.get(name)
    return size if isinstance(size, int) and 0 < size <= _SIZE_MAX else default
