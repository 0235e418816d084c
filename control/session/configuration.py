"""Finds the configuration a script means (floor 4)."""

from __future__ import annotations

import os
from pathlib import Path

from control.spec.locate import Location, find_location

Config = str | os.PathLike[str] | None


def find_configuration(config: Config = None) -> Location:
    """Find the configuration that `config` names: a file, or the directory in which `unhinged` would find it.

    Raises:
        ConfigError: There is none.
    """
    given = None if config is None else Path(config)
    home = Path(os.environ.get("HOME") or "/")
    if given is not None and given.is_dir():
        return find_location(None, cwd=given.absolute(), home=home)
    return find_location(given, cwd=Path.cwd(), home=home)
