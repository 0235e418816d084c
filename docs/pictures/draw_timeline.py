"""Draws docs/pictures/timeline.svg: a boot of the built-in guest, and a clone of it, as they are timed on this host."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).with_name("timeline.svg")
COMMAND = (sys.executable, "-c", "from control.cli.begin import run; run()")
FILE = '[vm.web]\nimage = "builtin"\nmemory = "256M"\ncpus = 1\ndisplay = "none"\n'


def main() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with tempfile.TemporaryDirectory() as directory:

        def unhinged(*words: str) -> None:
            subprocess.run([*COMMAND, *words], cwd=directory, env=environment, check=True, stdout=subprocess.DEVNULL)

        (Path(directory) / "unhinged.toml").write_text(FILE)
        unhinged("start", "--wait", "agent", "web")
        try:
            unhinged("console", "web", "--read-only", "--until", "boot finished", "--timeout", "120")
            unhinged("timeline", "web", "--format", "json", "-o", "web.timeline.json")
            unhinged("template", "web")
            unhinged("fork", "web", "--name", "web-1")
            compare = ("--compare", "web.timeline.json", "--format", "svg", "-o", str(TARGET))
            unhinged("timeline", "web-1", *compare)
        finally:
            unhinged("discard", "--of", "web")
            unhinged("kill", "web")


if __name__ == "__main__":
    main()
