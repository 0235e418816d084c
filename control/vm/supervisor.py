"""What stands behind one VM of a fleet (floor 3): it owns the QEMU, answers on `control.socket`, starts it again.

Run by `supervise.py` with the instance's lock already held. Killed outright, it leaves QEMU running; the next command
starts another, which adopts the VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from control.errors import ControlError, HostError
from control.log import LOG
from control.paths import InstanceFiles
from control.process.handle import find_process
from control.spec.plain import AnySpec, from_plain
from control.spec.vm_spec import VMSpec
from control.vm.birth import Newborn, start_machine
from control.vm.holder import is_held
from control.vm.instance import Record, find_running, note_failure, note_restart, read_record
from control.vm.report import Report
from control.vm.rpc import serve
from control.vm.service import Notes, Service
from control.vm.states import State
from control.vm.vm import VM, Ending, adopt_vm, open_newborn

BACKOFF_FIRST_S, BACKOFF_MAX_S = 1.0, 60.0
CALM_S = 60.0
"""A VM that has run for so long before it failed is started again after the first pause, not the next longer one."""


class Supervisor:
    """Sees one instance through all its runs."""

    def __init__(self, files: InstanceFiles, job: dict[str, Any], report: Report, newborn: Newborn | None) -> None:
        self._files = files
        self._name: str = job["name"]
        self._notes = Notes()
        self._service = Service(self._name, files, self._notes)
        self._report = report
        self._newborn = newborn
        self._leave = asyncio.Event()
        self._adopts: bool = job["adopt"]
        self._spec: AnySpec | None = _when_started_again(from_plain(job["spec"])) if job.get("spec") else None
        self._ports: dict[str, int] = job.get("ports", {})
        self._restart: str = job.get("restart", "no")
        self._waits: bool = job.get("waits", False)
        self._job = job
        self._watching: asyncio.Task[None] | None = None
        self._service.on_keep = self._keep

    async def run(self) -> None:
        """Serve until the VM has ended for good, or we are told to go. Raises what kept it from starting."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._leave.set)
        if (owner := self._job.get("owner")) is not None:
            self._watching = loop.create_task(self._end_with_owner(owner))
        async with serve(self._files.control_socket, self._service.methods):
            try:
                await self._run_again_and_again()
            finally:
                self._service.over.set()
                if self._watching is not None:
                    self._watching.cancel()

    def _keep(self) -> None:
        """Go on also when the process has ended that the VM was for; `control.vm.duty` looks at the job as well."""
        self._job.pop("owner", None)
        if self._watching is not None:
            self._watching.cancel()

    async def _end_with_owner(self, owner: Mapping[str, int]) -> None:
        """End the VM once the process is gone that it is for, in whatever way that ended."""
        process = find_process(owner["pid"], owner["start_ticks"])
        if process is not None:
            with process:
                await process.wait()
        self._service.given_up.set()
        if self._service.vm is not None:
            await self._service.vm.kill()

    async def _run_again_and_again(self) -> None:
        pause_s = BACKOFF_FIRST_S
        while True:
            started = time.monotonic()
            ending = await self._run_once()
            if ending is None or not self._is_wanted_again(ending):
                return
            if time.monotonic() - started > CALM_S:
                pause_s = BACKOFF_FIRST_S
            if ending.error is None:
                LOG.info("%s", ending.how)
            with note_restart(self._files, pause_s):
                if not await self._pause(pause_s):
                    return
            pause_s = min(pause_s * 2, BACKOFF_MAX_S)
            self._service.restarts += 1
            self._adopts = False

    async def _run_once(self) -> Ending | None:
        """One life of the VM; None when it runs on without us."""
        try:
            async with self._open() as vm:
                self._service.vm = vm
                self._report.tell_success()
                if self._service.given_up.is_set():  # somebody asked for its end while it was starting
                    await vm.stop(gently=False)
                ending = await self._see_through(vm)
                if ending is None:
                    vm.detach()
                    return None
        except ControlError as error:
            note_failure(self._files, error)
            if self._report.tell_failure(error) or self._restart == "no":
                raise
            ending = Ending("it could not be started", error)
        finally:
            self._service.vm = None
        if ending.error is not None:
            note_failure(self._files, ending.error)
        return ending

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[VM]:
        """Start the VM, or take over the one that runs, and let its guest run."""
        if not self._adopts:
            with contextlib.ExitStack() as stack:
                newborn, self._newborn = self._newborn, None
                if newborn is None:
                    newborn = stack.enter_context(self._start_again())
                async with open_newborn(
                    newborn, self._files, self._notes, for_person=True, outlives_us=self._job.get("owner") is None
                ) as vm:
                    spec = newborn.spec
                    if isinstance(spec, VMSpec) and spec.frozen is not None:
                        from control.vm.clones import wake  # only a clone pays for it

                        await wake(vm, spec.frozen, reachable=any(network.kind != "none" for network in spec.networks))
                    elif not self._waits:
                        await vm.resume()
                    yield vm
            return
        record = read_record(self._files)
        process = find_running(self._files, record)
        if record is None or process is None:
            raise HostError(f"{self._name} has just ended", hint=f"unhinged start {self._name}")
        self._take_record(record)
        async with adopt_vm(record, self._files, process, self._notes, for_person=True) as vm:
            try:
                await self._catch_up(vm)
            except ControlError:
                vm.detach()  # it runs; that we cannot reach it is no reason to end it
                raise
            yield vm

    def _start_again(self) -> contextlib.AbstractContextManager[Newborn]:
        if self._spec is None:
            raise HostError(f"{self._name} cannot be started again: nothing is kept of what it is")
        return start_machine(self._spec, self._files, ports=self._ports, restart=self._restart, waits=self._waits)

    def _take_record(self, record: Record) -> None:
        self._spec = _when_started_again(from_plain(record.spec)) if record.spec.get("kind") else None
        self._ports = {key: port for key, port in record.ports.items() if isinstance(port, int)}
        self._restart = record.restart
        self._waits = record.waits

    async def _catch_up(self, vm: VM) -> None:
        """Finish what the supervisor before us had begun."""
        if not is_held(vm.record.spec):
            from control.vm.freeze import end_writing  # few take a machine over

            await end_writing(vm)
        runstate = await vm.query_runstate()
        if runstate == "prelaunch":
            if not self._waits:
                await vm.resume()
        elif vm.state is State.STOPPING:
            await vm.stop()
        elif runstate == "postmigrate":
            await vm.resume()  # it was killed while a template or a snapshot was made
        else:
            await vm.take_runstate(runstate)

    async def _see_through(self, vm: VM) -> Ending | None:
        leaving = asyncio.ensure_future(self._leave.wait())
        try:
            await asyncio.wait((vm.ended, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        return vm.ended.result() if vm.ended.done() else None

    def _is_wanted_again(self, ending: Ending) -> bool:
        if self._service.given_up.is_set() or self._leave.is_set():
            return False
        return self._restart == "always" or (self._restart == "on-failure" and ending.error is not None)

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next start; False when nobody wants it any more."""
        tasks = [asyncio.ensure_future(event.wait()) for event in (self._leave, self._service.given_up)]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return not (self._leave.is_set() or self._service.given_up.is_set())


def _when_started_again(spec: AnySpec) -> AnySpec:
    """A clone goes on from its template once; after that it boots, from its disks."""
    return replace(spec, frozen=None) if isinstance(spec, VMSpec) else spec


async def supervise(files: InstanceFiles, job: dict[str, Any], report: Report, newborn: Newborn | None) -> None:
    """See the VM of `job` through; with `newborn`, its QEMU runs already. Raises what kept it from starting."""
    await Supervisor(files, job, report, newborn).run()
