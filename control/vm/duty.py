"""A supervisor from its first moment (floor 3): it loads, takes its job, starts QEMU, and watches it; see `supervise`.

The job comes over the socket that is stdin, perhaps only after a while: whoever started us works it out while we load.
With it come the instance's lock, which is held by keeping its descriptor open (whoever started us has taken it, and
there is no moment at which nobody holds it), and the log. A socket that ends without a job means that there is none.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from control.errors import ControlError
from control.log import LOG, write_log
from control.paths import InstanceFiles
from control.process.handle import read_start_ticks
from control.spec.plain import from_plain
from control.spec.vm_spec import VMSpec
from control.vm.birth import Newborn, start_machine
from control.vm.instance import note_failure
from control.vm.report import Report

_REST = (
    "asyncio",
    "control.wire.schema",
    "control.agent.client",
    "control.monitor.monitor",
    "control.vm.vm",
    "control.vm.service",
    "control.vm.supervisor",
)
"""What is needed once QEMU has been started; each loads little more than those before it."""

_CLONES = ("control.vm.clones", "control.vm.freeze", "control.vm.snapshots")
"""What one needs beside that whose VM is a clone."""

_GUESTS = ("control.agent.guest",)
"""What one needs whose guest is worked with; a clone loads it while its guest wakes."""

_PIECE_BYTES = 65536


def main() -> int:
    """Be a supervisor to the end, and return the exit code."""
    peer = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _load(peer)
    job = _take_job(peer)
    if job is None:
        return 0
    report = Report(peer.detach())
    try:
        _do(job, report)
    except ControlError as error:
        report.tell_failure(error)
        return error.exit_code
    except Exception as error:
        LOG.exception("the supervisor failed")
        report.tell_failure(ControlError(f"an error of ours: {error!r}", hint="please report it"))
        return 1
    return 0


def load_all() -> None:
    """Load all that a supervisor needs."""
    _load_all_of(*_REST, *_CLONES, *_GUESTS)


def _load_all_of(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)


def _load(peer: socket.socket) -> None:
    """Load what will be needed, until the job is there: QEMU can set itself up while the rest is loaded."""
    for module in _REST:
        if select.select([peer], [], [], 0)[0]:
            return
        importlib.import_module(module)


def _take_job(peer: socket.socket) -> dict[str, Any] | None:
    """Wait for the job, and settle where it is done; None when there is none."""
    word, descriptors, _, _ = socket.recv_fds(peer, _PIECE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    while piece := peer.recv(_PIECE_BYTES):
        word += piece
    if not word.endswith(b"\n"):  # whoever started us had nothing to do, or was killed while they said it
        return None
    _lock, log = descriptors  # the lock's only has to stay open
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    write_log()
    job: dict[str, Any] = json.loads(word)
    os.chdir(job["directory"])
    return job


def _do(job: dict[str, Any], report: Report) -> None:
    """See the job through. Raises what kept its VM from starting."""
    files = InstanceFiles(Path(job["directory"]), Path(job["sockets"]))
    with ExitStack() as stack:
        newborn = None if job["adopt"] else _start(job, files, stack)
        if newborn is not None and isinstance(newborn.spec, VMSpec) and newborn.spec.frozen is not None:
            _load_all_of(*_REST, *_CLONES)  # QEMU sets itself up meanwhile
        import asyncio

        from control.vm.supervisor import supervise

        try:
            asyncio.run(supervise(files, job, report, newborn))
        finally:
            if (owner := job.get("owner")) is not None and read_start_ticks(owner["pid"]) != owner["start_ticks"]:
                from control.vm.clones import discard  # nobody else is left to do it

                discard(files)


def _start(job: dict[str, Any], files: InstanceFiles, stack: ExitStack) -> Newborn:
    ports, restart, waits = job["ports"], job["restart"], job["waits"]
    try:
        starting = start_machine(from_plain(job["spec"]), files, ports=ports, restart=restart, waits=waits)
        return stack.enter_context(starting)
    except ControlError as error:
        note_failure(files, error)
        raise
