"""What every command has on its desk (floor 6): the configuration, and the way to say results, notes and errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError, ControlError
from control.failure import build_failure

if TYPE_CHECKING:
    from control.cli.progress import Board
    from control.process.detach import Detached
    from control.spec.fleet import Fleet
    from control.spec.locate import Location
    from control.vm.declared import Planned
    from control.vm.reach import Seen


class Desk:
    """One command's surroundings.

    Attributes:
        options: What the command line said.
        is_json: Exactly one document is to be printed, and nothing else on stdout.
        hired: Supervisors that load already, each for the VM of that name, should it be started.
    """

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.is_json: bool = options.json
        self.hired: dict[str, Detached] = {}
        self._noted: set[str] = set()
        self._say: Callable[[str], None] = _say

    @cached_property
    def location(self) -> Location:
        from control.spec.locate import find_location

        file = Path(self.options.config) if self.options.config else None
        return find_location(file, cwd=Path.cwd(), home=_find_home())

    @cached_property
    def fleet(self) -> Fleet:
        """The configuration, with the clones of its VMs. Raises ConfigFileError for what is wrong with it."""
        from control.vm.clones import load_fleet_with_clones

        return load_fleet_with_clones(self.location)

    @property
    def has_configuration(self) -> bool:
        try:
            return bool(self.location)
        except ConfigError:
            return False

    @property
    def runtime(self) -> Path:
        return self.location.runtime

    def look(self, name: str) -> Seen:
        """Look at the instance `name`, wherever it runs."""
        from control.vm.reach import look

        return look(self.runtime, name, self.location.earlier_runtimes)

    def check_name(self, name: str) -> str:
        """Return `name` when the configuration has such a VM. Raises ConfigError, which names the nearest."""
        from control.spec.fleet import get_vm

        get_vm(self.fleet, name)
        return name

    def choose_names(self, names: list[str], *, everything: bool) -> list[str]:
        """Return the VMs a command is about.

        Raises:
            ConfigError: A name is unknown, none is given, or both names and all.
        """
        if everything and names:
            raise ConfigError("--all and names exclude each other", hint="name VMs, or say --all")
        if everything:
            return list(self.fleet.names)
        if not names:
            raise ConfigError("no VM is named", hint=f"name one of: {', '.join(self.fleet.names[:20])}; or say --all")
        return list(dict.fromkeys(self.check_name(name) for name in names))

    def is_held(self, name: str) -> bool:
        """Whether no QEMU runs the machine `name`: it has one console, and neither monitor nor agent."""
        return self.fleet.vms[name].held is not None

    def plan(self, name: str, *, make: bool = True) -> Planned:
        """Say what the VM `name` comes to on this host; with `make` its disks are made (call with its lock held).

        Raises:
            ConfigError, ImageError, HostError: As `plan_vm`.
        """
        from control.vm.lifetime import plan

        return plan(self.fleet, name, make=make)

    def show(self, document: Mapping[str, Any], text: str = "") -> None:
        """Print the result: `document` with --json, else `text`."""
        if self.is_json:
            write_out(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
        elif text:
            write_out(text if text.endswith("\n") else text + "\n")

    def note(self, line: str) -> None:
        """Say something beside the result."""
        from control.cli.hints import respell

        self._say(f"unhinged: {printable(respell(line))}")

    def note_once(self, line: str) -> None:
        """Say what concerns several VMs, for all of them together."""
        if line not in self._noted:
            self._noted.add(line)
            self.note(line)

    @contextlib.contextmanager
    def open_board(self, names: Iterable[str]) -> Iterator[Board]:
        """Show on a terminal how these VMs are getting on, during the body; notes go above it."""
        from control.cli.progress import Board

        with Board(names, is_shown=not self.is_json and os.isatty(2)) as board:
            self._say = board.say
            try:
                yield board
            finally:
                self._say = _say


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show_error(error: ControlError, *, is_json: bool) -> int:
    """Say what went wrong, and return the exit code."""
    if is_json:
        write_out(json.dumps({"error": describe_error(error)}, indent=1) + "\n")
        return error.exit_code
    told = describe_error(error)
    print(f"error: {printable(told['message'])}", file=sys.stderr)
    for line in error.evidence[-12:]:
        print(f"  | {printable(line)}", file=sys.stderr)
    if told["hint"]:
        print(f"hint: {printable(told['hint'])}", file=sys.stderr)
    return error.exit_code


def describe_error(error: ControlError) -> dict[str, Any]:
    """Return what `schemas/failure.json` describes, in the words of a configuration."""
    from control.cli.hints import respell  # only who fails pays for it

    failure = build_failure(error)
    return {**failure, "message": respell(failure["message"]), "hint": respell(failure["hint"])}


def write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """Make `text` safe for a terminal: what a guest wrote may be in it."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)


def read_pattern(text: str | None, option: str) -> re.Pattern[str] | None:
    """Read a regular expression that a user gave with `option`. Raises ConfigError."""
    if text is None:
        return None
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"{option} is no regular expression: {error}", key=option) from error


def _find_home() -> Path:
    home = os.environ.get("HOME", "")
    return Path(home) if home.startswith("/") else Path("/")
