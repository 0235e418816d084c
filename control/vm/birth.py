"""Starts the QEMU of a VM, or the holder of another machine, and records it (floor 3).

Quick to import: a supervisor starts QEMU first, and loads the rest of itself while QEMU sets itself up.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from control.argv import build_argv
from control.errors import HostError
from control.paths import InstanceFiles
from control.process.handle import Keeper, ProcessHandle, start_keeper, start_process
from control.spec.held import HeldSpec
from control.spec.plain import AnySpec, to_plain
from control.spec.vm_spec import RawSpec, Spec
from control.timeline.writer import begin_timeline
from control.vm.instance import Record, read_host_boot_id, remove_stale_files, write_atomically, write_record
from control.vm.states import State

if TYPE_CHECKING:
    from control.process.limits import Group


@dataclass(frozen=True)
class Newborn:
    """A machine that has just been started, and which nobody is connected to; the CPUs of a VM have not run yet.

    Attributes:
        keeper: Ends it should this process be killed.
    """

    spec: AnySpec
    record: Record
    process: ProcessHandle
    keeper: Keeper


@contextlib.contextmanager
def start_machine(
    spec: AnySpec, files: InstanceFiles, *, ports: Mapping[str, int], restart: str = "no", waits: bool = False
) -> Iterator[Newborn]:
    """Start the QEMU or the holder of `spec`, and end it on leaving, unless its handle was released.

    The caller holds the instance's lock.

    Args:
        ports, restart, waits: As they are recorded.

    Raises:
        HostError: It cannot be started, or the instance's directory not written; nothing of it runs.
    """
    remove_stale_files(files)
    lay_consoles(files)
    if isinstance(spec, HeldSpec):
        lay_holder(spec, files)
    if not isinstance(spec, HeldSpec):
        begin_timeline(files.timeline, files.timeline_before, _describe_start(spec))
    argv = build_argv(spec, files)
    write_atomically(files.argv, json.dumps(argv, indent=1).encode())
    with start_keeper(files.pid, files.logs) as keeper:
        process, group = _start_process(spec, files, argv)
        with process:
            record = build_record(
                spec, files, process.pid, process.start_ticks, ports=ports, restart=restart, waits=waits
            )
            if group is not None:
                record = replace(record, group=group.to_plain())
            try:
                write_record(files, record)
            except HostError:
                process.close()
                if group is not None:
                    group.remove()
                raise
            yield Newborn(spec, record, process, keeper)


def _describe_start(spec: Spec) -> dict[str, Any]:
    frozen = getattr(spec, "frozen", None)
    what = "a clone" if frozen is not None and frozen.state is not None else "a boot"
    return {"what": what, "accelerator": spec.accelerator or ""}


def lay_consoles(files: InstanceFiles) -> None:
    """Make the files that consoles are. The log is a new one: who still reads that of the last run may read on.

    Raises:
        HostError: One cannot be made.
    """
    for path in (files.shell_log, files.times_of(files.shell_log)):
        path.unlink(missing_ok=True)
    for log, typed, said in files.consoles:
        try:
            for path in (log, typed, said, files.times_of(log)):
                path.unlink(missing_ok=True)
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            said.symlink_to(log.name)
            os.mkfifo(typed, 0o600)
        except OSError as error:
            raise HostError(f"{log} cannot be made: {error.strerror}", hint="make room on that disk") from error


def lay_holder(spec: HeldSpec, files: InstanceFiles) -> None:
    """Write down what a holder is to hold, and make the way on which it is told what to do. Raises HostError."""
    write_atomically(files.holder_job, json.dumps(to_plain(spec)).encode())
    try:
        os.mkfifo(files.holder_orders, 0o600)
    except OSError as error:
        raise HostError(f"{files.holder_orders} cannot be made: {error.strerror}", hint="make room there") from error


def build_record(
    spec: AnySpec,
    files: InstanceFiles,
    pid: int,
    start_ticks: int,
    *,
    ports: Mapping[str, int],
    restart: str = "no",
    waits: bool = False,
) -> Record:
    """Say of a machine that has just been started from `spec` all that is needed to find and adopt it."""
    return Record(
        name=spec.name,
        state=State.STARTING.value,
        pid=pid,
        start_ticks=start_ticks,
        host_boot_id=read_host_boot_id(),
        accelerator=spec.accelerator or "",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        agent=spec.agent,
        bulk=spec.agent,
        hvc0=spec.hvc0,
        share=str(spec.share.path) if spec.share and spec.share.has_mailboxes else "",
        sockets=str(files.sockets),
        spec=to_plain(spec),
        ports=dict(ports),
        restart=restart,
        waits=waits,
    )


def _start_process(spec: AnySpec, files: InstanceFiles, argv: Sequence[str]) -> tuple[ProcessHandle, Group | None]:
    """Start it, within its limits when it has some. Raises HostError; nothing is left."""
    cwd = spec.directory if isinstance(spec, RawSpec) else files.directory
    if not spec.limits:
        return start_process(argv, output=files.qemu_output, errors=files.qemu_log, cwd=cwd), None
    import hashlib

    from control.process.limits import build_file_prefix, make_group  # few VMs have some

    argv = [*build_file_prefix(spec.limits), *argv]
    if not spec.limits.needs_group:
        return start_process(argv, output=files.qemu_output, errors=files.qemu_log, cwd=cwd), None
    # The digest tells it from an instance of that name in another directory.
    digest = hashlib.sha256(os.fsencode(files.directory.absolute())).hexdigest()[:16]
    group = make_group(f"unhinged-{digest}-{spec.name}", spec.limits)
    words = [*group.build_prefix(spec.limits), *argv]
    try:
        return start_process(words, output=files.qemu_output, errors=files.qemu_log, cwd=cwd), group
    except HostError:
        group.remove()
        raise
