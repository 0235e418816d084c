"""Puts the guest's file system together: base, our own files, busybox's links, the agent (room: image)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from iso import guestpython
from iso.base import host_command, write_to_disk
from iso.distribution import Distribution
from iso.failure import BuildError
from iso.newc import Entry, Tree, character_device, directory, file, symlink
from iso.programs import run

# Where busybox and a real program both exist, the real one is the one in PATH; busybox's dpkg and rpm would mislead.
NOT_FROM_BUSYBOX = frozenset(
    {"busybox", "dpkg", "dpkg-deb", "rpm", "rpm2cpio", "linuxrc", "mke2fs", "depmod", "insmod", "modprobe"}
)

_EMPTY_DIRECTORIES = {
    "dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777, "root": 0o700,
    "mnt/host": 0o755, "data": 0o755,
    "var/log": 0o755, "var/lib": 0o755, "var/spool/cron/crontabs": 0o755, "etc/dropbear": 0o700, "root/.ssh": 0o700,
}  # fmt: skip

AGENT_HOME = "usr/lib/unhinged/agent"


def assemble(base: Mapping[str, Entry], own: Path, agent: Path, distribution: Distribution, scratch: Path) -> Tree:
    """Return everything the guest's file system holds when the kernel starts `/init`.

    Args:
        base: What comes from the distribution's packages.
        own: The directory `guest/rootfs`, laid out as in the guest.
        agent: The agent's package of Python sources.
        distribution: Names the guest's interpreter.
        scratch: A directory on a disk from which programs may be run.
    """
    tree: Tree = {path: directory(mode) for path, mode in _EMPTY_DIRECTORIES.items()}
    tree |= {path: symlink(f"usr/{path}") for path in ("bin", "sbin", "lib", "lib64")}
    tree |= {"var/run": symlink("/run"), "etc/mtab": symlink("/proc/self/mounts")}
    # The kernel opens it for /init before anything is mounted; without it the first messages would be lost.
    tree |= {"dev/console": character_device(5, 1), "dev/null": character_device(1, 3, 0o666)}
    tree |= base
    tree |= read_own(own)
    with tempfile.TemporaryDirectory(prefix="rootfs.", dir=scratch) as name:
        root = Path(name)
        # Made by /init once the agent's channel is there; see there.
        tree.pop("usr/sbin/modprobe", None)
        write_to_disk(base, root / "root")
        for path in _applets(root / "root"):
            tree.setdefault(path, symlink("/usr/bin/busybox"))
        tree |= _agent(agent, host_command(root / "root", f"usr/bin/{distribution.python}"), root)
    tree["usr/bin/python3"] = symlink(distribution.python)
    return tree


def read_own(top: Path) -> Tree:
    """Read our own files; of their permissions only whether they can be executed is kept, as in git."""
    tree: Tree = {}
    for path in sorted(top.rglob("*")):
        name = path.relative_to(top).as_posix()
        if path.is_symlink():
            tree[name] = symlink(str(path.readlink()))
        elif path.is_file():
            tree[name] = file(path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)
    if "init" not in tree:
        raise BuildError(f"{top} holds no init", hint="the checkout is not complete: run 'git status'")
    return tree


def _applets(root: Path) -> list[str]:
    listed = run([str(root / "usr/bin/busybox"), "--list-full"]).decode().split()
    paths = [path if path.startswith("usr/") else f"usr/{path}" for path in listed]
    return [path for path in paths if path.rpartition("/")[2] not in NOT_FROM_BUSYBOX]


def _agent(sources: Path, interpreter: list[str], scratch: Path) -> Tree:
    if not (sources / "__main__.py").is_file():
        raise BuildError(
            f"{sources} holds no agent (no __main__.py)", hint="the checkout is not complete: run 'git status'"
        )
    files: Tree = {
        f"{AGENT_HOME}/{path.relative_to(sources).as_posix()}": file(path.read_bytes())
        for path in sorted(sources.rglob("*.py"))
    }
    (scratch / "agent").mkdir()
    # Level 0: the agent's own assertions and texts stay.
    return guestpython.compile_tree(
        interpreter, scratch / "root" / "usr", files, AGENT_HOME, scratch / "agent", level=0
    )
