"""Makes sure a launcher runs under a Python that has what it needs (floor 4); called first by each launcher.

Runs before set-up, under whatever `python3` the host has: standard library only, and no syntax newer than Python 3.9.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
OLDEST_PYTHON = (3, 11)


def ensure_interpreter(script: str) -> None:
    """Return when this Python can run `script`; otherwise set up, and go on under the project's own Python.

    With nothing set up yet this runs `make setup`, whose output goes to stderr; its failure ends the process with its
    exit code.
    """
    if _has_dependencies():
        return
    if not VENV_PYTHON.exists():
        make = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory", "setup"], stdout=2, check=False)
        if make.returncode != 0:
            print("error: the set-up failed; its own words stand above", file=sys.stderr)
            sys.exit(make.returncode)
    if Path(sys.prefix) == VENV_PYTHON.parent.parent:
        print("error: .venv lacks a dependency\n  try: make distclean setup", file=sys.stderr)
        sys.exit(1)
    os.execv(VENV_PYTHON, [str(VENV_PYTHON), script, *sys.argv[1:]])  # noqa: S606 - no shell is wanted


def _has_dependencies() -> bool:
    if sys.version_info < OLDEST_PYTHON:
        return False
    return all(importlib.util.find_spec(name) is not None for name in ("qemu", "jsonschema_rs", "asyncinotify"))
