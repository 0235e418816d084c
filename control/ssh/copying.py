"""Copies files and trees over ssh as `cp -r` would (floor 2): a stream of tar, and a shell of the guest's at its end.

scp would follow symbolic links, and needs a server of its own in the guest; a shell and tar are everywhere. What is
copied gets its final name when all of it is there. The guest is not trusted: what it sends stays where it belongs.
"""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from control.errors import ControlError

CONTENTS = "."
"""Stands for what is in a directory, rather than the directory: `cp -r DIRECTORY/. TARGET`."""

_PUT = """
set -eu
target={target}
into=no
if [ -d "$target" ]; then
    into=yes; beside=$target
elif [ {count} -gt 1 ]; then
    echo "$target is not a directory" >&2; exit 1
else
    beside=$(dirname -- "$target")
fi
fresh=$(mktemp -d "$beside/.unhinged.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' INT TERM HUP
tar -x -p -f - -C "$fresh"
place() {{
    if [ -d "$1" ] && [ ! -L "$1" ] && [ -d "$2" ]; then
        cp -a "$1/." "$2/"
    elif [ -d "$2" ] && [ ! -L "$2" ]; then
        echo "$2 is a directory" >&2; exit 1
    else
        mv -f "$1" "$2"
    fi
}}
for name in {names}; do
    if [ "$name" = . ]; then
        mkdir -p "$target"; cp -a "$fresh/." "$target/"
    elif [ $into = yes ]; then
        place "$fresh/$name" "$target/$name"
    else
        place "$fresh/$name" "$target"
    fi
done
"""


def build_put(sources: Sequence[str], target: str) -> str:
    """Return the command line for the guest that takes what `pack` writes for the same sources."""
    names = " ".join(shlex.quote(find_name(source)) for source in sources)
    return _shell(_PUT.format(target=shlex.quote(_plain(target)), count=len(sources), names=names))


def build_get(sources: Sequence[str]) -> str:
    """Return the command line for the guest that writes what `unpack` reads."""
    steps = []
    for source in sources:
        name = find_name(source)
        parent = source if name == CONTENTS else os.path.dirname(source.rstrip("/")) or "."  # noqa: PTH120 - the guest's
        steps.append(f"-C {shlex.quote(_plain(parent))} {shlex.quote(_plain(name))}")
        if not parent.startswith("/"):
            steps.append('-C "$home"')  # the next one is relative to where we began as well
    return _shell(f"home=$(pwd); tar -c -f - {' '.join(steps)}")


def find_name(source: str) -> str:
    """The name that `source` has at its target, `.` for the contents of a directory."""
    name = os.path.basename(source.rstrip("/"))  # noqa: PTH119 - of the guest's files too
    if name in ("", ".", ".."):
        return CONTENTS
    return name


def pack(sources: Sequence[str], stream: IO[bytes]) -> None:
    """Write the files and trees of this host to `stream`.

    Raises:
        ControlError: One of them cannot be read; half of the copies may be there, none under its final name.
    """
    # GNU's format, because busybox knows no other in which names may be long.
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for source in sources:
            try:
                archive.add(source, arcname=find_name(source), filter=_as_root)
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                raise ControlError(f"{error.filename or source} cannot be read: {error.strerror}") from error


def unpack(stream: IO[bytes], target: Path, sources: Sequence[str]) -> None:
    """Put what the guest sent for `sources` to `target`, into it when it is a directory.

    Raises:
        ControlError: It sent something else, or what it sent cannot be written; nothing half has its final name.
    """
    into = target.is_dir()
    if not into and len(sources) > 1:
        raise ControlError(f"{target} is not a directory", hint="several things are copied into one")
    try:
        with tempfile.TemporaryDirectory(prefix=".unhinged.", dir=target if into else target.parent) as name:
            fresh = Path(name)
            try:
                archive = tarfile.open(fileobj=stream, mode="r|")  # noqa: SIM115 - closed below
            except tarfile.ReadError:
                return  # nothing came at all: why, is said by whoever should have sent it
            # The gate stands before Python's own filters, which 3.11.2 has not (Debian 12) and 3.14 uses unasked.
            archive.extraction_filter = _take_as_it_is
            with archive:
                archive.extractall(fresh, _Gate().pass_on(archive))  # noqa: S202 - the gate sees to it
            shutil.copymode(target if into else target.parent, fresh)
            for source in sources:
                found = find_name(source)
                if found == CONTENTS:
                    target.mkdir(exist_ok=True)
                    for child in list(fresh.iterdir()):
                        _place(child, target / child.name)
                elif (fresh / found).is_symlink() or (fresh / found).exists():
                    _place(fresh / found, target / found if into else target)
    except tarfile.TarError as error:
        raise ControlError(f"what the guest sent cannot be unpacked: {error}") from error
    except OSError as error:
        raise ControlError(f"{error.filename or target} cannot be written: {error.strerror}") from error


def _place(fresh: Path, final: Path) -> None:
    """Give what is complete its name; a directory that is there already is filled."""
    if fresh.is_dir() and not fresh.is_symlink() and final.is_dir() and not final.is_symlink():
        for child in list(fresh.iterdir()):
            _place(child, final / child.name)
    else:
        fresh.replace(final)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """As a copy that root makes: owned by root. Sockets and devices are left out."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member if member.isfile() or member.isdir() or member.issym() or member.islnk() else None


def _take_as_it_is(member: tarfile.TarInfo, _destination: str) -> tarfile.TarInfo:
    return member


class _Gate:
    """What a guest sent, as a copy that we make: owned by us, and nothing of it anywhere but in its directory.

    A symbolic link may lead wherever it likes, as with `cp -r`, and nothing is written through one. That is told by the
    names, without asking the file system, which has been fooled before (CVE-2025-4517 of Python's own filters).
    """

    def __init__(self) -> None:
        self._links: set[str] = set()
        self._files: set[str] = set()

    def pass_on(self, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """Give what may be unpacked of `archive`, one after the other. Raises ControlError for what means harm."""
        for member in archive:
            if (ours := self._judge(member)) is not None:
                yield ours

    def _judge(self, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
            return None
        name = self._check(member.name)
        if member.islnk() and self._check(member.linkname) not in self._files:
            raise ControlError(f"the guest sent a second name of a file it did not send: {member.name!r:.200}")
        if member.issym():
            self._links.add(name)
        elif not member.isdir():
            self._files.add(name)
        ours = copy.copy(member)
        ours.name, ours.mode = name, member.mode & 0o777
        if member.islnk():
            ours.linkname = os.path.normpath(member.linkname)
        ours.uid, ours.gid = os.getuid(), os.getgid()
        ours.uname = ours.gname = ""
        return ours

    def _check(self, path: str) -> str:
        name = os.path.normpath(path)
        parts = name.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
        if name.startswith("/") or parts[0] == ".." or above & self._links:
            raise ControlError(f"the guest sent a file that belongs elsewhere: {path!r:.200}")
        return name


def _plain(path: str) -> str:
    """A path that no program takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _shell(script: str) -> str:
    return f"exec sh -c {shlex.quote(script)}"
