"""Variables in values, and template files: what is filled in, what is refused, and that nothing takes for ever."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.spec.template import Later, Renderer, TemplateError, render_file, render_value

DATA: dict[str, Any] = {
    "home": "/home/ann",
    "foo": {"bar": "baz", "deep": {"er": 1}},
    "yes": True,
    "ratio": 1.5,
    "whole": 2.0,
    "nested": "{{.home}}/{{.foo.bar}}",
    "vm": {"x": 7, "own": "{{.nested}}!", "ssh": {"port": 2222}},
    "img": {"fedora": "/img/fedora", "my-disk": "/img/my disk"},
    "later": Later("comes later", "wait"),
    "list": ["a", "b"],
    "äö": "umlaut",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain }} text {", "plain }} text {"),
        ("{{.home}}/x", "/home/ann/x"),
        ("{{ .home }}{{\n.vm.x\t}}", "/home/ann7"),
        ("{{.foo.bar}}-{{.foo.deep.er}}", "baz-1"),
        ("{{.vm.ssh.port}}", "2222"),
        ("{{.img.fedora}}", "/img/fedora"),
        ('{{index .img "my-disk"}}', "/img/my disk"),
        ("{{index .img `my-disk`}}", "/img/my disk"),
        ('{{ index .foo "deep" "er" }}', "1"),
        ("a {{- .vm.x -}} b", "a7b"),
        ("a\n\t {{- .vm.x}} b", "a7 b"),
        ("a {{.vm.x -}} \n {{- .vm.x}}", "a 77"),
        ("{{.nested}}", "/home/ann/baz"),
        ("{{.vm.own}}{{.vm.own}}", "/home/ann/baz!/home/ann/baz!"),
        ("{{.yes}} {{.ratio}} {{.whole}}", "true 1.5 2"),
        ("{{.äö}}", "umlaut"),
        ("{{/* a comment */}}x{{- /* }} */ -}} y", "xy"),
    ],
)
def test_variables_are_filled_in(text: str, filled: str) -> None:
    assert render_value(text, DATA) == filled


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("{{.hom}}", "{{.hom}} is not defined", "did you mean home?"),
        ("{{.vm.y}}", "{{.vm.y}} is not defined", "names in .vm: own, ssh, x"),
        ("{{.vm.ssh.prt}}", "not defined", "did you mean port?"),
        ("{{.home.x}}", ".home is not a table", "{{.foo.bar}}"),
        ("{{.foo}}", "is a table", "name one of its values"),
        ("{{.list}}", "is a list", "name one"),
        ("{{.later}}", "comes later", "wait"),
        ('{{index .img "fedoro"}}', "not defined", "did you mean fedora?"),
        ('{{index .img "a" "b"}}', "not defined", "names in .img"),
        ("{{.img.my-disk}}", "a name with '-'", 'write {{index .img "my-disk"}}'),
        ("{{.home", "has no }}", "{{.name}}"),
        ("{{}}", "nothing between", "{{.name}}"),
        ("{{.}}", "{{.}} is not understood", "{{.name}}"),
        ("{{$.home}}", "not understood", "{{.name}}"),
        ("{{home}}", "{{home}} is not understood", "{{.name}}"),
        ("{{.home | quote}}", "{{.home | quote}} is not understood", "{{.name}}"),
        ("{{if .home}}a{{end}}", "{{if .home}} is not understood", "{{.name}}"),
        ("{{range .list}}{{end}}", "not understood", "{{.name}}"),
        ("{{end}}", "not understood", "{{.name}}"),
        ('{{printf "%d" 1}}', "not understood", "{{.name}}"),
        ('{{"text"}}', "not understood", "{{.name}}"),
        ("{{eq .home .home}}", "not understood", "{{.name}}"),
        ("{{index .img .home}}", "not understood", "{{.name}}"),
        ("{{index .img}}", "another number of values", "{{.name}}"),
        ("{{.home .foo}}", "not understood", "{{.name}}"),
        ("{{-.home}}", "not understood", "{{.name}}"),
    ],
)
def test_everything_else_is_refused_with_what_is_understood(text: str, words: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render_value(text, DATA)
    assert words in str(caught.value)
    assert hint in caught.value.hint


def test_a_circle_is_named_as_a_chain() -> None:
    data = {"a": "{{.b}}", "b": "x {{.vm.c}}", "vm": {"c": "{{.b}}"}, "self": "{{.self}}"}
    with pytest.raises(TemplateError, match=r"circle: \.b → \.vm\.c → \.b$"):
        render_value("{{.a}}", data)
    with pytest.raises(TemplateError, match=r"circle: \.self → \.self$"):
        render_value("{{.self}}", data)


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    assert render_value("{{.b}}", {"a": "{{.nothing}}", "b": "x", "c": "{{.c}}"}) == "x"


def test_a_renderer_goes_on_after_a_mistake() -> None:
    renderer = Renderer({"a": "{{.b}}", "b": "{{.nothing}}", "c": "{{.d}}", "d": "x"})
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"\.nothing"):
            renderer.render_value("{{.a}}")
    assert renderer.render_value("{{.c}}") == "x"


def test_a_text_without_nesting_keeps_the_braces_of_its_variables() -> None:
    assert render_value("{{.a}}", {"a": "{{.b}}"}, nested=False) == "{{.b}}"


def test_doubling_variables_end_soon() -> None:
    begin = time.process_time()
    empty = {f"v{i}": f"{{{{.v{i + 1}}}}}{{{{.v{i + 1}}}}}" for i in range(50)} | {"v50": ""}
    assert render_value("{{.v0}}", empty) == ""
    with pytest.raises(TemplateError, match="longer than"):
        render_value("{{.v0}}", empty | {"v50": "laugh"})
    with pytest.raises(TemplateError, match="more than 64 deep"):
        render_value("{{.v0}}", {f"v{i}": f"{{{{.v{i + 1}}}}}" for i in range(5000)})
    assert time.process_time() - begin < 2


FILE_DATA: dict[str, Any] = {
    "name": "web",
    "count": 0,
    "keys": ["one", "two"],
    "none": [],
    "users": [{"name": "ann", "admin": True}, {"name": "bo", "admin": False}],
    "table": {"b": 2, "a": 1},
    "raw": "{{.name}}",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("hostname: {{.name}}\n", "hostname: web\n"),
        ("{{.raw}}", "{{.name}}"),
        ("{{if .name}}yes{{else}}no{{end}}", "yes"),
        ("{{if .count}}yes{{else}}no{{end}}", "no"),
        ("{{if .missing}}yes{{end}}.", "."),
        ("{{if .missing.deeper}}yes{{end}}.", "."),
        ('{{if eq .name "db"}}d{{else if eq .name "web"}}w{{else}}?{{end}}', "w"),
        ('{{if eq .name "db" "web"}}in{{end}}', "in"),
        ("{{if and .name .keys}}both{{end}}{{if or .count .none}}one{{end}}", "both"),
        ('{{if not .count}}none{{end}}{{if ne .name "x"}}other{{end}}', "noneother"),
        ("{{range .keys}}- {{.}}\n{{end}}", "- one\n- two\n"),
        ("{{range .none}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range .missing}}x{{else}}nothing{{end}}", "nothing"),
        ("{{range .users}}{{.name}}{{if .admin}}*{{end}} on {{$.name}} {{end}}", "ann* on web bo on web "),
        ("{{range .table}}{{.}}{{end}}", "12"),
        ("{{with index .users 0}}{{.name}}{{end}}", "ann"),
        ("{{with .missing}}x{{else}}none{{end}}", "none"),
        ('{{len .keys}} {{index .keys 1}} {{index .table "a"}}', "2 two 1"),
        ("keys:\n{{- range .keys}}\n  - {{.}}\n{{- end}}\n", "keys:\n  - one\n  - two\n"),
        ('{{"{{"}}', "{{"),
        ("{{eq .count 0}} {{eq 1 true}}", "true false"),
    ],
)
def test_template_files_are_filled_in(text: str, filled: str) -> None:
    assert render_file(text, FILE_DATA) == filled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n\n{{.missing}}", "is not defined"),
        ("a\n{{if .name}}", "line 2: a block is not closed"),
        ("{{end}}", "line 1: {{end}} stands outside a block"),
        ("{{else}}", "outside a block"),
        ("{{if}}{{end}}", "a condition is missing"),
        ("{{if .name}}{{else}}{{else}}{{end}}", "outside a block"),
        ("\n{{range $i, $x := .keys}}{{end}}", "line 2: {{range $i, $x := .keys}} is not understood"),
        ('{{template "x"}}', "not understood"),
        ("{{.name | printf}}", "not understood"),
        ("{{(index .users 0).name}}", "not understood"),
        ("{{range .name}}{{end}}", "neither a list nor a table"),
        ("{{.keys}}", "is a list"),
        ("{{index .keys 9}}", "nothing at 9"),
        ("{{if .name}}" * 100, "more than 64 deep"),
    ],
)
def test_template_files_are_refused_with_their_line(text: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render_file(text, FILE_DATA)
    assert words in str(caught.value)


def test_loops_in_loops_end() -> None:
    text = "{{range .l}}{{range $.l}}{{range $.l}}{{end}}{{end}}{{end}}"
    with pytest.raises(TemplateError, match="loops turn more than"):
        render_file(text, {"l": [0] * 1000})
    with pytest.raises(TemplateError, match="longer than"):
        render_file("{{range .l}}{{range $.l}}" + "x" * 1000 + "{{end}}{{end}}", {"l": [0] * 200})


PIECES = st.sampled_from(
    ["{{", "}}", "{{-", "-}}", " ", ".", ".a", ".b", "$", "index", "if", "else", "end", "range", "with", '"', "`", "/*",
     "*/", "-", "1", "eq", "|", "(", "x", "\n", '"a"', ".vm.ssh", ":="]
)  # fmt: skip


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=600)
def test_any_text_is_filled_in_or_refused(text: str) -> None:
    data = {"a": "{{.b}}", "b": ["x"], "vm": {"ssh": {}}}
    for render in (render_value, render_file):
        try:
            result = render(text, data)
        except TemplateError as error:
            assert str(error).isprintable()
            assert error.hint
        else:
            assert "{{" in text or result == text
