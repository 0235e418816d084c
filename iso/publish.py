"""How a build's results and failures come out (room: image; called by the doors below `iso/agent` and `iso/debian`)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from iso.failure import BuildError, disk_failure


def run_door(name: str, build: Callable[[], Iterable[Path]], output: Path) -> int:
    """Run `build`, print the paths it gives, and return the exit code; what went wrong is said on stderr.

    Args:
        name: What the lines on stderr begin with.
        output: What is being written when the operating system's error names no file.
    """
    try:
        for path in build():
            print(path)
    except BuildError as error:
        return _complain(name, error)
    except OSError as error:
        return _complain(name, disk_failure(error, output))
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was there before is as it was", file=sys.stderr)
        return 130
    return 0


def _complain(name: str, error: BuildError) -> int:
    print(f"{name}: {error}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return 1


def replace_changed(target: Path, data: bytes, permissions: int = 0o644) -> None:
    """Write `target` whole or not at all; a file that holds `data` already is left alone."""
    if target.is_file() and target.read_bytes() == data:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, permissions)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink()
        raise
