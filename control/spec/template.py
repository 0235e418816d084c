"""Fills in `{{…}}` (floor 1): the variables of the configuration, and the template files of images.

The syntax is the part of Go's text/template that such files use. In a value of the configuration only variables are
understood; in a template file also conditions, loops and a few functions. What is not understood is refused, never
printed as it is.

Source: https://pkg.go.dev/text/template (actions, trim markers, truth, `index`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from control.errors import ConfigError
from control.spec.tomlfile import show_value, suggest

DEPTH_MAX = 64
"""How deep variables may refer to variables, and blocks stand in blocks."""

RESULT_MAX_CHARACTERS = 1024 * 1024
LOOP_MAX = 100_000
"""How many times the loops of one template may turn, all together."""

UNDERSTOOD = (
    'understood are {{.name}}, {{.foo.bar}}, {{.vm.name}}, {{.vm.ssh.port}}, {{.img.NAME}} and {{index .img "NAME"}}, '
    "with {{- and -}} to trim white space"
)
UNDERSTOOD_IN_FILES = (
    'understood are {{.name}}, {{.}}, {{$.name}}, {{index .table "name"}}, {{if}}, {{else if}}, {{else}}, {{range}}, '
    "{{with}}, {{end}}, {{/* */}}, eq, ne, not, and, or, len, with {{- and -}} to trim white space"
)

_NAME = r"[^\W\d]\w*"
_TOKEN = re.compile(
    rf"""(?P<space>\s+) | (?P<end>-?\}}\}}) | (?P<string>"(?:\\.|[^"\\\n])*" | `[^`]*`)
    | (?P<number>-?\d{{1,18}}(?:\.\d{{1,18}})?\b) | (?P<field>\$?(?:\.{_NAME})+ | \$(?!\w) | \.) | (?P<word>{_NAME})""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_WHITE = " \t\r\n"
_STATEMENTS = ("if", "range", "with", "else", "end")
_FUNCTIONS = ("index", "eq", "ne", "not", "and", "or", "len")


class TemplateError(ConfigError):
    """A template cannot be filled in; nothing of it is used."""


@dataclass(frozen=True)
class Later:
    """Stands in the data for a value that is not known yet; whoever needs it is told `reason`."""

    reason: str
    hint: str = ""


_MISSING = Later("is not defined", "give it a value in env, or ask for it with {{if}}")


@dataclass(frozen=True)
class _Field:
    """`.a.b`, `.` or, from the root, `$.a`; `at` is where it stands."""

    names: tuple[str, ...]
    from_root: bool
    shown: str
    at: int


@dataclass(frozen=True)
class _Literal:
    value: str | int | float | bool


@dataclass(frozen=True)
class _Call:
    function: str
    operands: tuple[_Field | _Literal, ...]
    shown: str
    at: int


_Expression = _Field | _Literal | _Call


@dataclass(frozen=True)
class _Block:
    """An `if`, `range` or `with`; an `else if` is a block of its own in `otherwise`."""

    keyword: str
    condition: _Expression
    body: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]


_Node = str | _Field | _Literal | _Call | _Block


def render_value(text: str, data: Mapping[str, Any], *, nested: bool = True) -> str:
    """Fill in the variables of a value of the configuration.

    Args:
        data: What the names stand for; tables within tables.
        nested: A variable's own text is filled in as well, however deep; else it is taken as it is.

    Raises:
        TemplateError: A variable is not defined, refers to itself, or something else stands between the braces.

    >>> render_value("{{.home}}/a", {"home": "/srv/{{.user}}", "user": "ann"})
    '/srv/ann/a'
    """
    return Renderer(data, nested=nested).render_value(text)


def render_file(text: str, data: Mapping[str, Any]) -> str:
    """Fill in a template file; its variables are taken as they are.

    Raises:
        TemplateError: As `render_value`; names the line of the file.

    >>> render_file("{{range .keys}}- {{.}}\\n{{end}}", {"keys": ["a", "b"]})
    '- a\\n- b\\n'
    """
    return _Run(data, text).render()


class Renderer:
    """Fills in many values from the same data; each variable is worked out once."""

    def __init__(self, data: Mapping[str, Any], *, nested: bool = True) -> None:
        self._data = data
        self._nested = nested
        self._done: dict[tuple[str, ...], str] = {}
        self._open: list[tuple[str, ...]] = []

    def render_value(self, text: str) -> str:
        """Fill in `text`. Raises TemplateError, as the function `render_value` does."""
        if "{{" not in text:
            return text
        parts = []
        for node in _Parser(text, statements=False).parse():
            parts.append(node if isinstance(node, str) else self._show(node))
        return _bounded("".join(parts))

    def _show(self, node: _Node) -> str:
        path, shown = _path_of(node)
        known = self._done.get(path)
        if known is not None:
            return known
        if path in self._open:
            circle = [*self._open[self._open.index(path) :], path]
            raise TemplateError(
                "variables refer to each other in a circle: " + " → ".join("." + ".".join(name) for name in circle),
                hint="give one of them a value of its own",
            )
        if len(self._open) >= DEPTH_MAX:
            raise TemplateError(
                f"variables refer to variables more than {DEPTH_MAX} deep, at {shown}", hint="use fewer steps"
            )
        value = _look_up(self._data, path, shown)
        if isinstance(value, str) and self._nested and "{{" in value:
            self._open.append(path)
            try:
                text = self.render_value(value)
            finally:
                self._open.pop()
        else:
            text = _show_scalar(value, shown)
        self._done[path] = text
        return text


class _Run:
    """One filling in of a template file."""

    def __init__(self, data: Mapping[str, Any], text: str) -> None:
        self._root = data
        self._text = text
        self._turns = 0
        self._length = 0
        self._parts: list[str] = []

    def render(self) -> str:
        self._render(_Parser(self._text, statements=True).parse(), self._root)
        return "".join(self._parts)

    def _render(self, nodes: Sequence[_Node], dot: object) -> None:
        for node in nodes:
            if isinstance(node, str):
                self._put(node)
            elif isinstance(node, _Block):
                self._render_block(node, dot)
            else:
                with self._naming_line(node):
                    self._put(_show_scalar(self._evaluate(node, dot), _shown(node)))

    def _put(self, text: str) -> None:
        self._length += len(text)
        if self._length > RESULT_MAX_CHARACTERS:
            raise _too_long()
        self._parts.append(text)

    def _render_block(self, block: _Block, dot: object) -> None:
        with self._naming_line(block.condition):
            value = self._evaluate(block.condition, dot)
            elements = _elements(value, _shown(block.condition)) if block.keyword == "range" else []
            is_true = bool(elements) if block.keyword == "range" else _is_true(value)
        for element in elements:
            self._turns += 1
            if self._turns > LOOP_MAX:
                raise TemplateError(f"its loops turn more than {LOOP_MAX} times", hint="use shorter lists")
            self._render(block.body, element)
        if is_true and block.keyword != "range":
            self._render(block.body, value if block.keyword == "with" else dot)
        elif not is_true:
            self._render(block.otherwise, dot)

    @contextmanager
    def _naming_line(self, node: _Expression) -> Iterator[None]:
        """Say of an error in which line of the file it is."""
        try:
            yield
        except TemplateError as error:
            if not isinstance(node, _Literal):
                error.args = (f"line {_find_line(self._text, node.at)}: {error}",)
            raise

    def _evaluate(self, node: _Expression, dot: object) -> Any:
        if isinstance(node, _Literal):
            return node.value
        if isinstance(node, _Field):
            return _find(self._root if node.from_root else dot, node.names, node.shown)
        values = [self._evaluate(operand, dot) for operand in node.operands]
        match node.function:
            case "index":
                return _index(values, node.shown)
            case "not":
                return not _is_true(values[0])
            case "and":
                return next((value for value in values if not _is_true(value)), values[-1])
            case "or":
                return next((value for value in values if _is_true(value)), values[-1])
            case "eq":
                return any(_same(values[0], other) for other in values[1:])
            case "ne":
                return not _same(values[0], values[1])
        return _length(values[0], node.shown)


# -- values ------------------------------------------------------------------------------------------------------------


def _look_up(data: Mapping[str, Any], path: tuple[str, ...], shown: str) -> Any:
    """The value at `path`. Raises TemplateError, with the nearest name, when there is none."""
    value: Any = data
    for depth, name in enumerate(path):
        if not isinstance(value, Mapping):
            raise TemplateError(f"{shown} is not defined: .{'.'.join(path[:depth])} is not a table", hint=UNDERSTOOD)
        if name not in value:
            names = [key for key in value if isinstance(key, str)]
            within = f"names in .{'.'.join(path[:depth])}" if depth else "variables"
            raise TemplateError(f"{shown} is not defined", hint=suggest(name, names, kind=within))
        value = value[name]
    return value


def _find(value: Any, names: tuple[str, ...], shown: str) -> Any:
    """As Go does: what a table lacks is false in a condition, and an error only where it is to be shown."""
    for name in names:
        if not isinstance(value, Mapping):
            if value is _MISSING:
                return value
            raise TemplateError(f"{shown}: there is no {name} in what is not a table", hint=UNDERSTOOD_IN_FILES)
        value = value.get(name, _MISSING)
    return value


def _index(values: list[Any], shown: str) -> Any:
    value = values[0]
    for key in values[1:]:
        if isinstance(value, Mapping) and isinstance(key, str):
            value = value.get(key, _MISSING)
        elif isinstance(value, list) and type(key) is int and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateError(f"{shown}: there is nothing at {show_value(key)}", hint="look at what it holds")
    return value


def _length(value: Any, shown: str) -> int:
    if isinstance(value, str | list | Mapping):
        return len(value.encode()) if isinstance(value, str) else len(value)
    raise TemplateError(f"{shown}: only a text, a list or a table has a length", hint=UNDERSTOOD_IN_FILES)


def _elements(value: Any, shown: str) -> list[Any]:
    if value is _MISSING:
        return []
    if isinstance(value, list):
        return value
    if isinstance(value, Mapping):
        return [value[key] for key in sorted(value)]
    raise TemplateError(f"{shown} cannot be gone through: it is neither a list nor a table", hint="name a list")


def _is_true(value: Any) -> bool:
    if isinstance(value, Later) and value is not _MISSING:
        raise TemplateError(value.reason, hint=value.hint)
    return value is not _MISSING and value is not None and bool(value)


def _same(left: Any, right: Any) -> bool:
    # In Python 1 == True; in a template they are of different kinds.
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def _show_scalar(value: Any, shown: str) -> str:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case float() if value.is_integer() and abs(value) < 1e21:
            return str(int(value))  # Go shows 2.0 as 2
        case int() | float():
            return _show_number(value, shown)
        case Later():
            raise TemplateError(f"{shown} {value.reason}", hint=value.hint)
        case list() | Mapping():
            kind = "a list" if isinstance(value, list) else "a table"
            raise TemplateError(f"{shown} is {kind}, and a single value is wanted", hint="name one of its values")
        case None:
            raise TemplateError(f"{shown} has no value", hint="give it one")
    return str(value)


def _show_number(value: int | float, shown: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # Python shows no whole number of more than 4300 digits
        raise TemplateError(f"{shown} is too large a number", hint="use a smaller one") from error


def _bounded(text: str) -> str:
    if len(text) > RESULT_MAX_CHARACTERS:
        raise _too_long()
    return text


def _too_long() -> TemplateError:
    return TemplateError(
        f"the variables of a value make it longer than {RESULT_MAX_CHARACTERS} characters",
        hint="a variable that holds itself twice grows quickly",
    )


def _path_of(node: _Node) -> tuple[tuple[str, ...], str]:
    """The path of the variable that `node` names; a value of the configuration holds nothing else."""
    if isinstance(node, _Field) and not node.from_root and node.names:
        return node.names, node.shown
    if isinstance(node, _Call) and node.function == "index":
        first, *keys = node.operands
        names = [key.value for key in keys if isinstance(key, _Literal) and isinstance(key.value, str)]
        if isinstance(first, _Field) and not first.from_root and len(names) == len(keys):
            return (*first.names, *names), node.shown
    raise TemplateError(f"{_shown(node)} is not understood", hint=UNDERSTOOD)


def _shown(node: _Node) -> str:
    if isinstance(node, _Field | _Call):
        return node.shown
    return show_value(node.value) if isinstance(node, _Literal) else "{{…}}"


# -- syntax ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


class _Parser:
    def __init__(self, text: str, *, statements: bool) -> None:
        self._text = text
        self._at = 0
        self._statements = statements
        self._trim_next = False

    def parse(self) -> tuple[_Node, ...]:
        nodes, stop = self._parse_until((), 0)
        if stop:
            raise self._error(f"{{{{{stop[0].text}}}}} closes nothing")
        return nodes

    def _parse_until(self, stops: tuple[str, ...], depth: int) -> tuple[tuple[_Node, ...], list[_Token]]:
        """Read nodes up to the end, or to an action that begins with one of `stops`, which is returned as well."""
        if depth > DEPTH_MAX:
            raise self._error(f"blocks stand in blocks more than {DEPTH_MAX} deep")
        nodes: list[_Node] = []
        while True:
            opening = self._text.find("{{", self._at)
            plain = self._text[self._at : opening if opening >= 0 else len(self._text)]
            if self._trim_next:
                plain = plain.lstrip(_WHITE)
                self._trim_next = False
            if opening < 0:
                if plain:
                    nodes.append(plain)
                self._at = len(self._text)
                if stops:
                    raise self._error("a block is not closed", hint="put {{end}} where it ends")
                return tuple(nodes), []
            self._at = opening + 2
            # A minus and a space trim; a minus and a digit are a number.
            if self._text.startswith("-", self._at) and self._text[self._at + 1 : self._at + 2].isspace():
                plain = plain.rstrip(_WHITE)
                self._at += 1
            if plain:
                nodes.append(plain)
            tokens = self._read_action(opening)
            if not tokens:
                continue  # a comment
            if tokens[0].text in _STATEMENTS and tokens[0].kind == "word":
                if tokens[0].text in ("else", "end"):
                    if tokens[0].text in stops:
                        return tuple(nodes), tokens
                    raise self._error(f"{{{{{tokens[0].text}}}}} stands outside a block")
                nodes.append(self._read_block(tokens, depth))
            else:
                nodes.append(self._read_expression(tokens))

    def _read_block(self, tokens: list[_Token], depth: int) -> _Block:
        keyword = tokens[0].text
        condition = self._read_expression(tokens[1:])
        body, stop = self._parse_until(("else", "end"), depth + 1)
        otherwise: tuple[_Node, ...] = ()
        if stop[0].text == "else":
            if len(stop) > 1:
                if stop[1].text not in ("if", "with") or stop[1].text != keyword:
                    raise self._error("after {{else only an if can follow")
                otherwise = (self._read_block(stop[1:], depth + 1),)
                return _Block(keyword, condition, body, otherwise)
            otherwise, stop = self._parse_until(("end",), depth + 1)
        if len(stop) > 1:
            raise self._error("{{end}} stands alone")
        return _Block(keyword, condition, body, otherwise)

    def _read_action(self, opening: int) -> list[_Token]:
        comment = re.compile(r"\s?/\*.*?\*/(\s-)?\}\}", re.DOTALL).match(self._text, self._at)
        if comment:
            self._at = comment.end()
            self._trim_next = comment[1] is not None
            return []
        tokens: list[_Token] = []
        spaced = False
        while match := _TOKEN.match(self._text, self._at):
            kind = str(match.lastgroup)
            if kind == "end" and match[0].startswith("-") and not spaced:
                break
            self._at = match.end()
            if kind == "end":
                self._trim_next = match[0].startswith("-")
                if not tokens:
                    raise self._error("there is nothing between {{ and }}", at=opening)
                if tokens[0].text in _STATEMENTS and tokens[0].kind == "word" and not self._statements:
                    raise self._error(f"{self._show_action(opening)} is not understood here", at=opening)
                return tokens
            spaced = kind == "space"
            if not spaced:
                tokens.append(_Token(kind, match[0]))
        raise self._misread(opening, tokens)

    def _misread(self, opening: int, tokens: list[_Token]) -> TemplateError:
        if "}}" not in self._text[opening:]:
            return self._error(f"{show_value(self._text[opening:])} has no }}}}", at=opening)
        shown = self._show_action(opening)
        if self._text[self._at : self._at + 1] == "-" and tokens and tokens[-1].kind == "field":
            table, _, name = tokens[-1].text.rpartition(".")
            rest = re.match(r"[\w-]*", self._text[self._at :])
            return self._error(
                f"{shown}: a name with '-' in it cannot follow a dot",
                at=opening,
                hint=f'write {{{{index {table or "."} "{name}{rest[0] if rest else ""}"}}}}',
            )
        return self._error(f"{shown} is not understood", at=opening)

    def _read_expression(self, tokens: list[_Token]) -> _Expression:
        shown = "{{" + " ".join(token.text for token in tokens) + "}}"
        if not tokens:
            raise self._error("a condition is missing")
        if tokens[0].kind == "word" and tokens[0].text in _FUNCTIONS:
            return self._read_call(tokens, shown)
        if len(tokens) > 1:
            raise self._error(f"{shown} is not understood")
        return self._read_operand(tokens[0], shown)

    def _read_call(self, tokens: list[_Token], shown: str) -> _Call:
        function = tokens[0].text
        if function != "index" and not self._statements:
            raise self._error(f"{shown} is not understood here")
        operands = tuple(self._read_operand(token, shown) for token in tokens[1:])
        least, most = {"not": (1, 1), "len": (1, 1), "ne": (2, 2), "and": (1, 16), "or": (1, 16)}.get(function, (2, 16))
        if not least <= len(operands) <= most:
            raise self._error(f"{shown}: {function} takes another number of values")
        return _Call(function, operands, shown, self._at)

    def _read_operand(self, token: _Token, shown: str) -> _Field | _Literal:
        if token.kind == "field":
            from_root = token.text.startswith("$")
            names = tuple(name for name in token.text.removeprefix("$").split(".") if name)
            return _Field(names, from_root, f"{{{{{token.text}}}}}" if shown.count(" ") == 0 else shown, self._at)
        if token.kind == "string":
            return _Literal(self._unquote(token.text))
        if token.kind == "number":
            return _Literal(float(token.text) if "." in token.text else int(token.text))
        if token.text in ("true", "false"):
            return _Literal(token.text == "true")
        raise self._error(f"{shown} is not understood")

    def _unquote(self, text: str) -> str:
        if text.startswith("`"):
            return text[1:-1]
        pieces = re.split(r"\\(.)", text[1:-1])
        for index in range(1, len(pieces), 2):
            if pieces[index] not in _ESCAPES:
                raise self._error(f"\\{pieces[index]} is not understood in {show_value(text)}")
            pieces[index] = _ESCAPES[pieces[index]]
        return "".join(pieces)

    def _show_action(self, opening: int) -> str:
        closing = self._text.find("}}", opening)
        return self._text[opening : closing + 2] if 0 <= closing < opening + 80 else self._text[opening : opening + 80]

    def _error(self, problem: str, *, at: int | None = None, hint: str = "") -> TemplateError:
        problem = "".join(char if char.isprintable() else " " for char in problem)
        if self._statements:
            problem = f"line {_find_line(self._text, self._at if at is None else at)}: {problem}"
        return TemplateError(problem, hint=hint or (UNDERSTOOD_IN_FILES if self._statements else UNDERSTOOD))


def _find_line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
