"""Reads a TOML file, and says where in it something is wrong (floor 1). `fleet` reads the configuration with it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.errors import ConfigError

KeyPath = tuple[str | int, ...]

FILE_MAX_BYTES = 4 * 1024 * 1024
"""More than any fleet needs; a file named by mistake, such as a disk image, is not read to its end."""

SHOWN_CHARACTERS = 60

_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class ConfigFileError(ConfigError):
    """A configuration file says something that cannot be: which file, line, table and key, and what would do.

    Attributes:
        line: Counted from 1; 0 when no single line is to blame.
        table: The table it stands in, as it is written in the header, without its brackets.
        problem: The sentence without its place.
    """

    def __init__(
        self, problem: str, *, file: Path, line: int = 0, table: str = "", key: str = "", hint: str = ""
    ) -> None:
        place = f"{file}:{line}" if line else f"{file}"
        where = f"[{table}] " if table else ""
        super().__init__(f"{place}: {where}{problem}", file=file, key=key, hint=hint)
        self.line = line
        self.table = table
        self.problem = problem


@dataclass(frozen=True)
class Document:
    """A TOML file as it was read: its path as the user knows it, its text, its values."""

    file: Path
    text: str
    data: dict[str, Any]

    @functools.cached_property
    def lines(self) -> dict[KeyPath, int]:
        """The line of every key; empty when the text is nested deeper than can be walked."""
        from control.spec.toml_lines import find_lines  # only a file with a mistake needs it

        try:
            return find_lines(self.text)
        except RecursionError:
            return {}


def read_document(path: Path, shown: Path | None = None) -> Document:
    """Read the TOML file at `path`; errors call it `shown`, which is what the user wrote.

    Raises:
        ConfigFileError: It cannot be read, is no text, or is not TOML; names the line.
    """
    file = shown or path
    try:
        if path.is_dir():
            raise ConfigFileError("is a directory, not a configuration file", file=file, hint="name the file in it")
        with path.open("rb") as stream:
            raw = stream.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigFileError("there is no such file", file=file, hint="look at the path after -c") from error
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigFileError(f"cannot be read: {reason}", file=file, hint="look at its path and its rights") from error
    if len(raw) > FILE_MAX_BYTES:
        raise ConfigFileError(
            f"is larger than {FILE_MAX_BYTES // 1024**2} MiB",
            file=file,
            hint="a configuration is a small text; is this the right file?",
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigFileError(
            "is not a text in UTF-8",
            file=file,
            line=raw.count(b"\n", 0, error.start) + 1,
            hint="save it as UTF-8; is this the right file?",
        ) from error
    return parse_document(file, text)


def parse_document(file: Path, text: str) -> Document:
    """Read `text` as the content of `file`. Raises ConfigFileError as `read_document` does."""
    import tomllib  # a supervisor, which reads no configuration, does without

    if text.startswith("\ufeff"):
        text = text[1:]  # editors of Windows put a byte order mark before it
    try:
        return Document(file, text, tomllib.loads(text))
    except RecursionError as error:
        raise ConfigFileError("is nested too deeply", file=file, hint="no value needs so many brackets") from error
    except ValueError as error:  # tomllib.TOMLDecodeError is one; so is what int() says to 5000 digits
        raise _describe_syntax_error(file, text, str(error)) from error


def _describe_syntax_error(file: Path, text: str, words: str) -> ConfigFileError:
    place = _PLACE.search(words)
    line = 0
    if place is not None:
        line = int(place[1]) if place[1] else text.count("\n", 0, len(text.rstrip())) + 1
        words = words[: place.start()]
    hint = 'text is written in quotes, as in name = "value"; see https://toml.io'
    if "Cannot declare" in words or "Cannot overwrite" in words or "Duplicate" in words:
        hint = "a table or key is written once; put both parts together, or give one another name"
    return ConfigFileError(f"is not TOML: {words[:200]}", file=file, line=line, hint=hint)


def find_line(document: Document, path: KeyPath) -> int:
    """Return the line on which `path`, or the nearest table around it, stands; 0 for the document itself."""
    while path:
        if path in document.lines:
            return document.lines[path]
        path = path[:-1]
    return 0


def has_path(data: object, path: KeyPath) -> bool:
    """Whether there is something at `path`."""
    for part in path:
        if isinstance(data, list):
            data = dict(enumerate(data))
        if not isinstance(data, dict) or part not in data:
            return False
        data = data[part]
    return True


def show_path(path: KeyPath) -> str:
    """Write a path as TOML does: `vm.web.forward[2].host`.

    >>> show_path(("vm", "a b", "forward", 2, "host"))
    'vm."a b".forward[2].host'
    """
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            shown += ("." if shown else "") + (part if _BARE_KEY.fullmatch(part) else show_value(part))
    return shown


def show_value(value: object) -> str:
    """Write a value for a sentence: short, and without characters a terminal would obey."""
    import json

    if isinstance(value, str):
        shown = json.dumps(value[: SHOWN_CHARACTERS + 1])
    elif isinstance(value, bool):
        shown = "true" if value else "false"
    elif isinstance(value, int) and value.bit_length() > 256:
        shown = "a huge number"
    else:
        shown = str(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}…"


def name_type(value: object) -> str:
    """Say what a value is, in TOML's terms and with its article."""
    match value:
        case bool():
            return f"the boolean {show_value(value)}"
        case int() | float():
            return f"the number {show_value(value)}"
        case str():
            return f"the string {show_value(value)}"
        case list():
            return "an array"
        case dict():
            return "a table"
    return f"the date or time {show_value(value)}"


def find_nearest(word: str, known: Sequence[str]) -> str:
    """Return the word of `known` that `word` was probably meant to be; empty when none is near."""
    import difflib

    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word.lower()[:80], lowered, n=1, cutoff=0.6)
    return lowered[near[0]] if near else ""


def suggest(word: str, known: Sequence[str], *, kind: str) -> str:
    """Build the hint for a word that is not known: the nearest one that is, and all of them when they are few."""
    nearest = find_nearest(word, known)
    meant = f"did you mean {nearest}? " if nearest else ""
    if not known:
        return f"{meant}there are no {kind}"
    listed = ", ".join(sorted(known)[:40]) + (", …" if len(known) > 40 else "")
    return f"{meant}{kind}: {listed}"
