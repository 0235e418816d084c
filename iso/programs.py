"""Starts the programs a build needs (room: image; the only module here that starts child processes)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from iso.failure import BuildError

# The Debian and Ubuntu package that brings each program; for the hint when one is missing.
PACKAGE_OF = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "grub-mkimage": "grub-common",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mmd": "mtools",
    "qemu-img": "qemu-utils",
    "rpmbuild": "rpm",
    "ssh-keygen": "openssh-client",
    "xorriso": "xorriso",
    "xz": "xz-utils",
    "zstd": "zstd",
}

# No program here may wait for ever; the slowest, a download of 80 MB over a poor line, gets this long.
DEADLINE_S = 1800.0


def require(names: Sequence[str]) -> None:
    """Make sure that all `names` can be started, before the first minute of work is spent.

    Raises:
        BuildError: Some are missing; names them all and the packages that bring them.
    """
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        packages = " ".join(sorted({PACKAGE_OF.get(name, name) for name in missing}))
        verb = "is" if len(missing) == 1 else "are"
        raise BuildError(f"{' and '.join(missing)} {verb} not installed", hint=f"apt-get install {packages}")


def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program to its end and return what it wrote to stdout.

    Args:
        argv: The program and its arguments; no shell is involved.
        stdin: What the program reads; it is never the terminal.
        cwd: The directory to run in.
        environment: Variables set on top of this process's own; messages are always English.

    Raises:
        BuildError: It is missing, fails, or does not end; holds the last line it said.
    """
    env = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(environment or {})}
    try:
        done = subprocess.run(
            list(argv), input=stdin, capture_output=True, cwd=cwd, env=env, timeout=DEADLINE_S, check=False
        )
    except FileNotFoundError as error:
        name = Path(argv[0]).name
        raise BuildError(f"{name} is not installed", hint=f"apt-get install {PACKAGE_OF.get(name, name)}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{Path(argv[0]).name} did not end within {DEADLINE_S:.0f} s") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ProgramFailed(argv, done.returncode, said)
    return done.stdout


class ProgramFailed(BuildError):
    """A program ended with an error; `said` is all it wrote to stderr."""

    def __init__(self, argv: Sequence[str], exit_code: int, said: str) -> None:
        last = said.splitlines()[-1] if said else "it said nothing"
        hint = ""
        if "No space left on device" in said:
            hint = "free some space, or choose another place with --output and --cache"
        super().__init__(f"{Path(argv[0]).name} failed with exit code {exit_code}: {last}", hint=hint)
        self.said = said
