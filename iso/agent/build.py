"""Packs the guest agent: `python3 iso/agent/build.py pyz|deb|rpm …` (room: image; a door).

Called by `make agent`, `agent-deb` and `agent-rpm`. Each takes a second, so each is made anew every time; a file whose
bytes would be the same is left alone, and so is what depends on it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    # Started as a script, Python looks for modules beside this file only.
    sys.path.insert(0, str(REPOSITORY))

from iso import programs, publish  # noqa: E402
from iso.agent import content, deb, pyz, rpm  # noqa: E402

FILE_NAMES = {
    "pyz": "unhinged-agent.pyz",
    "deb": "unhinged-agent_{version}_all.deb",
    "rpm": "unhinged-agent-{version}-1.noarch.rpm",
}
PROGRAMS = {"pyz": (), "deb": ("dpkg-deb",), "rpm": ("rpmbuild",)}


def main(arguments: list[str] | None = None) -> int:
    """Make what the command line names, print each file's path, and return the exit code."""
    options = _parse(arguments)
    return publish.run_door("agent", lambda: make_all(options.kinds, options.output, options.version), options.output)


def make_all(kinds: list[str], output: Path, version: str) -> list[Path]:
    """Bring each kind of package in `output` up to date.

    Raises:
        BuildError: What is missing, and what helps; what was made before stays.
    """
    programs.require([name for kind in kinds for name in PROGRAMS[kind]])
    return [make(kind, output, version) for kind in kinds]


def make(kind: str, output: Path, version: str) -> Path:
    """Bring one package in `output` up to date and return its path."""
    makers: dict[str, Callable[[str, Path], bytes]] = {
        "pyz": lambda version, _: pyz.make_pyz(version),
        "deb": deb.make_deb,
        "rpm": rpm.make_rpm,
    }
    with tempfile.TemporaryDirectory(prefix="agent.") as scratch:
        data = makers[kind](version, Path(scratch))
    target = output / FILE_NAMES[kind].format(version=version)
    publish.replace_changed(target, data, 0o755 if kind == "pyz" else 0o644)
    return target


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="iso/agent/build.py", description="Pack the guest agent for other guests.")
    parser.add_argument("kinds", nargs="+", choices=sorted(FILE_NAMES), help="what to make")
    parser.add_argument("--output", type=Path, default=Path("build/agent"), help="where it goes (build/agent)")
    parser.add_argument("--version", default=content.read_version(), help="the version (the agent's own)")
    options = parser.parse_args(arguments)
    options.output = options.output.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
