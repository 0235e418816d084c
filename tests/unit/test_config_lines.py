"""The line on which each key of a TOML text stands, held against `tomllib`'s idea of what there is."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from control.spec.toml_lines import find_lines
from control.spec.tomlfile import show_path


def list_paths(value: Any, path: tuple[Any, ...] = ()) -> set[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {place for key, child in inner for place in ({(*path, key)} | list_paths(child, (*path, key)))}


TRICKY = '''\
# [vm.comment]
title = "a # no comment" # [x]
"quoted.key" = 1
a.b . c = """
[not.a.table]
d = 1 \\""" """""
'single "' = \'\'\'
[[neither]]\'\'\'
[vm.web] # a comment
cmd = [
  "a]", # ]
  'b,',

  [1, [2,
   3]],
]
disk = { path = "}", "s.t" . u = [ { v = 1 }, {} ] }
[[img.x.templates]]
template = "a"
[img.x.templates.inner]
deep = 1979-05-27T07:32:00Z
[[img.x.templates]]
template = "\\u0041"
[img.x.templates.inner]
[vm."w\\u0065b 2"]
[vm]
last = 1_000
'''


def test_each_key_of_a_tricky_text() -> None:
    lines = find_lines(TRICKY)
    assert set(lines) == list_paths(tomllib.loads(TRICKY))
    expected: dict[tuple[Any, ...], int] = {
        ("title",): 2, ("quoted.key",): 3, ("a", "b", "c"): 4, ('single "',): 7, ("vm", "web"): 9,
        ("vm", "web", "cmd"): 10, ("vm", "web", "cmd", 1): 12, ("vm", "web", "cmd", 2, 1, 1): 15,
        ("vm", "web", "disk", "s.t", "u", 0, "v"): 17, ("img", "x", "templates", 0): 18,
        ("img", "x", "templates", 0, "inner", "deep"): 21, ("img", "x", "templates", 1, "template"): 23,
        ("img", "x", "templates", 1, "inner"): 24,
        ("vm", "web 2"): 25, ("vm",): 26, ("vm", "last"): 27,
    }  # fmt: skip
    assert {path: lines[path] for path in expected} == expected


def test_windows_line_ends_count_once() -> None:
    assert find_lines('a = """x\r\n"""\r\nb = [\r\n1]\r\n') == {("a",): 1, ("b",): 3, ("b", 0): 4}


KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=4)
TEXTS = st.text(st.sampled_from("ab\"'[]{}#=,.\n\\ é"), max_size=6)


def write_key(key: str, style: int) -> str:
    if style == 1 and key and all(char.isascii() and (char.isalnum() or char in "-_") for char in key):
        return key
    if style == 2 and "'" not in key and key.isprintable():
        return f"'{key}'"
    return json.dumps(key, ensure_ascii=False)


def write_text(text: str, style: int) -> str:
    plain = "'" not in text and "\r" not in text
    if style == 1 and plain and "\n" not in text:
        return f"'{text}'"
    if style == 2 and plain:
        return f"'''\n{text}'''"
    if style == 3:
        return '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + '"""'
    return json.dumps(text, ensure_ascii=False)


@st.composite
def values(draw: st.DrawFn, depth: int = 0) -> str:
    """A value as text, sometimes over several lines."""
    kind = draw(st.integers(0, 5 if depth < 3 else 3))
    if kind == 4:
        gaps = st.sampled_from(["", " ", "\n", " # ]}\n "])
        inner = draw(st.lists(values(depth + 1), max_size=3))
        return "[" + ",".join(draw(gaps) + text + draw(gaps) for text in inner) + draw(gaps) + "]"
    if kind == 5:
        keys = draw(st.lists(KEYS, max_size=3, unique=True))
        style = draw(st.integers(0, 2))
        return "{" + ", ".join(f"{write_key(key, style)} = {draw(values(depth + 1))}" for key in keys) + "}"
    if kind == 3:
        return draw(st.sampled_from(["1", "-1.5e3", "true", "inf", "0x1F", "07:32:00", "1979-05-27 07:32:00"]))
    return write_text(draw(TEXTS), draw(st.integers(0, 3)))


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[tuple[Any, ...], int]]:
    """A document, and the lines of the keys that were written into it."""
    lines: dict[tuple[Any, ...], int] = {}
    text = ""
    table: tuple[Any, ...] = ()
    arrays: dict[str, int] = {}
    for number in range(draw(st.integers(0, 8))):
        text += draw(st.sampled_from(["", "\n", "# [a] = 'b\n", "  "]))
        line = text.count("\n") + 1
        style = draw(st.integers(0, 2))
        key = f"k{number}" + draw(KEYS)
        match draw(st.integers(0, 3)):
            case 0:
                table = (key,)
                text += f"[ {write_key(key, style)} ]\n"
                lines[table] = line
            case 1:
                name = draw(st.sampled_from(["array", "r.r"]))
                index = arrays.get(name, 0)
                arrays[name] = index + 1
                table = (name, index)
                text += f"[[{write_key(name, style)}]] # ]]\n"
                lines[table] = line
            case 2:
                text += f'{write_key(key, style)} . "x" = {draw(values())}\n'
                lines[(*table, key, "x")] = line
            case _:
                text += f"{write_key(key, style)} = {draw(values())}\n"
                lines[(*table, key)] = line
    return text, lines


@given(documents())
@settings(max_examples=400)
def test_every_key_of_any_text_is_found_on_its_line(document: tuple[str, dict[tuple[Any, ...], int]]) -> None:
    text, expected = document
    found = find_lines(text)
    assert set(found) == list_paths(tomllib.loads(text))
    assert {path: found[path] for path in expected} == expected


def test_paths_are_shown_as_toml_writes_them() -> None:
    assert show_path(("vm", "a.b", "cmd", 2)) == 'vm."a.b".cmd[2]'
