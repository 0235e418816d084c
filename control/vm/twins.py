"""A second machine that is what the first one was at a snapshot (floor 3), to see what has changed since. Blocking.

It reaches nothing, ends with this process however that ends, and nothing is left of it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from control.errors import AgentProtocolError, ControlError, HostError, StateError
from control.paths import InstanceFiles, open_instance_files
from control.share.changes import Change, Entry, Kind, compare
from control.spec.locate import Location
from control.spec.plain import from_plain
from control.spec.vm_spec import Disk, VMSpec
from control.vm import cloning
from control.vm.collect import collect_exec
from control.vm.hire import hire
from control.vm.instance import write_atomically
from control.vm.lifetime import SNAPSHOT_ANSWER_S
from control.vm.reach import begin, connect, hold, look
from control.vm.snapshots import Snapshot, find_snapshot
from control.vm.templates import copy_disk

LIST_TIMEOUT_S = 600.0
LISTING_MAX_BYTES = 256 << 20
_KINDS: dict[str, Kind] = {"d": "directory", "f": "file", "l": "link"}

_LIST = r"""
import base64, json, os, stat, sys, zlib
PSEUDO = set("proc sysfs devtmpfs devpts cgroup cgroup2 securityfs debugfs tracefs bpf mqueue 9p fusectl "
             "configfs pstore efivarfs hugetlbfs autofs binfmt_misc rpc_pipefs".split())
skipped = {"/run", "/dev", "/proc", "/sys"}
for line in open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape"):
    _, point, kind = line.split(" ")[:3]
    if kind in PSEUDO:
        skipped.add(point.replace("\\040", " "))
packer, pieces, rows = zlib.compressobj(1), [], []
def flush():
    pieces.append(packer.compress("".join(rows).encode("utf-8", "backslashreplace")))
    rows.clear()
waiting = ["/"]
while waiting:
    where = waiting.pop()
    try:
        entries = list(os.scandir(where))
    except OSError:
        continue
    for entry in entries:
        try:
            told = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        kind = "l" if stat.S_ISLNK(told.st_mode) else "d" if stat.S_ISDIR(told.st_mode) else "f"
        what = "" if kind == "d" else "%d %d %d" % (told.st_size, told.st_mtime_ns, told.st_ctime_ns)
        rows.append(json.dumps([entry.path, kind, stat.S_IMODE(told.st_mode), what]) + "\n")
        if kind == "d" and entry.path not in skipped:
            waiting.append(entry.path)
    if len(rows) > 1000:
        flush()
flush()
sys.stdout.write(base64.b64encode(b"".join(pieces) + packer.flush()).decode())
"""
"""What a file is told by, in the place of its content: each change of it changes the time of its inode."""


def find_changes(location: Location, name: str, tag: str) -> tuple[Snapshot, list[Change]]:
    """What has been added, modified and deleted in the guest's file systems since a snapshot, by path.

    Args:
        tag: Of the snapshot; the newest for an empty one.

    Raises:
        StateError: The VM does not run, has no such snapshot, or is one of which no second can be made.
        RemoteError, ControlError: The second one cannot be made or asked; the first one goes on.
    """
    cloning.sweep(location.runtime, _twin_of(name))
    with open_twin(location, name, tag) as (twin, snapshot):
        then = _list_files(location.runtime, twin)
        now = _list_files(location.runtime, name)
    return snapshot, compare(then, now)


@contextlib.contextmanager
def open_twin(location: Location, name: str, tag: str) -> Iterator[tuple[str, Snapshot]]:
    """A machine that is what `name` was at a snapshot, for the body; raises as `find_changes`.

    Yields:
        The name of its instance, and the snapshot.
    """
    snapshot, spec = _choose(location, name, tag)
    twin = cloning.name_passing(_twin_of(name))
    files = open_instance_files(location.runtime, twin, is_shared=location.is_shared)
    files.clone_note.touch(mode=0o600)
    try:
        with hire(twin, files.directory) as hired, hold(files) as lock:
            if lock is None:
                raise StateError(f"{twin} is held by another program", state=twin, required=("free",))
            # It keeps the name in its specification, of which the addresses of its cards are made.
            spec = replace(spec, disks=_copy(location.runtime, name, snapshot, spec, files), forwards=())
            job = {**cloning.build_job(twin, spec, {}, with_us=True), "waits": True}
            begin(hired, files, lock, job)
        with connect(location.runtime, twin) as remote:
            for card in remote.call("qmp", {"command": "query-rx-filter"})["return"]:
                remote.call("qmp", {"command": "set_link", "arguments": {"name": card["name"], "up": False}})
            params = {"action": "restore", "tag": snapshot.tag}
            remote.call("snapshot", params, timeout_s=SNAPSHOT_ANSWER_S)
            if not snapshot.was_running:
                remote.call("resume")
        yield twin, snapshot
    finally:
        with contextlib.suppress(ControlError):  # the next one sweeps what cannot be removed now
            cloning.discard(location, twin)


def _twin_of(name: str) -> str:
    return f"{name[:30]}.then"


def _choose(location: Location, name: str, tag: str) -> tuple[Snapshot, VMSpec]:
    seen = look(location.runtime, name)
    if not seen.is_running or seen.record is None:
        hint = f"unhinged start {name}"
        raise StateError(f"{name} does not run", state=seen.state, required=("RUNNING",), hint=hint)
    snapshot = find_snapshot(seen.files, tag)
    spec = from_plain(seen.record.spec)
    if not isinstance(spec, VMSpec) or spec.frozen is not None or any(each.kind == "tap" for each in spec.networks):
        raise StateError(
            f"no second machine can be made of {name}: it is a clone, has a tap device, or a command line of your own",
            state="one of a kind",
            required=("a declared VM",),
            hint="the snapshot itself can be restored",
        )
    if not snapshot.had_agent:
        raise StateError(
            f"the agent of {name} had not answered yet when {snapshot.tag} was taken: nobody could list its files",
            state="no agent",
            required=("agent",),
            hint="compare with a later snapshot",
        )
    return snapshot, spec


def _copy(runtime: Path, name: str, snapshot: Snapshot, spec: VMSpec, files: InstanceFiles) -> tuple[Disk, ...]:
    """Copy disks and snapshot for the second machine, while the first stands still; returns its disks."""
    of = look(runtime, name).files
    files.snapshots.mkdir(mode=0o700)
    with connect(runtime, name) as remote:
        copies = remote.call("copy_disks", {"directory": str(files.directory)}, timeout_s=cloning.FREEZE_ANSWER_S)[
            "disks"
        ]
    disks = tuple(replace(disk, path=Path(copy)) for disk, copy in zip(spec.disks, copies, strict=True))
    places = {str(disk.path): copy for disk, copy in zip(spec.disks, copies, strict=True)}
    state = Disk(of.snapshots / f"{snapshot.tag}.qcow2", "qcow2")
    asyncio.run(copy_disk(state, files.snapshots / f"{snapshot.tag}.qcow2"))
    if of.firmware_variables.exists():
        asyncio.run(copy_disk(Disk(of.firmware_variables, "raw"), files.firmware_variables))
    note = replace(snapshot, disks=[places.get(path, path) for path in snapshot.disks])
    write_atomically(files.snapshots / f"{snapshot.tag}.json", json.dumps(asdict(note)).encode())
    return disks


def _list_files(runtime: Path, name: str) -> dict[str, Entry]:
    with connect(runtime, name) as remote:
        params = {"argv": ["python3", "-c", _LIST], "timeout_s": LIST_TIMEOUT_S}
        done = collect_exec(remote, params)
    if done["exit_code"] != 0 or done["truncated"]:
        raise HostError(f"the files of {name} cannot be listed: {done['stderr'][-300:].strip()}", hint="is it python3?")
    try:
        return _read_listing(done["stdout"])
    except (ValueError, zlib.error, TypeError, KeyError) as error:
        raise AgentProtocolError(f"{name} does not list its files as it was asked to: {error!r}") from error


def _read_listing(text: str) -> dict[str, Entry]:
    """Read what a guest has written; it is not trusted. Raises ValueError."""
    unpacker = zlib.decompressobj()
    listing = unpacker.decompress(base64.b64decode(text, validate=True), LISTING_MAX_BYTES)
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("too long, or cut short")
    found = {}
    for line in listing.decode("utf-8").splitlines():
        path, kind, mode, what = json.loads(line)
        found[str(path)] = Entry(_KINDS[kind], int(mode), str(what))
    return found


def describe(changes: list[Change]) -> list[dict[str, Any]]:
    """As plain data."""
    return [asdict(change) for change in changes]
