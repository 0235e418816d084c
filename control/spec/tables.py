"""Reads the tables of a configuration key by key, each with its type (floor 1); `fleet` and `declaration` use it.

What is wrong goes to one `Problems`, which either raises at once or collects, so that a check can show everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from control.errors import ConfigError
from control.spec.tomlfile import (
    ConfigFileError,
    Document,
    KeyPath,
    find_line,
    has_path,
    name_type,
    show_path,
    show_value,
    suggest,
)

Value = TypeVar("Value")

ELEMENTS_MAX = 1000
"""The longest array of a configuration; far more words than a command line needs."""


class Problems:
    """Where everything that is wrong with one file is reported.

    Attributes:
        notes: What a lenient reading lets pass, each one line.
    """

    def __init__(self, document: Document, *, collect: bool = False, lenient: bool = False) -> None:
        """Begin with nothing wrong.

        Args:
            collect: Keep what is reported, rather than raise it.
            lenient: What is called minor becomes a note.
        """
        self.document = document
        self.notes: list[str] = []
        self._collect = collect
        self._lenient = lenient
        self._found: dict[str, ConfigFileError] = {}

    @property
    def found(self) -> tuple[ConfigFileError, ...]:
        """What was collected, in the order of the file."""
        return tuple(sorted(self._found.values(), key=lambda error: error.line))

    def report(
        self,
        path: KeyPath,
        problem: str,
        *,
        hint: str = "",
        chain: Sequence[str] = (),
        whole_table: bool = False,
        minor: bool = False,
    ) -> None:
        """Raise, or keep, what is wrong at `path`.

        Args:
            path: From the root of the file.
            chain: The VM that `path` is in and those it extends: the first that has the key is to blame.
            whole_table: `path` is a table that lacks something, rather than a key that is wrong.
            minor: Whether a lenient reading may let it pass.
        """
        path = self._find_culprit(path, chain)
        named = len(path)
        while named and not whole_table and isinstance(path[named - 1], int):
            named -= 1
        error = ConfigFileError(
            problem,
            file=self.document.file,
            line=find_line(self.document, path),
            table=show_path(path if whole_table else path[: max(named - 1, 0)]),
            key=show_path(path),
            hint=hint,
        )
        if minor and self._lenient:
            self.notes.append(str(error))
        else:
            self.add(error)

    def add(self, error: ConfigFileError) -> None:
        """Raise, or keep, an error that knows its place; the same one is kept once."""
        if not self._collect:
            raise error
        self._found.setdefault(str(error), error)

    def _find_culprit(self, path: KeyPath, chain: Sequence[str]) -> KeyPath:
        for name in chain:
            candidate = ("vm", name, *path[2:])
            if has_path(self.document.data, candidate):
                return candidate
        return path


class Table:
    """One table that is being read.

    Attributes:
        values: What it holds.
        path: Where it is in the file.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: KeyPath,
        problems: Problems,
        *,
        chain: Sequence[str] = (),
        render: Callable[[str], str] | None = None,
    ) -> None:
        self.values = values
        self.path = path
        self.chain = chain
        self._problems = problems
        self._render = render

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def report(self, key: str | int | None, problem: str, *, hint: str = "") -> None:
        """Say what is wrong with `key`, or, when it is None, with the whole table."""
        path = self.path if key is None else (*self.path, key)
        self._problems.report(path, problem, hint=hint, chain=self.chain, whole_table=key is None)

    def check_keys(self, known: Sequence[str], *, kind: str) -> None:
        """Report each key that is not one of `known`."""
        for key in self.values:
            if key not in known:
                self._problems.report(
                    (*self.path, key),
                    f"{show_value(key)} is not a key here",
                    hint=suggest(key, known, kind=kind),
                    chain=self.chain,
                    minor=True,
                )

    def get(self, key: str, wanted: type[Value], what: str) -> Value | None:
        """Return the value at `key` when it is of the type `wanted`; None when it is not there, or wrong."""
        if key not in self.values:
            return None
        value = self.values[key]
        # In Python a boolean is a whole number; in TOML it is not.
        if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
            return value
        self.report(key, f"{key} is {name_type(value)}; {what} is wanted")
        return None

    def text(self, key: str, what: str = "a string") -> str | None:
        """A string, its variables filled in."""
        value = self.get(key, str, what)
        return None if value is None else self._checked_text(key, value)

    def boolean(self, key: str) -> bool | None:
        return self.get(key, bool, "true or false")

    def integer(self, key: str, least: int, most: int, what: str) -> int | None:
        """A whole number within its range."""
        value = self.get(key, int, what)
        if value is None or least <= value <= most:
            return value
        self.report(key, f"{key} is {show_value(value)}; {what} is wanted", hint=f"from {least} to {most}")
        return None

    def choice(self, key: str, choices: Sequence[str]) -> str | None:
        """One of a few words."""
        value = self.text(key, "one of " + ", ".join(choices))
        if value is None or value in choices:
            return value
        self.report(
            key, f"{key} cannot be {show_value(value)}", hint=suggest(value, choices, kind="it can be one of these")
        )
        return None

    def texts(self, key: str, what: str = "an array of strings", *, filled: bool = True) -> tuple[str, ...] | None:
        """An array of strings; `filled` says whether their variables are filled in now."""
        found = []
        for index, value in self._elements(key, what):
            if not isinstance(value, str):
                self._report_element(key, index, f"{key} holds {name_type(value)}; {what} is wanted")
                continue
            text = self._checked_text(key, value, index) if filled else self._check_characters(key, value, index)
            if text is not None:
                found.append(text)
        return tuple(found) if key in self.values else None

    def table(self, key: str) -> Table | None:
        """A table within this one."""
        values = self.get(key, dict, "a table")
        return None if values is None else self._inner(values, (*self.path, key))

    def tables(self, key: str, what: str = "an array of tables") -> Iterator[Table]:
        """The tables of an array of tables."""
        for index, value in self._elements(key, what):
            if isinstance(value, dict):
                yield self._inner(value, (*self.path, key, index))
            else:
                self._report_element(key, index, f"{key} holds {name_type(value)}; {what} is wanted")

    def mixed(self, key: str, what: str, *, many: bool = True) -> Iterator[tuple[int, str | Table]]:
        """A string or table, or, with `many`, an array of these; with its index, -1 for one that stands alone."""
        if many and isinstance(self.values.get(key), list):
            elements = self._elements(key, what)
        else:
            elements = iter([(-1, self.values[key])] if key in self.values else [])
        for index, value in elements:
            if isinstance(value, dict):
                yield index, self._inner(value, (*self.path, key, *((index,) if index >= 0 else ())))
            elif isinstance(value, str):
                text = self._checked_text(key, value, index)
                if text is not None:
                    yield index, text
            else:
                holds = "is" if index < 0 else "holds"
                self._report_element(key, index, f"{key} {holds} {name_type(value)}; {what} is wanted")

    def parse(self, key: str, read: Callable[[str], Value], index: int = -1, text: str | None = None) -> Value | None:
        """Hand a string to `read`, and report what it raises under this key."""
        value = self.text(key) if text is None else text
        if value is None:
            return None
        try:
            return read(value)
        except ConfigError as error:
            self._report_element(key, index, str(error), hint=error.hint)
            return None

    def _inner(self, values: dict[str, Any], path: KeyPath) -> Table:
        return Table(values, path, self._problems, chain=self.chain, render=self._render)

    def _elements(self, key: str, what: str) -> Iterator[tuple[int, Any]]:
        values = self.get(key, list, what) or []
        if len(values) > ELEMENTS_MAX:
            self.report(key, f"{key} has {len(values)} elements", hint=f"at most {ELEMENTS_MAX}")
            return
        yield from enumerate(values)

    def _checked_text(self, key: str, value: str, index: int = -1) -> str | None:
        if self._render is not None and "{{" in value:
            try:
                value = self._render(value)
            except ConfigError as error:
                self._report_element(key, index, f"{key}: {error}", hint=error.hint)
                return None
        return self._check_characters(key, value, index)

    def _check_characters(self, key: str, value: str, index: int) -> str | None:
        if "\0" in value:
            self._report_element(key, index, f"{key} holds a NUL character", hint="no program can be given one")
            return None
        return value

    def _report_element(self, key: str, index: int, problem: str, *, hint: str = "") -> None:
        path = (*self.path, key) if index < 0 else (*self.path, key, index)
        self._problems.report(path, problem, hint=hint, chain=self.chain)
