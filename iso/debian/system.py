"""Installs Debian into a directory tree and keeps it as an archive (room: image; called by `iso/debian/build.py`).

mmdebstrap does the work: as root, or without by user namespaces. The archive holds everything but the agent, so that
a change of the agent costs seconds and not the two minutes of an installation.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path

from iso.agent.content import EPOCH, PACKAGING
from iso.debian.recipe import SUITE, Recipe
from iso.failure import BuildError
from iso.programs import ProgramFailed, run
from iso.progress import Progress

HOST_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_OWN = PACKAGING / "debian"
_SETUP = PACKAGING / "debian-setup.sh"

_CAUSES = (
    (
        r"Could not resolve|Temporary failure|Could not connect|Cannot initiate|Network is unreachable|timed out",
        "Debian's packages could not be fetched: no network to the mirror",
        "check the network (and Acquire::http::Proxy in apt's configuration), then build again",
    ),
    (r"No space left", "the disk is full", "free about 2 GB, or choose another place with --output and --cache"),
    (
        r"NO_PUBKEY|not signed|KEYEXPIRED",
        "Debian's package lists are not signed by a key this host knows",
        "install the package debian-archive-keyring",
    ),
    (
        r"newuidmap|newgidmap|subuid|user namespace|unshare",
        "this user may not make user namespaces, which installing packages without root needs",
        "install uidmap and give the user a range in /etc/subuid and /etc/subgid, or build as root",
    ),
)


def make_system(recipe: Recipe, cache: Path, progress: Progress, *, refresh: bool) -> Path:
    """Return the archive of the installed system, from the cache if it was made before.

    Args:
        cache: Where archives and packages are kept.
        refresh: Install anew, with the packages that are current now.

    Raises:
        BuildError: The network, the disk or the host's settings do not allow it; the cache is as it was.
    """
    target = cache / f"{recipe.name}-{_key(recipe)[:16]}.tar.zst"
    if target.exists() and not refresh:
        return target
    progress.step(f"installing Debian {SUITE} ({len(recipe.packages)} packages and what they need)")
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="debian.", dir=cache) as name:
        scratch = Path(name)
        # Without root others do the work: the users of our user namespace.
        scratch.chmod(0o755)
        (scratch / "own.tar").write_bytes(_own_files())
        (scratch / "setup.sh").write_bytes(_SETUP.read_bytes())
        (scratch / "debs").symlink_to(os.path.relpath(debs, scratch))
        try:
            run(_argv(recipe), cwd=scratch, environment={"SOURCE_DATE_EPOCH": str(EPOCH)})
        except ProgramFailed as error:
            raise _explain(error) from error
        for old in cache.glob(f"{recipe.name}-????????????????.tar.zst"):
            old.unlink()
        (scratch / "system.tar.zst").replace(target)
    return target


def _argv(recipe: Recipe) -> list[str]:
    archives = "/var/cache/apt/archives"
    hooks = {
        # What was fetched once is not fetched again.
        "setup": [f'mkdir -p "$1{archives}"', f"sync-in debs {archives}"],
        # Before the kernel is there, because it decides what goes into the initial RAM disk.
        "essential": ["tar-in own.tar /"],
        "customize": [f"sync-out {archives} debs", 'chroot "$1" sh < setup.sh'],
    }
    return [
        "mmdebstrap", "--quiet", "--variant=minbase", "--skip=essential/unlink",
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        f"--include={','.join(recipe.packages)}",
        *(f"--dpkgopt=path-{rule}" for rule in recipe.left_out),
        *(f"--{stage}-hook={command}" for stage, commands in hooks.items() for command in commands),
        *(f"--aptopt={option}" for option in _apt_options()),
        SUITE, "system.tar.zst", *_sources(),
    ]  # fmt: skip


def _sources() -> list[str]:
    """The mirror this host uses, when it is a Debian of the same release; else mmdebstrap knows Debian's own."""
    try:
        text = HOST_SOURCES.read_text(encoding="utf-8")
    except OSError:
        return []
    return [str(HOST_SOURCES)] if SUITE in re.findall(r"^Suites:.*$", text, re.MULTILINE)[0].split() else []


def _apt_options() -> list[str]:
    """The host's proxy, without which apt may not reach anything; taken out of the image again by its setup."""
    dump = run(["apt-config", "dump", "Acquire::http::Proxy"]).decode("utf-8", "replace")
    return ['Acquire::Retries "2"', *(line.rstrip(";") for line in dump.splitlines() if not line.endswith('"";'))]


def _own_files() -> bytes:
    """Our own files as an archive that belongs to root; of their permissions only whether they can be executed."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path in sorted(_OWN.rglob("*")):
            member = tarfile.TarInfo(path.relative_to(_OWN).as_posix())
            member.mtime = EPOCH
            member.mode = 0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644
            if path.is_dir():
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
            else:
                member.size = path.stat().st_size
                archive.addfile(member, io.BytesIO(path.read_bytes()))
    return target.getvalue()


def _key(recipe: Recipe) -> str:
    total = hashlib.sha256(json.dumps([SUITE, asdict(recipe), _sources()]).encode())
    for data in (_own_files(), _SETUP.read_bytes(), Path(__file__).read_bytes()):
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def _explain(error: ProgramFailed) -> BuildError:
    for pattern, message, hint in _CAUSES:
        if re.search(pattern, error.said, re.IGNORECASE):
            return BuildError(message, hint=hint)
    lines = [line for line in error.said.splitlines() if line.startswith(("E:", "dpkg: error"))]
    return BuildError(f"mmdebstrap failed: {lines[0] if lines else error}", hint="try again with --refresh")
