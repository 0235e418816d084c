"""Small scripts for a console, for who writes no Python (floor 4): `unhinged expect NAME SCRIPT`.

One step a line, its words as a POSIX shell would split them. docs/scripting.md has the steps.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import ConfigError, ConsoleError, ControlError

if TYPE_CHECKING:
    from control.session.session import Session

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))", re.S)
_CHARACTERS = {"r": "\r", "n": "\n", "t": "\t", "e": "\x1b", "a": "\x07", "b": "\x08", "0": "\0", "\\": "\\"}

_WORDS: dict[str, tuple[int, int | None]] = {
    "expect": (1, None),
    "exact": (1, None),
    "send": (1, 1),
    "line": (0, 1),
    "control": (1, 1),
    "login": (1, 2),
    "run": (1, 3),
    "timeout": (1, 1),
    "resize": (2, 2),
    "print": (0, None),
}
"""The steps, and how many words each takes at least and at most."""


@dataclass(frozen=True)
class Step:
    """One line of a script."""

    line: int
    verb: str
    words: tuple[str, ...]


class ScriptError(ConsoleError):
    """A step failed; says which, and why. Those before it were done, the session is where it was then."""

    def __init__(self, name: str, step: Step, error: ControlError) -> None:
        super().__init__(f"{name}:{step.line}: {step.verb}: {error}", seen=error.evidence, hint=error.hint)
        self.exit_code = error.exit_code


def read_script(text: str, name: str) -> list[Step]:
    """Read a script.

    Raises:
        ConfigError: A line is no step; says which, and what is wrong with it.
    """
    return [step for number, line in enumerate(text.splitlines(), 1) if (step := _read_line(line, number, name))]


def play(
    session: Session, steps: Iterable[Step], name: str, variables: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Do the steps one after the other.

    Args:
        variables: What `$NAME`, a word by itself, stands for: passwords need not stand in the script.
        say: Told what `print` prints.

    Raises:
        ScriptError: A step failed.
    """
    for step in steps:
        try:
            _do(session, step, [_fill_in(word, variables) for word in step.words], say)
        except ControlError as error:
            raise ScriptError(name, step, error) from error


def _read_line(line: str, number: int, name: str) -> Step | None:
    def wrong(what: str, hint: str = "") -> ConfigError:
        return ConfigError(f"{name}:{number}: {what}", file=Path(name), hint=hint)

    try:
        verb, *words = shlex.split(line, comments=True) or [""]
    except ValueError as error:
        raise wrong(str(error), "quote a text that holds a quote") from error
    if not verb:
        return None
    if verb not in _WORDS:
        raise wrong(f"there is no step {verb[:40]!r}", f"there are: {', '.join(_WORDS)}")
    least, most = _WORDS[verb]
    if len(words) < least or (most is not None and len(words) > most):
        many = f"{least} or more" if most is None else str(least) if least == most else f"{least} to {most}"
        raise wrong(f"{verb} takes {many} words", "quote a text with spaces in it")
    step = Step(number, verb, tuple(words))
    try:
        _check(step)
    except (ValueError, re.error) as error:
        raise wrong(f"{verb}: {error}") from error
    return step


def _check(step: Step) -> None:
    """Find what is wrong before anything is typed. Raises ValueError, re.error."""
    match step.verb, step.words:
        case "expect", patterns:
            for pattern in patterns:
                re.compile(pattern)
        case "timeout", (seconds,) if not 0 < float(seconds) < 1e6:
            raise ValueError("not a number of seconds")
        case "resize", words:
            for word in words:
                int(word)
        case "run", words if len(words) > 1:
            if len(words) != 3 or words[1] != "exit":
                raise ValueError("behind the command stands nothing, or `exit` and a code, or `exit any`")
            if words[2] != "any":
                int(words[2])


def _do(session: Session, step: Step, words: list[str], say: Callable[[str], None]) -> None:
    match step.verb, words:
        case "expect", patterns:
            session.expect(patterns)
        case "exact", texts:
            session.expect_exact([_unescape(text) for text in texts])
        case "send", [text]:
            session.send(_unescape(text))
        case "line", []:
            session.sendline()
        case "line", [text]:
            session.sendline(_unescape(text))
        case "control", [letter]:
            session.sendcontrol(letter)
        case "login", [user, *password]:
            session.login(user, *password)
        case "run", [command, *wanted]:
            done = session.run(command)
            code = wanted[-1] if wanted else "0"
            if code != "any" and done.exit_code != int(code):
                done.check()
                raise ConsoleError(f"{command[:120]!r} ended with exit code 0, not {code}", seen=session.last_lines())
        case "timeout", [seconds]:
            session.timeout = float(seconds)
        case "resize", [rows, columns]:
            session.resize(int(rows), int(columns))
        case "print", texts:
            say(" ".join(texts))


def _fill_in(word: str, variables: Mapping[str, str]) -> str:
    if not re.fullmatch(r"\$[A-Za-z_]\w*", word):
        return word
    if word[1:] not in variables:
        raise ConfigError(f"the environment has no {word[1:]}", key=word, hint=f"export {word[1:]}=…")
    return variables[word[1:]]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _CHARACTERS.get(found[2], found[0]), text)
