"""Keeps a process within limits of CPU and memory (floor 2): a control group of its own, or a scope of systemd.

The process is put into its group by the words before its own command line, so it never runs outside of it, and no
memory that it takes is counted elsewhere. Sources: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/;
systemd-run(1), systemd.resource-control(5).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from control.errors import HostError
from control.log import LOG
from control.spec.limits import Limits

PERIOD_US = 100_000
"""The kernel's own default for the time over which CPU is counted."""

SYSTEMCTL_TIMEOUT_S = 10.0
SYSTEMD_RUNS = Path("/run/systemd/system")
"""Where this directory is, systemd is the first process (sd_booted(3))."""

_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 126; shift; done; shift; exec "$@"'
_BOUND_FILES = 'trap "" XFSZ; ulimit -f "$1" || exit 126; shift; exec "$@"'
"""Who writes beyond it is told so (EFBIG), and not ended: a guest sees an error of its disk. Source: setrlimit(2)."""

_ULIMIT_BLOCK_BYTES = 512
"""Source: POSIX, ulimit."""

_UNLIMITED_ABOVE = 2**62
"""The memory limit of a group of v1 that has none is the largest multiple of a page below 2**63."""


@dataclass(frozen=True)
class Group:
    """Where one process is kept within its limits.

    Attributes:
        kind: A directory of cgroup v2, one directory for each controller of v1, or a scope of systemd.
        places: Those directories; of a scope its name, after `--user` when it is the user's own systemd that keeps it.
    """

    kind: Literal["cgroup v2", "cgroup v1", "systemd"]
    places: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as values that JSON knows; `from_plain` reads them."""
        return {**asdict(self), "places": list(self.places)}

    def build_prefix(self, limits: Limits) -> tuple[str, ...]:
        """Return the words before a command line that start it within the group."""
        if self.kind == "systemd":
            *whose, unit = self.places
            properties = [f"--property={key}={value}" for key, value in _list_properties(limits)]
            return ("systemd-run", *whose, "--scope", "--quiet", f"--unit={unit}", *properties, "--")
        return ("/bin/sh", "-c", _ENTER, "sh", *self.places, "--")

    def check_kept(self, pid: int, limits: Limits) -> None:
        """See to it that a process which has been started in it is kept within `limits`.

        systemd takes a limit for a controller that it was not given for this user, and does nothing about it.

        Raises:
            HostError: It is not.
        """
        if self.kind != "systemd":
            return  # its limits were written before there was a process
        mounts, paths = _list_mounts(), _list_own_paths(pid)
        for controller, names, wanted in (
            ("cpu", ("cpu.max", "cpu.cfs_quota_us"), limits.cpu),
            ("memory", ("memory.max", "memory.limit_in_bytes"), limits.memory_bytes),
        ):
            if wanted is None:
                continue
            places = [_find_place(mounts, paths, controller), _find_place(mounts, paths, "")]
            files = [place / name for place in places if place is not None for name in names]
            values = [file.read_text(encoding="utf-8").split()[0] for file in files if file.exists()]
            if not any(value.isdigit() and int(value) < _UNLIMITED_ABOVE for value in values):
                raise HostError(
                    f"systemd does not limit {controller} for this user",
                    hint=f"it was not given the controller {controller}: see Delegate= in user@.service",
                )

    def was_short_of_memory(self) -> bool:
        """Whether the kernel has killed a process of the group because it wanted more memory than its limit."""
        if self.kind == "systemd":
            return _ask_systemctl(self.places, "show", "--property=Result", "--value").strip() == "oom-kill"
        for place in self.places:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    lines = (Path(place) / name).read_text(encoding="utf-8").splitlines()
                    if any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines):
                        return True
        return False

    def remove(self) -> None:
        """Remove what is left of it; its process has ended.

        Raises:
            HostError: A process is still in it.
        """
        if self.kind == "systemd":
            # A scope goes with its last process; only one that failed stays, to be looked at.
            _ask_systemctl(self.places, "reset-failed")
            return
        for place in self.places:
            try:
                Path(place).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HostError(
                    f"the control group {place} cannot be removed: {error.strerror}",
                    hint=f"the processes named in {place}/cgroup.procs are in it",
                ) from error


def build_file_prefix(limits: Limits) -> tuple[str, ...]:
    """Return the words before a command line that bound the files which it writes; none where they are not bounded."""
    if limits.file_bytes is None:
        return ()
    return ("/bin/sh", "-c", _BOUND_FILES, "sh", str(limits.file_bytes // _ULIMIT_BLOCK_BYTES))


def from_plain(plain: Mapping[str, Any]) -> Group | None:
    """Return the group that `to_plain` was given; None for what is none."""
    kind, places = plain.get("kind"), plain.get("places")
    if kind in ("cgroup v2", "cgroup v1", "systemd") and isinstance(places, list) and places:
        return Group(kind, tuple(map(str, places)))
    return None


def make_group(name: str, limits: Limits) -> Group:
    """Make the group `name` that keeps `limits`; one that an earlier process has left is replaced.

    Raises:
        HostError: This host cannot keep them, for the reasons it names; nothing was made.
    """
    if SYSTEMD_RUNS.is_dir() and shutil.which("systemd-run"):
        whose = () if os.geteuid() == 0 else ("--user",)
        group = Group("systemd", (*whose, f"{name}.scope"))
        group.remove()
        return group
    reasons = []
    for make in (_make_v2, _make_v1):
        try:
            return make(name, limits)
        except OSError as error:
            reasons.append(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    raise HostError(
        f"limits cannot be kept on this host: {'; '.join(reasons)}",
        hint="they need systemd, or control groups that you may write; leave limits out, or run as root",
    )


def _list_properties(limits: Limits) -> Iterator[tuple[str, str]]:
    if limits.cpu is not None:
        yield "CPUQuota", f"{limits.cpu * 100:.2f}%"
    if limits.memory_bytes is not None:
        yield "MemoryMax", str(limits.memory_bytes)
        yield "MemorySwapMax", "0"


def _ask_systemctl(places: tuple[str, ...], *words: str) -> str:
    *whose, unit = places
    argv = ["systemctl", *whose, *words, unit]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=SYSTEMCTL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        LOG.debug("%s: %s", " ".join(argv), error)
        return ""
    return done.stdout


# -- control groups ----------------------------------------------------------------------------------------------------


def _make_v2(name: str, limits: Limits) -> Group:
    """Below our own group, or else the nearest one above it: one with processes in it cannot divide what it has."""
    mounts, paths = _list_mounts(), _list_own_paths("self")
    own = _find_place(mounts, paths, "")
    if own is None:
        raise OSError("no cgroup v2 is mounted")
    wanted = [*(["cpu"] if limits.cpu is not None else []), *(["memory"] if limits.memory_bytes is not None else [])]
    top, _ = mounts[""]
    refusal = OSError(f"{own} has no controller {' and '.join(wanted)}")
    for parent in (own, *own.parents):
        if not parent.is_relative_to(top):
            break
        try:
            _give_children(parent, wanted)
        except OSError as error:
            refusal = error
            continue
        values = {}
        if limits.cpu is not None:
            values["cpu.max"] = f"{round(limits.cpu * PERIOD_US)} {PERIOD_US}"
        if limits.memory_bytes is not None:
            values |= {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0"}
        return Group("cgroup v2", (_make_directory(parent / name, values),))
    raise refusal


def _give_children(parent: Path, controllers: list[str]) -> None:
    switch = parent / "cgroup.subtree_control"
    missing = set(controllers) - set(switch.read_text(encoding="utf-8").split())
    if missing:
        switch.write_text(" ".join(f"+{controller}" for controller in sorted(missing)), encoding="utf-8")


def _make_v1(name: str, limits: Limits) -> Group:
    mounts, paths = _list_mounts(), _list_own_paths("self")
    made: list[str] = []
    wanted: dict[str, dict[str, str]] = {}
    if limits.cpu is not None:
        wanted["cpu"] = {
            "cpu.cfs_period_us": str(PERIOD_US),
            "cpu.cfs_quota_us": str(round(limits.cpu * PERIOD_US)),
        }
    if limits.memory_bytes is not None:
        # In this order: memory and swap together cannot be less than memory alone.
        size = str(limits.memory_bytes)
        wanted["memory"] = {"memory.limit_in_bytes": size, "memory.memsw.limit_in_bytes": size}
    try:
        for controller, values in wanted.items():
            own = _find_place(mounts, paths, controller)
            if own is None:
                raise OSError(f"no cgroup v1 with the controller {controller} is mounted")
            made.append(_make_directory(own / name, values))
    except OSError:
        for place in made:
            Path(place).rmdir()
        raise
    return Group("cgroup v1", tuple(made))


_MAY_BE_MISSING = ("memory.swap.max", "memory.memsw.limit_in_bytes")
"""A kernel that does not count swap has no such file, and nothing is swapped by it."""


def _make_directory(place: Path, values: Mapping[str, str]) -> str:
    with contextlib.suppress(FileNotFoundError):
        place.rmdir()  # of a process that has ended; one that has not keeps it, and that is told
    place.mkdir(mode=0o755)
    try:
        for name, value in values.items():
            if name not in _MAY_BE_MISSING or (place / name).exists():
                (place / name).write_text(value, encoding="utf-8")
    except OSError:
        place.rmdir()
        raise
    return str(place)


def _list_mounts() -> dict[str, tuple[Path, str]]:
    """Where each controller of v1 is mounted, and v2 under the empty name; with the group that is seen there.

    Source: proc(5), /proc/PID/mountinfo.
    """
    mounts: dict[str, tuple[Path, str]] = {}
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        first, _, second = line.partition(" - ")
        kind, _, options = second.split(" ", 2)
        root, point = first.split(" ")[3:5]
        if kind == "cgroup2":
            mounts.setdefault("", (Path(point), root))
        elif kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, (Path(point), root))
    return mounts


def _list_own_paths(pid: int | str) -> dict[str, str]:
    """The group of a process, for each controller of v1, and of v2 under the empty name (cgroups(7))."""
    paths: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        for controller in controllers.split(",") if number != "0" else ("",):
            paths[controller] = path
    return paths


def _find_place(mounts: Mapping[str, tuple[Path, str]], paths: Mapping[str, str], controller: str) -> Path | None:
    if controller not in mounts or controller not in paths:
        return None
    point, root = mounts[controller]
    path = paths[controller]
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    place = point / path.lstrip("/")
    return place if place.is_dir() else point
