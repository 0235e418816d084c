"""Makes sure a launcher runs under a Python that has what it needs (floor 6); called first by each launcher.

Runs before set-up, under whatever `python3` the host has: standard library only, and no syntax newer than Python 3.9.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from control.host import PYTHON_MINIMUM
from control.paths import ROOT, VENV_PYTHON

_SET_UP = "UNHINGED_SET_UP"


def ensure_interpreter(script: str) -> None:
    """Return when this Python can run `script`; otherwise set up, and go on under the project's own Python.

    The set-up is `make setup`, which is quick when nothing is missing and completes one that was interrupted. Its
    output goes to stderr; its failure ends the process with its exit code.
    """
    if _has_dependencies():
        return
    if os.environ.get(_SET_UP) == "1":
        _give_up("the Python environment .venv lacks a dependency although it was set up", "make distclean setup")
    setup = ["make", "-C", str(ROOT), "--silent", "--no-print-directory", "setup"]
    make = subprocess.run(setup, stdout=2, check=False)
    if make.returncode != 0:
        print("error: the set-up failed; its own words stand above", file=sys.stderr)
        sys.exit(make.returncode)
    environment = {**os.environ, _SET_UP: "1"}
    try:
        os.execve(VENV_PYTHON, [str(VENV_PYTHON), script, *sys.argv[1:]], environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        _give_up(f"{VENV_PYTHON} cannot be started: {error.strerror}", "make distclean setup")


def _give_up(sentence: str, cure: str) -> None:
    print(f"error: {sentence}\n  try: {cure}", file=sys.stderr)
    sys.exit(1)


def _has_dependencies() -> bool:
    if sys.version_info < PYTHON_MINIMUM:
        return False
    try:
        return all(importlib.util.find_spec(name) is not None for name in ("qemu.qmp", "jsonschema_rs", "asyncinotify"))
    except ModuleNotFoundError:
        return False  # there is no `qemu` for `qemu.qmp` to be in
