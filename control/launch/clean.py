"""Removes the instances of VMs that do not run (floor 4): `make clean`. Needs nothing that is set up."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from control.errors import ControlError
from control.paths import find_instance_files, runtime_directory
from control.vm.instance import find_running, read_record


def main() -> int:
    """Remove what can be removed, and name each VM that is left because it runs."""
    runtime = runtime_directory(Path.cwd())
    for directory in sorted(runtime.glob("vm.*")):
        name = directory.name.removeprefix("vm.")
        files = find_instance_files(runtime, name)
        try:
            running = find_running(files, read_record(files))
        except ControlError as error:
            print(f"unhinged: {name} is left alone: {error}\n  try: {error.hint}", file=sys.stderr)
            continue
        if running is not None:
            running.close()
            print(f"unhinged: {name} is left alone, it is running (make attach NAME={name})", file=sys.stderr)
            continue
        shutil.rmtree(files.directory)
        if files.sockets != files.directory:
            shutil.rmtree(files.sockets, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
