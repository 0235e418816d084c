"""Finds the line on which each key of a TOML text stands (floor 1); `tomlfile` asks it when something is wrong.

Python's `tomllib` tells values, not places. This walk relies on it: only a text that `tomllib` has read is walked, so
nothing is checked twice here.

Source: TOML 1.0.0, https://toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# The longest kinds first: a quote that opens three is not one that opens an empty string. A multi-line string may end
# in up to two quotes of its own, so its end is the last three of a run.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})|' r"'''.*?'''(?:'{0,2})|" r'"(?:\\.|[^"\\\n])*"|' r"'[^'\n]*'", re.DOTALL
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def find_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of every key, table and array element of `text`, by its path from the root.

    A table that is never written by itself, as `a` in `[a.b]`, stands where it is first named.

    Args:
        text: What `tomllib` has read without an error.
    """
    return _Walk(text.replace("\r\n", "\n")).walk()


class _Walk:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[KeyPath, int] = {}
        self._array_lengths: dict[KeyPath, int] = {}

    def walk(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        keys = self._key()
        self._at += 2 if is_array else 1
        table = self._enter(keys[:-1], line)
        table = (*table, keys[-1])
        if is_array:
            self._lines.setdefault(table, line)
            index = self._array_lengths.get(table, 0)
            self._array_lengths[table] = index + 1
            table = (*table, index)
        self._lines[table] = line
        return table

    def _enter(self, keys: list[str], line: int) -> KeyPath:
        """Follow the keys of a header; an array of tables stands for its last element."""
        table: KeyPath = ()
        for key in keys:
            table = (*table, key)
            self._lines.setdefault(table, line)
            if table in self._array_lengths:
                table = (*table, self._array_lengths[table] - 1)
        return table

    def _pair(self, table: KeyPath) -> None:
        line = self._line()
        for key in self._key():
            table = (*table, key)
            self._lines.setdefault(table, line)
        self._at += 1  # the sign "="
        self._skip(_SPACE)
        self._value(table)

    def _key(self) -> list[str]:
        keys = []
        while True:
            self._skip(_SPACE)
            if match := _BARE_KEY.match(self._text, self._at):
                keys.append(match[0])
            else:
                match = self._match(_STRING)
                keys.append(tomllib.loads(f"key = {match[0]}")["key"])
            self._at = match.end()
            self._skip(_SPACE)
            if self._text[self._at] != ".":
                return keys
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._skip(_STRING)
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._skip(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        index = 0
        while self._text[self._at] != "]":
            element = (*path, index)
            self._lines[element] = self._line()
            self._value(element)
            index += 1
            self._skip_comma()
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        self._skip(_BLANK)
        while self._text[self._at] != "}":
            self._pair(path)
            self._skip_comma()
        self._at += 1

    def _skip_comma(self) -> None:
        self._skip(_BLANK)
        if self._text[self._at] == ",":
            self._at += 1
        self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._at = self._match(pattern).end()

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"not TOML at line {self._line()}")
        return match

    def _line(self) -> int:
        return bisect_right(self._line_starts, self._at)
