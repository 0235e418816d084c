"""Snapshots of a VM (floor 3): its memory, its devices and its disks as they were together at one moment.

QEMU makes and restores them. What the guest's disks hold is kept inside of those; memory and devices lie in a file of
their own for each snapshot, and beside it lies a note of what it is of, whose presence says that the snapshot is whole.

Source: QEMU QMP reference manual, `snapshot-save`, `snapshot-load`, `snapshot-delete`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError, ControlError, HostError, MonitorError, StateError
from control.log import LOG
from control.paths import InstanceFiles
from control.units import format_size
from control.vm.instance import make_directory, write_atomically

if TYPE_CHECKING:
    from control.vm.vm import VM

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

WORK_TIMEOUT_S = 3600.0
"""Gigabytes of memory on a slow disk; QEMU answers nothing else meanwhile, so it is no wait for an event."""

AGENT_WAIT_S = 10.0
"""A guest whose agent was there when the snapshot was taken has it again at once."""

STATE_DISK_BYTES = 1024 * 1024
"""Of the disk beside which a state is kept; nothing is written to the disk itself."""

_STATE_NODE = "snapshot-state"
"""QEMU's name for the file of a state while it holds it."""

_JOB_POLL_S = 0.005


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot without QEMU.

    Attributes:
        taken_at: The host's time, ISO 8601.
        bytes: What memory and devices take on this host's disk; what is kept inside the guest's disks comes on top.
        disks: The disks that it holds the content of.
        was_running: Whether the guest ran, and runs again when it is restored.
        had_agent: Whether its agent had answered.
        qemu: The version of the QEMU that took it.
        machine: The options that make up the machine; it can only be restored in one that has the same.
        stood_still_s: How long a guest that ran stood still for it; None where an earlier version of ours took it.
    """

    tag: str
    taken_at: str
    bytes: int
    disks: list[str]
    was_running: bool
    had_agent: bool
    qemu: str
    machine: list[str]
    stood_still_s: float | None = None

    def describe(self) -> dict[str, Any]:
        """What users are shown of it."""
        plain = asdict(self)
        del plain["machine"]
        return plain


def check_tag(tag: str) -> str:
    """Return `tag` when a snapshot can have that name. Raises ConfigError."""
    if TAG.fullmatch(tag) is None:
        raise ConfigError(
            f"{tag[:80]!r} cannot be the name of a snapshot",
            key="TAG",
            hint="use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return tag


def list_snapshots(files: InstanceFiles) -> list[Snapshot]:
    """The snapshots of an instance, the oldest first; what has a note that cannot be read is left out, and logged."""
    found = []
    for note in files.snapshots.glob("*.json"):
        try:
            plain = json.loads(note.read_bytes())
            found.append(Snapshot(**{each.name: plain[each.name] for each in fields(Snapshot) if each.name in plain}))
        except (ValueError, TypeError, KeyError, OSError) as error:
            LOG.warning("%s is no note of a snapshot: %s", note, error)
    return sorted(found, key=lambda each: each.taken_at)


def find_snapshot(files: InstanceFiles, tag: str) -> Snapshot:
    """The snapshot `tag`, the newest one for an empty tag. Raises StateError when there is none."""
    there = list_snapshots(files)
    for each in reversed(there):
        if tag in ("", each.tag):
            return each
    tags = ", ".join(each.tag for each in there)
    raise StateError(
        f"there is no snapshot {tag}".rstrip() if there or tag else "there is no snapshot yet",
        state=tags or "no snapshot",
        required=(tag or "a snapshot",),
        hint=f"there are: {tags}" if tags else "take one: unhinged snapshot save NAME",
    )


async def save_snapshot(vm: VM, tag: str, *, live: bool = False) -> Snapshot:
    """Keep the VM as it is now; it stands still meanwhile, and goes on as before.

    Args:
        tag: Its name; for an empty one the time is taken.
        live: Let the guest run on while its memory is written: it stands still for some tens of milliseconds, and all
            of it takes longer.

    Raises:
        ConfigError: `tag` cannot be a name.
        StateError: There is one of that name, a disk cannot keep one, or it cannot be live here; nothing has changed.
        MonitorError, HostError: QEMU could not; nothing of it is left.
    """
    now = datetime.now(UTC)
    disks = await list_disks(vm)
    there = {each.tag for each in list_snapshots(vm.files)}
    if tag and check_tag(tag) in there:
        raise StateError(
            f"there is a snapshot {tag} already", state=tag, required=("another name",), hint="delete that one first"
        )
    tag = tag or _name_by_time(now, there.union(*(disk.tags for disk in disks)))
    state = _state_file(vm.files, tag)
    if state.exists():  # and there is no note: a save that was killed has left it
        await _forget_half(vm, tag, state, disks)
        disks = await list_disks(vm)
    _check_disks_can(disks, tag)
    had_agent = vm.agent_is_ready
    was_running = await vm.query_runstate() == "running"
    try:
        make_directory(state.parent)
        try:
            stood_still_s = await _save(vm, tag, state, disks, now, live=live and was_running)
        except MonitorError as error:
            raise explain_refusal(vm, error) from error
        snapshot = Snapshot(
            tag=tag,
            taken_at=now.isoformat(timespec="milliseconds"),
            bytes=state.stat().st_blocks * 512,
            disks=[disk.path for disk in disks],
            was_running=was_running,
            had_agent=had_agent,
            qemu=await query_version(vm),
            machine=_read_machine(vm),
            stood_still_s=stood_still_s,
        )
        write_atomically(_note_file(vm.files, tag), json.dumps(asdict(snapshot), indent=1).encode())
    except BaseException:
        state.unlink(missing_ok=True)
        raise
    vm.mark(f"snapshot {tag}")
    return snapshot


async def _forget_half(vm: VM, tag: str, state: Path, disks: Sequence[GuestDisk]) -> None:
    """Remove what there is of a snapshot that was never finished. Raises StateError while QEMU still writes it."""
    from control.vm.freeze import is_writing

    if await is_writing(vm):
        raise StateError(
            f"{vm.name} is still being written down for a snapshot that nobody waits for any more",
            state="busy",
            required=("idle",),
            hint="try again in a moment",
        )
    if nodes := [disk.node for disk in disks if tag in disk.tags]:
        await _work(vm, "snapshot-delete", {"tag": tag, "devices": nodes})
    state.unlink()


async def _save(vm: VM, tag: str, state: Path, disks: Sequence[GuestDisk], now: datetime, *, live: bool) -> float:
    """Write the VM down in the new file `state` and in its disks; returns how many seconds it stood still.

    Raises:
        StateError: It cannot be live here.
        MonitorError: QEMU could not; nothing of it is left in the disks.
        HostError: The file cannot be made.
    """
    from control.vm.freeze import set_capabilities, standing_still
    from control.vm.provision import make_disk

    if live:
        from control.vm.live import prepare_live, save_live  # few are

        await prepare_live(vm)
        return await save_live(vm, tag, state, disks, now)
    await set_capabilities(vm, ignore_shared=False)  # one before it may have been live
    await make_disk(state, STATE_DISK_BYTES)
    began = time.monotonic()
    async with standing_still(vm), _opened(vm, state, aio="threads"):
        nodes = [_STATE_NODE, *(disk.node for disk in disks)]
        try:
            await _work(vm, "snapshot-save", {"tag": tag, "vmstate": _STATE_NODE, "devices": nodes})
        except MonitorError:
            with contextlib.suppress(ControlError):  # it has just said what is wrong
                await _work(vm, "snapshot-delete", {"tag": tag, "devices": nodes})
            raise
    return round(time.monotonic() - began, 3)


def _name_by_time(now: datetime, taken: Collection[str]) -> str:
    """The second; of several within one, each has a number."""
    second = now.strftime("%Y%m%d-%H%M%S")
    return next(
        tag for tag in itertools.chain([second], (f"{second}-{n}" for n in itertools.count(2))) if tag not in taken
    )


async def restore_snapshot(vm: VM, tag: str) -> Snapshot:
    """Put the VM back to how it was; consoles and whoever is at them stay, and the guest's clock is set.

    Args:
        tag: Its name; for an empty one the newest is taken.

    Raises:
        StateError: There is no such snapshot, or it was taken of another machine; nothing has changed.
        MonitorError: QEMU could not. The VM stands still: what it holds may be half of each.
    """
    snapshot = find_snapshot(vm.files, tag)
    await _check_same_machine(vm, snapshot)
    disks = await list_disks(vm)
    missing = [disk.path for disk in disks if disk.path in snapshot.disks and snapshot.tag not in disk.tags]
    if missing or {disk.path for disk in disks} != set(snapshot.disks):
        raise StateError(
            f"the snapshot {snapshot.tag} cannot be restored: the disks are not those it was taken of",
            state=", ".join(missing) or "other disks",
            required=tuple(snapshot.disks) or ("no disk",),
            hint="has a disk been made anew since? then the snapshot is of no use any more",
        )
    state = _state_file(vm.files, snapshot.tag)
    if vm.has_agent:
        # What is under way in the guest will never have been.
        vm.agent.forget_agent(f"the machine was put back to {snapshot.tag}")
    await vm.monitor.execute("stop")
    async with _opened(vm, state, aio="io_uring"):
        nodes = [_STATE_NODE, *(disk.node for disk in disks)]
        try:
            await _work(vm, "snapshot-load", {"tag": snapshot.tag, "vmstate": _STATE_NODE, "devices": nodes})
        except MonitorError as error:
            raise MonitorError(
                f"{error}; {vm.name} stands still, for its memory may be half of each",
                hint=f"restore another snapshot, or end it: unhinged kill {vm.name}",
            ) from error
    vm.mark(f"back at {snapshot.tag}")
    vm.say(f"{vm.name} is back at its snapshot {snapshot.tag}")
    if snapshot.was_running:
        await vm.resume()
        if snapshot.had_agent and vm.has_agent:
            await _set_clock(vm)
    return snapshot


async def delete_snapshot(vm: VM, tag: str) -> Snapshot:
    """Forget a snapshot of a running VM. Raises StateError when there is none, MonitorError when a disk keeps it."""
    snapshot = find_snapshot(vm.files, check_tag(tag))
    nodes = [disk.node for disk in await list_disks(vm) if tag in disk.tags]
    if nodes:
        await _work(vm, "snapshot-delete", {"tag": tag, "devices": nodes})
    _remove(vm.files, tag)
    return snapshot


async def delete_snapshot_at_rest(files: InstanceFiles, tag: str, *, qemu_img: str = "qemu-img") -> Snapshot:
    """Forget a snapshot of a VM that does not run; call it with the instance's lock held.

    Raises:
        StateError: There is none.
        HostError: A disk keeps it (qemu-img's words); the snapshot is still there.
    """
    from control.process.run import run

    snapshot = find_snapshot(files, check_tag(tag))
    for disk in snapshot.disks:
        if not Path(disk).exists():
            continue  # it took what it held of the snapshot with it
        told = await run([qemu_img, "info", "--output=json", disk], timeout_s=WORK_TIMEOUT_S)
        if not any(each.get("name") == tag for each in _read_info(told.stdout).get("snapshots", ())):
            continue  # it was made anew since
        done = await run([qemu_img, "snapshot", "-q", "-d", tag, disk], timeout_s=WORK_TIMEOUT_S)
        if done.return_code != 0:
            words = done.stderr.decode("utf-8", "replace").strip()
            raise HostError(f"the snapshot cannot be taken out of {disk}: {words}", hint="is that disk in use?")
    _remove(files, tag)
    return snapshot


def _read_info(text: bytes) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(text)
    except ValueError:
        return {}
    return told


# -- the files ---------------------------------------------------------------------------------------------------------


def _state_file(files: InstanceFiles, tag: str) -> Path:
    return files.snapshots / f"{tag}.qcow2"


def _note_file(files: InstanceFiles, tag: str) -> Path:
    return files.snapshots / f"{tag}.json"


def _remove(files: InstanceFiles, tag: str) -> None:
    """The note goes first: without it the rest is what a save that was killed leaves, and is written over."""
    for path in (_note_file(files, tag), _state_file(files, tag)):
        path.unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _opened(vm: VM, path: Path, *, aio: str) -> AsyncIterator[None]:
    """Have QEMU hold the file of a state during the body.

    Args:
        aio: `io_uring` reads a third faster than `threads` does, and writes slower; where this host has none, QEMU
            refuses it.
    """
    node = {
        "driver": "qcow2",
        "node-name": _STATE_NODE,
        "file": {"driver": "file", "filename": str(path), "aio": aio},
        # Nobody waits until it is on the disk: a host that loses power has lost the VM as well.
        "cache": {"no-flush": True},
    }
    try:
        await vm.monitor.execute("blockdev-add", node)
    except MonitorError:
        if aio == "threads":
            raise
        await vm.monitor.execute("blockdev-add", {**node, "file": {"driver": "file", "filename": str(path)}})
    try:
        yield
    finally:
        with contextlib.suppress(MonitorError):  # QEMU has gone, and the file is closed
            await vm.monitor.execute("blockdev-del", {"node-name": _STATE_NODE})


# -- QEMU --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuestDisk:
    """A disk that the guest can write to: QEMU's node, the file, its format, the snapshots that lie in it."""

    node: str
    path: str
    format: str
    tags: Sequence[str]


async def list_disks(vm: VM) -> list[GuestDisk]:
    """The disks of the VM that can change. A UEFI's variables are part of the machine's memory, and not among them."""
    disks = []
    for block in await vm.monitor.execute("query-block"):
        inserted = block.get("inserted")
        if inserted is None or inserted["ro"] or inserted.get("node-name") == "firmware-variables":
            continue
        image = inserted["image"]
        disks.append(
            GuestDisk(
                node=inserted.get("node-name") or block["device"],
                path=inserted["file"],
                format=inserted["drv"],
                tags=[each["name"] for each in image.get("snapshots", ())],
            )
        )
    return disks


def _check_disks_can(disks: Sequence[GuestDisk], tag: str) -> None:
    for disk in disks:
        if disk.format != "qcow2":
            raise StateError(
                f"the disk {disk.path} is {disk.format}, which keeps no snapshots",
                state=disk.format,
                required=("qcow2",),
                hint=f"convert it: qemu-img convert -O qcow2 {disk.path} NEW.qcow2",
            )
        if tag in disk.tags:
            raise StateError(
                f"the disk {disk.path} holds a snapshot {tag} already, which is not one of ours",
                state=tag,
                required=("another name",),
                hint=f"take another name, or look at it: qemu-img snapshot -l {disk.path}",
            )


async def _work(vm: VM, command: str, arguments: Mapping[str, object]) -> None:
    """Run a job of QEMU to its end. Raises MonitorError with QEMU's words when it fails."""
    import asyncio

    job = f"unhinged-{secrets.token_hex(6)}"
    await vm.monitor.execute(command, {"job-id": job, **arguments}, timeout_s=WORK_TIMEOUT_S)
    deadline = time.monotonic() + WORK_TIMEOUT_S
    while True:
        told = next(each for each in await vm.monitor.execute("query-jobs") if each["id"] == job)
        if told["status"] == "concluded" or time.monotonic() > deadline:
            break
        await asyncio.sleep(_JOB_POLL_S)  # most are over before the command has been answered
    await vm.monitor.execute("job-dismiss", {"id": job})
    if error := told.get("error"):
        raise MonitorError(f"QEMU could not do {command}: {error}")


def explain_refusal(vm: VM, error: MonitorError) -> MonitorError:
    """Name what keeps a VM from being kept, where it is known."""
    words = str(error)
    if "VirtFS" in words:
        return MonitorError(
            f"{vm.name} has its share mounted, which keeps its state from being saved",
            hint="unmount it in the guest first: umount /mnt/host",
        )
    if "vdagent" in words:
        return MonitorError(
            f"{vm.name} shares its clipboard, and QEMU saves no state of that",
            hint="start it without clipboard = true",
        )
    limit = vm.record.spec.get("limits", {}).get("file_bytes")
    if limit is not None and ("File too large" in words or "Input/output error" in words):
        hint = f"no file of {vm.name} may grow beyond {format_size(limit)}: file_size in limits"
        return MonitorError(words, hint=hint)
    if "No space left" in words:
        return MonitorError(words, hint=f"make room where {vm.files.directory} is")
    return error


async def query_version(vm: VM) -> str:
    told = await vm.monitor.execute("query-version")
    number = told["qemu"]
    return f"{number['major']}.{number['minor']}.{number['micro']} {told['package']}".strip()


_OF_THE_MACHINE = ("-machine", "-M", "-accel", "-cpu", "-m", "-smp", "-device")


def _read_machine(vm: VM) -> list[str]:
    """The options of the command line that decide what a state has to fit."""
    words = json.loads(vm.files.argv.read_bytes())
    return [f"{word} {value}" for word, value in itertools.pairwise(words) if word in _OF_THE_MACHINE]


async def _check_same_machine(vm: VM, snapshot: Snapshot) -> None:
    version, machine = await query_version(vm), _read_machine(vm)
    if version != snapshot.qemu:
        raise StateError(
            f"the snapshot {snapshot.tag} was taken by QEMU {snapshot.qemu}, and {vm.name} runs under QEMU {version}",
            state=version,
            required=(snapshot.qemu,),
            hint="a state fits the QEMU that wrote it; take a new one",
        )
    if machine != snapshot.machine:
        then = next(iter(each for each in snapshot.machine if each not in machine), "fewer devices")
        now = next(iter(each for each in machine if each not in snapshot.machine), "fewer devices")
        raise StateError(
            f"the snapshot {snapshot.tag} was taken of another machine: then {then[:200]}; now {now[:200]}",
            state="another machine",
            required=("the same machine",),
            hint="declare the VM as it was then, and start it again",
        )


async def _set_clock(vm: VM) -> None:
    """Tell the guest what time it is: by its own clock none has passed. A guest that is not told goes on as well."""
    try:
        await vm.agent.wait_until_ready(AGENT_WAIT_S)
        await vm.agent.call("set_time", {"time_ns": time.time_ns()}, timeout_s=AGENT_WAIT_S)
    except ControlError as error:
        vm.say(f"the clock of {vm.name} was not set after its snapshot was restored: {error}")
