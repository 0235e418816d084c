"""Templates (floor 3): a VM that has booted, frozen once, from which clones go on within a fraction of a second.

A template is a directory: the guest's memory as a file, the state of the devices, its disks, and `template.json`, which
is written last. Its clones map the memory, so that what they do not write they share, and write over its disks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.argv import build_argv
from control.errors import AgentCallError, HostError, MonitorError, StateError
from control.log import LOG
from control.paths import InstanceFiles, check_instance_name, find_instance_files, open_instance_files
from control.spec.plain import from_plain
from control.spec.vm_spec import DirectBoot, Disk, Frozen, IsoBoot, VMSpec
from control.vm.clones import discard, list_clones, make_overlays
from control.vm.instance import write_atomically

if TYPE_CHECKING:
    from control.vm.vm import VM

COMMAND_LINE = "the command line of its machine"
"""What has changed where no file has: another version of ours made the template."""

COPY_TIMEOUT_S = 3600.0
WRITE_BACK_S = 600.0
"""Gigabytes to a slow disk, while the guest goes on."""

_STREAM = "stream"
"""What a VM wrote of itself, memory and all, before the memory is a file of its own."""


@dataclass(frozen=True)
class Template:
    """What is known of a template.

    Attributes:
        vm: The machine it was made of.
        made_at: The host's time, ISO 8601.
        qemu: The version of the QEMU that froze it; no other can take its state.
        bytes: What it takes on this host's disk.
        spec: What that machine was, as plain data (`control.spec.plain`), with the template's own disks.
        stands_on: The files outside of it that its clones read, each with what told it from others then.
        machine: What `digest_machine` made of `spec`.
    """

    name: str
    vm: str
    made_at: str
    qemu: str
    bytes: int
    spec: dict[str, Any]
    stands_on: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    def describe(self) -> dict[str, Any]:
        """What users are shown of it."""
        plain = asdict(self)
        del plain["spec"], plain["stands_on"], plain["machine"]
        return plain

    def find_changed(self) -> list[str]:
        """Those of the files it stands on that are not what they were, or not there any more; or `COMMAND_LINE`."""
        changed = [path for path, told in self.stands_on.items() if _look_at_file(Path(path)) != told]
        return changed if self.machine == digest_machine(self.spec) else [*changed, COMMAND_LINE]


def digest_machine(plain: Mapping[str, Any]) -> str:
    """What tells the machine that we make of a specification from those of other versions: it takes no state of theirs.

    Args:
        plain: The specification of a `VMSpec` as plain data.
    """
    spec = from_plain(plain)
    assert isinstance(spec, VMSpec)
    # Wherever its disks lie.
    disks = tuple(replace(disk, path=Path(f"/disk{index}")) for index, disk in enumerate(spec.disks))
    argv = build_argv(replace(spec, name="any", disks=disks), find_instance_files(Path("/"), "any"))
    return f"{zlib.crc32(json.dumps(argv).encode()):08x}"


async def find_ground(plain: Mapping[str, Any], own: Path) -> dict[str, str]:
    """The files that a VM is read from, images below its disks among them, but for those in the directory `own`.

    Args:
        plain: Its specification as plain data.

    Raises:
        HostError: qemu-img does not tell what a disk lies over.
    """
    from control.vm.provision import list_chain  # what follows is not made often, and loads an event loop

    spec = from_plain(plain)
    assert isinstance(spec, VMSpec)
    boot = spec.boot
    paths = [boot.kernel, boot.initrd] if isinstance(boot, DirectBoot) else []
    paths += [boot.iso] if isinstance(boot, IsoBoot) else []
    paths.append(spec.ovmf)
    for disk in spec.disks:
        paths += await list_chain(disk.path)
    outside = dict.fromkeys(path for path in paths if path is not None and own not in path.parents)
    return {str(path): _look_at_file(path) for path in outside}


def _look_at_file(path: Path) -> str:
    """Empty when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"


def find_directory(runtime: Path, name: str) -> Path:
    """Where the template `name` lies, or would. Raises ConfigError for what can be no name."""
    return _find_home(runtime) / check_instance_name(name)


def find_frozen(runtime: Path, name: str) -> Frozen:
    """What the clones of the template `name` go on from."""
    directory = find_directory(runtime, name)
    return Frozen(directory / "memory", directory / "state")


def read_template(runtime: Path, name: str) -> Template:
    """Raises StateError when there is none, or it is damaged."""
    directory = find_directory(runtime, name)
    try:
        return Template(**json.loads((directory / "template.json").read_bytes()))
    except FileNotFoundError:
        there = ", ".join(each.name for each in list_templates(runtime))
        raise StateError(
            f"there is no template {name}",
            state=there or "no template",
            required=(name,),
            hint=f"there are: {there}" if there else "make one of a running VM: unhinged template NAME",
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise StateError(
            f"the template {name} is damaged: {error}",
            state="damaged",
            required=("whole",),
            hint=f"make it again, or remove it: unhinged template --delete {name}",
        ) from error


def list_templates(runtime: Path) -> list[Template]:
    """Those that are whole, by name; one that is not is logged."""
    found = []
    for note in sorted(_find_home(runtime).glob("[!.]*/template.json")):
        try:
            found.append(read_template(runtime, note.parent.name))
        except StateError as error:
            LOG.warning("%s", error)
    return found


@contextlib.contextmanager
def hold_templates(runtime: Path, *, alone: bool) -> Iterator[None]:
    """See to it, during the body, that no template is replaced or deleted; with `alone`, that none is cloned either.

    Raises:
        HostError: The directory of the templates cannot be written.
    """
    home = _find_home(runtime)
    with _locked(home, home / ".lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def hold_name(runtime: Path, name: str) -> Iterator[None]:
    """See to it, during the body, that nobody else who asks for this makes a template `name`. Raises HostError."""
    home = _find_home(runtime)
    with _locked(home, home / f".{check_instance_name(name)}.lock", fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def open_draft(runtime: Path, name: str) -> Iterator[Path]:
    """A directory for a template in the making, during the body; what remains of it then is removed.

    Raises:
        HostError: It cannot be made.
    """
    home = _find_home(runtime)
    _remove_leftovers(home)
    draft = home / f".{name}.{os.getpid()}.draft"
    with _locked(draft, draft / ".lock", fcntl.LOCK_EX):
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def publish(runtime: Path, draft: Path, template: Template) -> None:
    """Give a finished draft its name, in place of an older template of that name.

    Raises:
        StateError: The older one has clones; it stays.
        HostError: The disk does not take it; the older one stays.
    """
    target = find_directory(runtime, template.name)
    plain = json.dumps(asdict(template), indent=1).replace(json.dumps(str(draft))[1:-1], json.dumps(str(target))[1:-1])
    write_atomically(draft / "template.json", plain.encode())
    with hold_templates(runtime, alone=True):
        delete(runtime, template.name)
        draft.rename(target)


def delete(runtime: Path, name: str) -> None:
    """Remove a template, if there is one; the templates are held alone. Raises StateError when it has clones."""
    target = find_directory(runtime, name)
    if not target.exists():
        return
    if clones := list_clones(runtime, name):
        raise StateError(
            f"the template {name} has clones, which need it: {', '.join(clones[:10])}",
            state="in use",
            required=("no clones",),
            hint=f"unhinged discard {' '.join(clones[:10])}",
        )
    # Without its note it is no template any more, and the next draft clears the rest away should we be killed here.
    grave = target.with_name(f".{name}.{os.getpid()}.old.draft")
    target.rename(grave)
    shutil.rmtree(grave)


def mark_used(runtime: Path, name: str) -> None:
    """Remember that a template is wanted now; nothing when it has just been removed."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(find_directory(runtime, name) / "template.json")


def make_room(runtime: Path, budget_bytes: int, keep: str) -> list[str]:
    """Remove the templates that have not been used for longest, until the others take no more than the budget.

    Args:
        keep: One that stays, as those do that have clones.

    Returns:
        The names of those that are gone.

    Raises:
        HostError: The directory of the templates cannot be written.
    """
    left, gone = budget_bytes, []
    for template in sorted(list_templates(runtime), key=lambda each: _last_use(runtime, each), reverse=True):
        left -= template.bytes
        if left < 0 and template.name != keep:
            with contextlib.suppress(StateError), hold_templates(runtime, alone=True):
                delete(runtime, template.name)
                gone.append(template.name)
    return gone


def _last_use(runtime: Path, template: Template) -> float:
    with contextlib.suppress(OSError):
        return (find_directory(runtime, template.name) / "template.json").stat().st_mtime
    return 0.0


def _find_home(runtime: Path) -> Path:
    return runtime / "templates"


@contextlib.contextmanager
def _locked(directory: Path, path: Path, how: int) -> Iterator[None]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{directory} cannot be written: {error.strerror}", hint="make room there") from error
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(home: Path) -> None:
    """Remove drafts whose makers were killed: the kernel has dropped their locks."""
    for draft in home.glob(".*.draft"):
        with contextlib.suppress(OSError), (draft / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(draft, ignore_errors=True)


# -- making one --------------------------------------------------------------------------------------------------------


async def freeze(vm: VM, directory: Path) -> dict[str, Any]:
    """Write a running VM down in `directory`; it stands still meanwhile, and goes on as before.

    Returns:
        `qemu`, `spec`: as `Template` has them, but for the disks, which lie in `directory`. `seconds` that it stood
        still.

    Raises:
        StateError: It is no VM that can be cloned, or is not ready to be.
        WaitTimeout: It does not get its disks written; it goes on.
        MonitorError, HostError: It could not be written; the VM goes on.
    """
    from control.vm.freeze import standing_still, write_state
    from control.vm.snapshots import explain_refusal, query_version

    spec = from_plain(vm.record.spec)
    if not isinstance(spec, VMSpec):
        raise StateError(
            f"{vm.name} cannot be cloned: its command line is your own",
            state="cmd",
            required=("declared",),
            hint="declare it without cmd",
        )
    if vm.files.clone_note.exists():
        raise StateError(
            f"{vm.name} is a clone itself: what it has on its disks lies over its template's",
            state="a clone",
            required=("no clone",),
            hint="make the template of a VM of the configuration",
        )
    if taps := [network for network in spec.networks if network.kind == "tap"]:
        raise StateError(
            f"{vm.name} cannot be cloned: its clones would all want the interface {taps[0].name}",
            state=str(taps[0]),
            required=("another network",),
            hint='declare net = "bridge:NAME", "lan:NAME" or "user"',
        )
    if not vm.agent_is_ready:
        raise StateError(
            f"the agent of {vm.name} does not answer: a clone of it could not be told who it is",
            state="no agent",
            required=("agent",),
            hint=f"unhinged wait {vm.name} --for agent",
        )
    if vm.agent.is_busy:
        raise StateError(
            f"something is under way in {vm.name} through its agent, which each clone would be in the middle of",
            state="busy",
            required=("idle",),
            hint="wait for its end, or end it",
        )
    await write_back(vm)
    await _prepare_agent(vm)
    started = time.monotonic()
    async with standing_still(vm):
        try:
            with vm.timeline.step("memory and devices are written down"):
                await write_state(vm, directory / _STREAM, with_memory=True)
        except MonitorError as error:
            raise explain_refusal(vm, error) from error
        # QEMU has let go of its disks until the guest runs again.
        with vm.timeline.step("its disks are copied"):
            disks = await _copy_all(spec, directory)
    seconds = round(time.monotonic() - started, 3)
    vm.timeline.note("step", "it stands still for a template", began=started)
    vm.mark("frozen")
    plain = dict(vm.record.spec)
    plain["disks"] = [{**old, "path": str(new)} for old, new in zip(plain["disks"], disks, strict=True)]
    return {"qemu": await query_version(vm), "spec": plain, "seconds": seconds}


async def write_back(vm: VM) -> None:
    """Have the guest write to its disks what it has not yet: each clone would do so, when it has just woken.

    Raises:
        WaitTimeout: It takes too long.
    """
    # A guest that has no such program, or lets nobody run one, is frozen as it is.
    with contextlib.suppress(AgentCallError):
        await vm.guest.run(["sync"], check=False, timeout_s=WRITE_BACK_S)


async def _prepare_agent(vm: VM) -> None:
    """Have what a clone is woken by in the guest's memory, so that it need not be loaded by each. Raises StateError."""
    from control.agent.client import NO_SUCH_METHOD

    try:
        await vm.guest.identity()
    except AgentCallError as error:
        if error.code != NO_SUCH_METHOD:
            raise
        raise StateError(
            f"the agent of {vm.name} is of an earlier version: a clone of it could not be told who it is",
            state="an earlier agent",
            required=("the agent of this version",),
            hint=f"build the image again, or install the new agent and: unhinged restart {vm.name}",
        ) from error


async def copy_disks(vm: VM, directory: Path) -> list[Path]:
    """Copy what a declared VM's disks hold at one moment; it stands still meanwhile, and goes on as before.

    Returns:
        The copies, in `directory`; of a disk that is only read, the disk itself.

    Raises:
        MonitorError, HostError: It cannot be done; the VM goes on.
    """
    from control.vm.freeze import standing_still

    spec = from_plain(vm.record.spec)
    assert isinstance(spec, VMSpec)
    async with standing_still(vm):  # QEMU has written down what it holds of them
        return await _copy_all(spec, directory)


async def _copy_all(spec: VMSpec, directory: Path) -> list[Path]:
    return [await copy_disk(disk, directory / f"disk{index}") for index, disk in enumerate(spec.disks)]


async def copy_disk(disk: Disk, target: Path) -> Path:
    """Copy a disk as it is, holes and all; where the file system can, nothing is copied until it changes."""
    from control.process.run import run

    if disk.read_only:
        return disk.path
    argv = ["cp", "--reflink=auto", "--sparse=always", "--", str(disk.path), str(target)]
    done = await run(argv, timeout_s=COPY_TIMEOUT_S)
    if done.return_code != 0:
        words = done.stderr.decode("utf-8", "replace").strip()
        raise HostError(f"the disk {disk.path} cannot be copied: {words}", hint="make room there")
    return target


async def settle(name: str, vm_name: str, draft: Path, frozen: Mapping[str, Any]) -> Template:
    """Make a template of what `freeze` has written: its memory becomes a file that clones can map.

    Raises:
        LaunchError, MonitorError, HostError: It cannot be made; the draft is of no use.
        StateError: This host's QEMU is not the one that the VM runs under.
    """
    from control.vm.freeze import take_state, write_state
    from control.vm.service import Notes
    from control.vm.snapshots import query_version
    from control.vm.vm import open_vm

    stream, memory, state = draft / _STREAM, draft / "memory", draft / "state"
    with open_maker(draft, name) as files:
        spec = from_plain(frozen["spec"])
        assert isinstance(spec, VMSpec)
        disks = await make_overlays(spec, files.directory)
        # Without forwards: the ports of the host are the VM's, which runs.
        spec = replace(spec, name=name, disks=disks, forwards=(), frozen=Frozen(memory, stream, is_shared=True))
        async with open_vm(spec, files, Notes(), judge_boot=False) as vm:
            if (version := await query_version(vm)) != frozen["qemu"]:
                raise StateError(
                    f"{vm_name} runs under QEMU {frozen['qemu']}, and this host has {version} now",
                    state=frozen["qemu"],
                    required=(version,),
                    hint=f"unhinged restart {vm_name}",
                )
            await take_state(vm, stream, with_memory=True)
            await write_state(vm, state, with_memory=False)
            await vm.kill()
    stream.unlink()
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    ground = await find_ground(frozen["spec"], draft)
    plain = dict(frozen["spec"])
    return Template(name, vm_name, made_at, frozen["qemu"], measure(draft), plain, ground, digest_machine(plain))


@contextlib.contextmanager
def open_maker(draft: Path, name: str) -> Iterator[InstanceFiles]:
    """Files for the VM that lays the memory down, during the body; what it leaves is removed. Raises HostError."""
    files = open_instance_files(draft, name)
    try:
        yield files
    finally:
        discard(files)


def measure(draft: Path) -> int:
    """What a template takes on this host's disk, in bytes."""
    return sum(path.stat().st_blocks * 512 for path in draft.iterdir())
