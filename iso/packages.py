"""Fetches the distribution's packages and reads files out of them (room: image; called by `iso/build.py`).

Which version of each package is used is recorded once, in the cache; later builds use the same ones until asked to
refresh. So a build can be repeated, and a build whose packages are in the cache needs neither network nor apt's lists.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from iso.distribution import Distribution
from iso.failure import BuildError
from iso.newc import Entry, Tree
from iso.programs import ProgramFailed, run
from iso.progress import Progress


@dataclass(frozen=True)
class Package:
    """One package in one exact version, as apt's lists (signed by the distribution) describe it."""

    name: str
    version: str
    architecture: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name under which `apt-get download` leaves it; a colon (epoch) is written as %3a."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def resolve(distribution: Distribution) -> dict[str, Package]:
    """Ask apt which versions of the packages are current.

    Raises:
        BuildError: apt has no lists, or they do not hold all packages.
    """
    meta = _stanzas([distribution.kernel_meta])
    depends = meta.get(distribution.kernel_meta, {}).get("Depends", "")
    match = re.search(distribution.kernel_depends, depends)
    if match is None:
        raise BuildError(
            f"apt's package lists do not name the kernel of {distribution.kernel_meta}",
            hint="run 'apt-get update' (as root) and build again",
        )
    kernels = [name.format(match.group(1)) for name in distribution.kernel_packages]
    return find([*kernels, *distribution.packages, *distribution.boot_packages])


def find(names: Sequence[str]) -> dict[str, Package]:
    """Ask apt for the current versions of packages.

    Raises:
        BuildError: apt has no lists, or they do not hold all of them.
    """
    found = _stanzas(names)
    missing = [name for name in names if "SHA256" not in found.get(name, {})]
    if missing:
        raise BuildError(
            f"apt's package lists do not hold {', '.join(missing)}",
            hint="run 'apt-get update' (as root) and build again",
        )
    return {
        name: Package(name, found[name]["Version"], found[name]["Architecture"], found[name]["SHA256"])
        for name in sorted(names)
    }


def _stanzas(names: Sequence[str]) -> dict[str, dict[str, str]]:
    try:
        text = run(["apt-cache", "show", "--no-all-versions", *names]).decode("utf-8", "replace")
    except ProgramFailed as error:
        if "No packages found" in error.said or "Unable to locate" in error.said:
            return {}
        raise
    stanzas: dict[str, dict[str, str]] = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", block, re.MULTILINE))
        if "Package" in fields:
            # The first stanza of a package is apt's candidate.
            stanzas.setdefault(fields["Package"], fields)
    return stanzas


def read_lock(path: Path) -> dict[str, Package] | None:
    """Return the recorded packages, or None when nothing usable is recorded."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        return {name: Package(**fields) for name, fields in recorded.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def write_lock(path: Path, packages: Mapping[str, Package]) -> None:
    """Record which packages are used, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: asdict(package) for name, package in sorted(packages.items())}, indent=1)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as target:
        target.write(text + "\n")
    Path(target.name).replace(path)


def fetch(packages: Mapping[str, Package], directory: Path, progress: Progress) -> None:
    """Bring all packages into `directory`; those already there are checked and not fetched again.

    Raises:
        BuildError: The network, apt's lists or the disk do not give them; `directory` holds only whole files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages.values() if not _is_whole(directory / package.file_name, package)]
    if not missing:
        return
    progress.step(f"fetching {len(missing)} packages")
    partial = Path(tempfile.mkdtemp(prefix="fetch.", dir=directory))
    try:
        _download(missing, partial)
        for package in missing:
            fetched = partial / package.file_name
            if not _is_whole(fetched, package):
                raise BuildError(
                    f"the package {package.name} did not arrive whole",
                    hint="build again; with --refresh if it goes on",
                )
            fetched.replace(directory / package.file_name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(packages: Sequence[Package], directory: Path) -> None:
    wanted = [f"{package.name}={package.version}" for package in packages]
    # As root apt drops to the user _apt, which cannot write into our directory; the packages are checked by their sum.
    argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "download", *wanted]
    try:
        run(argv, cwd=directory)
    except ProgramFailed as error:
        raise _download_failure(error) from error


_CAUSES = (
    (
        r"Could not resolve|Temporary failure|Could not connect|Cannot initiate|Network is unreachable|timed out",
        "the packages could not be fetched: no network to the distribution's mirror",
        "check the network (and Acquire::http::Proxy in apt's configuration), then build again",
    ),
    (
        r"No space left|enough free space",
        "the packages could not be fetched: the disk is full",
        "free about 200 MB, or choose another place with --cache",
    ),
    (
        r"was not found|Unable to locate|404 +Not Found|Can't find a source",
        "the recorded versions of the packages are no longer on the distribution's mirror",
        "run 'apt-get update' (as root), then build with --refresh to take the current ones",
    ),
)


def _download_failure(error: ProgramFailed) -> BuildError:
    for pattern, message, hint in _CAUSES:
        if re.search(pattern, error.said, re.IGNORECASE):
            return BuildError(message, hint=hint)
    return error


def _is_whole(path: Path, package: Package) -> bool:
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False


def unpack(deb: Path, directory: Path) -> None:
    """Unpack a package below `directory`, which needs no root: owners are not kept, and nobody looks at them."""
    directory.mkdir(parents=True, exist_ok=True)
    run(["dpkg-deb", "-x", str(deb), str(directory)])


def read_files(unpacked: Path, patterns: Sequence[str], *, package: str) -> Tree:
    """Take the files that match `patterns` out of an unpacked package, under their paths below `usr/`.

    Raises:
        BuildError: A pattern matches nothing, so the package is not laid out as our data says.
    """
    unmatched = set(patterns)
    tree: Tree = {}
    for path, where in sorted(_walk(unpacked)):
        matching = {pattern for pattern in patterns if fnmatch.fnmatchcase(path, pattern)}
        unmatched -= matching
        if matching:
            tree[path] = _entry(where)
    if unmatched:
        raise BuildError(
            f"the package {package} does not hold {', '.join(sorted(unmatched))}",
            hint="correct the list in iso/distributions/",
        )
    return tree


def _walk(unpacked: Path) -> Iterator[tuple[str, Path]]:
    for directory, _, _ in os.walk(unpacked):
        with os.scandir(directory) as members:
            for member in members:
                if member.is_symlink() or not member.is_dir():
                    yield merged_path(os.path.relpath(member.path, unpacked)), Path(member.path)


def merged_path(path: str) -> str:
    """Write a path as it is where /bin, /sbin and /lib lie in /usr; packages of Debian 12 still mix both."""
    return f"usr/{path}" if path.split("/")[0] in ("bin", "sbin", "lib", "lib64") else path


def _entry(path: Path) -> Entry:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Entry(stat.S_IFLNK | 0o777, str(path.readlink()).encode())
    return Entry(stat.S_IFREG | (status.st_mode & 0o755), path.read_bytes())
