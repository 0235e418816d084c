"""`unhinged completion` (floor 6), and what a shell asks this program for at each TAB; the door to argcomplete."""

from __future__ import annotations

import argparse
from typing import Any

import argcomplete
from argcomplete.io import warn
from argcomplete.shell_integration import shellcode

from control.cli.desk import Desk, write_out
from control.errors import ControlError

_NAMES = ("name", "names")


def completion(desk: Desk) -> int:
    write_out(shellcode(["unhinged"], shell=desk.options.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks, by `_ARGCOMPLETE` and its like in the environment, and end the process."""
    _teach(parser)
    argcomplete.autocomplete(parser)


def _teach(parser: argparse.ArgumentParser) -> None:
    """Tell the parser, and those of its commands, that some of its words are names of the file."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                _teach(sub)
        elif action.dest in _NAMES:
            action.completer = _list_names  # type: ignore[attr-defined] # where argcomplete looks for it


def _list_names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """The VMs of the file, or its images; none where there is no file, or a wrong one: a TAB is no place for errors."""
    try:
        options = argparse.Namespace(config=getattr(parsed_args, "config", None), json=False)
        fleet = Desk(options).fleet
        return list(fleet.images if parsed_args.command == "img" else fleet.names)
    except (ControlError, OSError) as error:
        warn(str(error))  # shown to who debugs their completion, by _ARC_DEBUG
        return []
