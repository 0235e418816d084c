"""Machines that are made for one purpose and thrown away after it (floor 3): what `unhinged run` and tests stand on.

They and their templates lie in the user's cache, away from every configuration. A template fits one QEMU, one image and
one shape of machine, is made on first use, and is removed when room is needed for others. Blocking.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from control.errors import ControlError, HostError, StateError
from control.host import find_qemu, look_around
from control.paths import IS_CHECKOUT, InstanceFiles, cache_directory, open_instance_files
from control.process.run import run
from control.spec.limits import NO_LIMITS, Limits
from control.spec.locate import Location
from control.spec.network import Network
from control.spec.plain import from_plain, to_plain
from control.spec.vm_spec import Disk, Display, Share, VMSpec
from control.units import MIB
from control.vm import cloning, templates
from control.vm.bootable import BUILTIN, Bootable, find_bootable
from control.vm.clones import make_overlays
from control.vm.collect import collect_exec
from control.vm.hire import hire
from control.vm.instance import read_record, write_atomically
from control.vm.lifetime import wait_for
from control.vm.provision import HOW_TO_BUILD
from control.vm.reach import begin, connect, hold, look

if TYPE_CHECKING:
    from control.process.detach import Detached

BUDGET_BYTES = 4096 * MIB
"""What templates nobody uses may take together; those used last stay."""

BOOT_WAIT_S = 300.0
NAME = "run"

WORK = "/work"
"""Where a guest has the directory that it is given."""

WORK_TAG = "unhinged-work"
"""None that a guest mounts by itself at its start: what is mounted cannot be frozen."""

# msize: fewer, larger messages than the default of 128 KiB makes them.
_MOUNT = (
    """modprobe -q 9p; mkdir -p "$1" && mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,"$2" "$0" "$1" """
)

_FILE = "run.toml"
_FILE_TEXT = b'# Machines that were kept; `unhinged` writes this file.\n[vm.run]\nabstract = true\nimage = "builtin"\n'


@dataclass(frozen=True)
class Shape:
    """What a disposable machine is like.

    Attributes:
        image: As `control.vm.bootable` has it.
        memory_bytes: None for what that image needs.
        networks: By default it reaches nothing.
        share: A directory of the host, which whoever makes the machine mounts in it.
        limits: What its QEMU may use of this host.
    """

    image: str = BUILTIN
    memory_bytes: int | None = None
    cpus: int = 1
    networks: tuple[Network, ...] = ()
    share: Share | None = None
    display: Display = "none"
    limits: Limits = NO_LIMITS


@dataclass(frozen=True)
class Disposable:
    """A machine in which the agent answers; it ends with this process, in whatever way that ends, unless it is kept."""

    location: Location
    name: str

    @property
    def runtime(self) -> Path:
        """The directory of the runtime that its instance belongs to."""
        return self.location.runtime

    @property
    def configuration(self) -> Path:
        """With which `unhinged -c` finds it once it is kept."""
        return self.location.path

    @property
    def files(self) -> InstanceFiles:
        return look(self.runtime, self.name).files

    def mount_share(self, share: Share) -> None:
        """Mount its share at `WORK`. Raises HostError when the guest does not."""
        with connect(self.runtime, self.name) as remote:
            done = collect_exec(
                remote, {"argv": ["sh", "-c", _MOUNT, share.tag, WORK, "ro" if share.read_only else "rw"]}
            )
        if done["exit_code"] != 0:
            raise HostError(
                f"the guest does not mount the directory: {done['stderr'].strip()}",
                hint="its kernel needs 9p and virtio; --sync gives it a copy",
            )

    def keep(self) -> None:
        """Let it go on when this process has ended, until somebody discards it. Raises ControlError when it cannot."""
        with connect(self.runtime, self.name) as remote:
            remote.call("keep")
        write_atomically(self.location.path, _FILE_TEXT)
        self.files.kept_note.touch(mode=0o600)

    def start(self, timeout_s: float = BOOT_WAIT_S) -> None:
        """Boot it again once it has ended, from what is on its disks. Raises StateError when it runs, RemoteError."""
        files = self.files
        record = read_record(files)
        spec = from_plain(record.spec) if record is not None else None
        if not isinstance(spec, VMSpec):
            raise StateError(f"{self.name} has never run", state="DEFINED", required=("STOPPED",))
        _begin(files, self.name, replace(spec, frozen=None), None)
        wait_for(self.runtime, self.name, "agent", timeout_s)

    def discard(self) -> None:
        """End it, and remove all that there is of it; what cannot be removed now, is by the next one that is made."""
        with contextlib.suppress(ControlError):
            cloning.discard(self.location, self.name)


@contextlib.contextmanager
def open_disposable(shape: Shape, *, fresh: bool, say: Callable[[str], None], hired: Detached) -> Iterator[Disposable]:
    """A machine for the body; nothing is left of it, unless it was kept. Otherwise as `make_disposable`."""
    machine = make_disposable(shape, fresh=fresh, say=say, hired=hired)
    try:
        yield machine
    finally:
        if not machine.files.kept_note.exists():
            machine.discard()


def make_disposable(
    shape: Shape, *, fresh: bool = False, say: Callable[[str], None], hired: Detached | None = None
) -> Disposable:
    """Make a machine, and its template, where there is none yet.

    Args:
        fresh: It boots, and is no clone.
        say: Is told what takes a while.
        hired: A supervisor that loads already.

    Raises:
        ConfigError, ImageError, HostError, RemoteError: It cannot be made; nothing is left of it.
    """
    location = _find_location()
    cloning.sweep(location.runtime, NAME)
    if not IS_CHECKOUT:
        _see_to_builtin(say)
    boots = find_bootable(shape.image)
    spec = _build_spec(shape, boots)
    template = None if fresh else _find_template(location, shape.image, boots, spec, say)
    machine = Disposable(location, cloning.name_passing(NAME))
    files = open_instance_files(location.runtime, machine.name)
    files.clone_note.touch(mode=0o600)
    try:
        if template is None:
            _boot(files, machine.name, spec, hired)
        else:
            own = {"networks": spec.networks, "realm": spec.realm, "share": spec.share, "limits": spec.limits}
            cloning.make_clone(location, template, machine.name, hired=hired, with_us=True, own=own)
    except BaseException:
        machine.discard()
        raise
    return machine


def _build_spec(shape: Shape, boots: Bootable) -> VMSpec:
    """A machine of that shape, whose disk is still the image's own. Raises ConfigError, HostError."""
    from control.accel.choice import choose_without_loop

    qemu = find_qemu(look_around())
    choice = choose_without_loop(qemu, run, cache_directory())
    return VMSpec(
        name=NAME,
        boot=boots.boot,
        accelerator=choice.name,
        memory_bytes=shape.memory_bytes or boots.memory_bytes,
        cpus=shape.cpus,
        disks=(boots.disk,) if boots.disk is not None else (),
        share=shape.share,
        networks=shape.networks or (Network("none"),),
        realm=NAME,
        display=shape.display,
        limits=shape.limits,
        qemu=str(qemu),
    )


def _see_to_builtin(say: Callable[[str], None]) -> None:
    """Make the built-in guest where no `make` does; a template stands on it also when it is another's system."""
    from control.vm.provision import get_builtin_file

    with contextlib.suppress(ControlError):
        get_builtin_file("image.json")
        return
    from control.image.ours import make_ours  # once on each host

    say(f"making the built-in guest, once ({HOW_TO_BUILD['builtin']})")
    make_ours("builtin", run, say)


def _find_location() -> Location:
    runtime = cache_directory() / "run"
    return Location(runtime / _FILE, runtime, runtime, Path.home(), is_shared=True)


def _boot(files: InstanceFiles, name: str, spec: VMSpec, hired: Detached | None) -> None:
    disks: tuple[Disk, ...] = ()
    if spec.disks:
        import asyncio

        disks = asyncio.run(make_overlays(spec, files.directory))
    _begin(files, name, replace(spec, name=name, disks=disks), hired)
    wait_for(files.directory.parent, name, "agent", BOOT_WAIT_S)


def _begin(files: InstanceFiles, name: str, spec: VMSpec, hired: Detached | None) -> None:
    hiring = hire(name, files.directory) if hired is None else contextlib.nullcontext(hired)
    with hiring as supervisor, hold(files) as lock:
        if lock is None:
            raise StateError(f"{name} is held by another program", state=name, required=("free",))
        begin(supervisor, files, lock, cloning.build_job(name, spec, {}, with_us=True))


# -- templates ---------------------------------------------------------------------------------------------------------


def _find_template(location: Location, image: str, boots: Bootable, spec: VMSpec, say: Callable[[str], None]) -> str:
    """The name of the template for `spec`, which is made if there is none."""
    spec = _generalize(location, spec)
    name = f"{boots.label}-{_digest(spec, boots.files)}"
    note = templates.find_directory(location.runtime, name) / "template.json"
    if not note.exists():
        import asyncio

        from control.vm.warming import make_template  # once in a while

        with templates.hold_name(location.runtime, name):
            if not note.exists():
                what = "the built-in guest" if image == BUILTIN else image
                say(f"making a template of {what}; from then on it takes a fraction of a second")
                with templates.open_draft(location.runtime, name) as draft:
                    templates.publish(location.runtime, draft, asyncio.run(make_template(name, draft, spec)))
                templates.make_room(location.runtime, BUDGET_BYTES, name)
    return name


def _generalize(location: Location, spec: VMSpec) -> VMSpec:
    """Put what every machine has of its own, and no state depends on, out of a specification."""
    networks = tuple(Network("lan", "any") if network.kind == "lan" else network for network in spec.networks)
    share = spec.share
    if share is not None:
        empty = location.runtime / "share"
        empty.mkdir(mode=0o700, parents=True, exist_ok=True)
        share = Share(empty, share.tag, has_mailboxes=False)
    return replace(spec, networks=networks, share=share, limits=NO_LIMITS)


def _digest(spec: VMSpec, files: tuple[Path, ...]) -> str:
    """All that a state depends on: the machine, what it boots, the QEMU."""
    found = [(path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino) for path in (Path(spec.qemu), *files)]
    plain = to_plain(spec)
    told = json.dumps([plain, templates.digest_machine(plain), found], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
