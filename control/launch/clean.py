"""Removes the instances of VMs that do not run (floor 6): `make clean`. Needs nothing that is set up."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from control.errors import ControlError
from control.paths import InstanceFiles, find_instance_files, runtime_directory
from control.vm.instance import is_free, lock_instance, read_record


def main() -> int:
    """Remove what can be removed, and name each VM that is left because it runs."""
    runtime = runtime_directory(Path.cwd())
    for directory in sorted(runtime.glob("vm.*")):
        name = directory.name.removeprefix("vm.")
        files = find_instance_files(runtime, name)
        try:
            with lock_instance(files) as ours:
                if ours and is_free(files):
                    _remove(files)
                else:
                    print(f"unhinged: {name} is left alone, it is running (make attach NAME={name})", file=sys.stderr)
        except ControlError as error:
            print(f"unhinged: {name} is left alone: {error}\n  try: {error.hint}", file=sys.stderr)
    return 0


def _remove(files: InstanceFiles) -> None:
    record = read_record(files)
    sockets = Path(record.sockets) if record is not None and record.sockets else files.sockets
    if sockets != files.directory:
        shutil.rmtree(sockets, ignore_errors=True)  # QEMU's own clean-up may have been there first
    shutil.rmtree(files.directory)


if __name__ == "__main__":
    sys.exit(main())
