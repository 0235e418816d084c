"""What a user of a file is advised is spelled as in that file, wherever the advice comes from."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from control.cli.hints import respell
from control.paths import ROOT

OF_LAUNCHERS = re.compile(r"\b[A-Z]{3,}=|--(?:append|firmware|no-boot-watch)|make (?:start|doctor)\b")


def list_advice() -> Iterator[tuple[str, str]]:
    """Each text of the rooms below both faces that speaks as the launchers do; f-strings by their fixed parts."""
    for room in ("vm", "spec", "accel", "process", "argv"):
        for path in sorted((ROOT / "control" / room).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {id(node.body[0].value) for node in ast.walk(tree) if _has_docstring(node)}  # type: ignore[attr-defined]
            for node in ast.walk(tree):
                if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docs:
                    continue
                if OF_LAUNCHERS.search(node.value):
                    yield f"{path.name}:{node.lineno}", node.value


def _has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return isinstance(body, list) and bool(body) and isinstance(body[0], ast.Expr)


ADVICE = dict(list_advice())


@pytest.mark.parametrize("where", ADVICE)
def test_no_advice_speaks_of_make(where: str) -> None:
    assert not OF_LAUNCHERS.search(respell(ADVICE[where])), respell(ADVICE[where])


def test_there_is_advice_to_look_at() -> None:
    assert len(ADVICE) > 10
    assert respell("give it one: INITRD=… or DISK=… (ARGS=\"--append 'root=/dev/vda1'\")") == (
        'give it one: initrd = … or disk = … (append = "root=/dev/vda1")'
    )
    assert respell(", as in CPUS=2") == ", as in cpus = 2"
