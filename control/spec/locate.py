"""Finds the configuration file, and says where its VMs live (floor 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from control.errors import ConfigError
from control.paths import runtime_directory

PROJECT_FILE = "unhinged.toml"
QQMGR_FILE = "qqmgr.toml"
USER_FILE = Path(".config/unhinged/conf.toml")
QQMGR_USER_FILE = Path(".config/qqmgr/conf.toml")
QQMGR_DIRECTORY = ".qqmgr"


@dataclass(frozen=True)
class Location:
    """A configuration file and what follows from where it lies.

    Attributes:
        file: As the user knows it: relative when they named it so. Errors show it.
        directory: What relative paths in the file are relative to; absolute.
        runtime: Where its instances live, as `vm.NAME`, and its images, as `img.NAME`.
        earlier_runtimes: Where qqmgr may have left running VMs of this file.
        is_shared: `runtime` is a directory of the user's that holds other things as well: nothing but our own
            `vm.NAME` and `img.NAME` in it may be changed, its mode included.
        is_qqmgr: The file belongs to qqmgr. What that tool does not mind is then a note and no error.
        home: The home directory, for `~` in paths.
    """

    file: Path
    directory: Path
    runtime: Path
    home: Path
    earlier_runtimes: tuple[Path, ...] = ()
    is_shared: bool = False
    is_qqmgr: bool = False

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self.directory / self.file.name


def find_location(explicit: Path | None, *, cwd: Path, home: Path) -> Location:
    """Find the configuration file: `explicit` when given, else the project's, else the user's.

    Raises:
        ConfigError: There is none; says where it was looked for.
    """
    if explicit is not None:
        return locate(explicit, cwd=cwd, home=home)
    candidates = [cwd / PROJECT_FILE, cwd / QQMGR_FILE, home / USER_FILE, home / QQMGR_USER_FILE]
    for file in candidates:
        if file.is_file():
            return locate(Path(file.name) if file.parent == cwd else file, cwd=cwd, home=home)
    raise ConfigError(
        "there is no configuration file; looked for " + ", ".join(map(str, candidates)),
        hint=f"write a {PROJECT_FILE}, or name a file with -c FILE",
    )


def locate(file: Path, *, cwd: Path, home: Path) -> Location:
    """Say what follows from where `file` lies; whether it exists is not asked.

    Source of qqmgr's directories: its design document, and its source (`GetRuntimeDir`), which differ: the one puts
    `vm.NAME` into `.qqmgr` or beside a file given with `-c`, the other into `.qqmgr/NAME-OF-FILE`. Where that tool has
    been at work its directory is used; else that of the design document.
    """
    absolute = cwd / file
    # Resolved, so that every command finds the same place, whatever way the user came.
    directory = absolute.parent.resolve()
    absolute = directory / absolute.name
    if absolute == home.resolve() / USER_FILE:
        return Location(file, directory, directory, home, is_shared=True)
    if absolute == home.resolve() / QQMGR_USER_FILE:
        return _choose(file, directory, (directory / "qqmgr", directory), home, is_qqmgr=True)
    if absolute.name == PROJECT_FILE:
        return Location(file, directory, runtime_directory(directory), home)
    newer = directory / QQMGR_DIRECTORY / absolute.name
    if absolute.name == QQMGR_FILE:
        return _choose(file, directory, (newer, directory / QQMGR_DIRECTORY), home, is_qqmgr=True)
    # Any other name, given with -c: qqmgr's when that tool has been at work here.
    return _choose(file, directory, (newer, directory), home, is_qqmgr=newer.is_dir())


def _choose(file: Path, directory: Path, runtimes: tuple[Path, Path], home: Path, *, is_qqmgr: bool) -> Location:
    newer, older = runtimes
    runtime = newer if newer.is_dir() else older
    return Location(
        file,
        directory,
        runtime,
        home,
        earlier_runtimes=tuple(path for path in runtimes if path != runtime) if is_qqmgr else (),
        is_shared=runtime == directory,
        is_qqmgr=is_qqmgr,
    )
