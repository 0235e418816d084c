"""Turns messages and errors into lines for people (floor 6). Nothing a guest sent can move the cursor here."""

from __future__ import annotations

import json
import os
import sys

from control.console.tail import to_plain_text
from control.errors import ControlError
from control.wire import Message

DETAILS_LIMIT = 400
_DIM, _RED, _CYAN, _RESET = "\x1b[2m", "\x1b[31m", "\x1b[36m", "\x1b[0m"


def wants_colour(descriptor: int) -> bool:
    """Whether lines written to `descriptor` may be coloured (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.isatty(descriptor)


def render_message(message: Message, *, colour: bool) -> str:
    """Show a message of the guest as one readable line, without its line end."""
    label, text, details = f"[vm {message.type}]", _one_line(message.text), _render_details(message)
    if not colour:
        return f"{label} {text}{details}"
    tint = _RED if message.type == "error" else _CYAN
    return f"{tint}{label}{_RESET} {text}{_DIM}{details}{_RESET}"


def _render_details(message: Message) -> str:
    words = message.text.split()
    shown = "".join(
        f" {key}={json.dumps(value, ensure_ascii=False)}"
        for key, value in message.details.items()
        if value not in words  # what the text has said already
    )
    plain = _one_line(shown)
    return plain if len(plain) <= DETAILS_LIMIT else f"{plain[:DETAILS_LIMIT]}… ({len(plain)} characters)"


def _one_line(text: str) -> str:
    return to_plain_text(text.encode("utf-8", "replace")).replace("\n", " ")


def render_error(error: ControlError, *, colour: bool) -> str:
    """Show an error: the sentence, its evidence, and the way out."""
    head = f"{_RED}error:{_RESET}" if colour else "error:"
    lines = [f"{head} {_one_line(str(error))}"]
    lines += [f"  | {_one_line(line)}" for line in error.evidence]
    if error.hint:
        lines.append(f"  try: {_one_line(error.hint)}")
    return "\n".join(lines)


def say(line: str) -> None:
    """Write a line for people on stderr; a closed stderr is nobody to talk to."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = None  # said once, lost once: from now on there is nobody there


def note(line: str) -> None:
    """Write a progress line on stderr."""
    say(f"unhinged: {line}")
