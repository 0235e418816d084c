"""One VM in the foreground (floor 6): from options to exit code, with whatever view the launcher has of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from control.accel.choice import AcceleratorChoice, remember_kvm_failure
from control.errors import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_OK,
    BootError,
    ControlError,
    LaunchError,
    StateError,
    WaitTimeout,
)
from control.host import probe_qemu_version
from control.launch.options import LaunchOptions
from control.launch.prepare import Prepared, prepare
from control.launch.until import UntilMatcher
from control.paths import InstanceFiles, cache_directory, check_instance_name, find_instance_files, runtime_directory
from control.process.run import run
from control.units import format_duration
from control.vm.instance import claim_instance, find_running, lock_instance, read_record
from control.vm.listener import Carrier, Listener
from control.vm.qemu_words import KVM_BROKEN, explain_words
from control.vm.service import Notes, host
from control.vm.vm import VM, adopt_vm, open_vm
from control.wire import Message

DEFAULT_NAME = "main"


@dataclass(frozen=True)
class Outcome:
    """How a foreground run ended.

    Attributes:
        exit_code: The launcher's.
        how: In words, for the summary.
        error: To be shown, when there is one.
    """

    exit_code: int
    how: str
    error: ControlError | None = None


class View(Listener):
    """What a launcher shows of its VM. This one shows nothing; launchers override what they show."""

    @property
    def for_person(self) -> bool:
        """Whether somebody sits at the guest's console, who may answer its prompts."""
        return False

    async def on_console(self, chunk: bytes) -> None: ...

    async def on_text(self, text: bytes) -> None: ...

    async def on_message(self, message: Message, carrier: Carrier) -> None: ...

    def on_phase(self, phase: str, seconds: float) -> None: ...

    def on_note(self, note: str) -> None: ...

    def on_accelerator(self, choice: AcceleratorChoice) -> None: ...

    async def converse(self, vm: VM) -> Outcome | None:
        """Run the host's side of the conversation; returning an outcome ends the run, None leaves it to the guest."""
        return None


class _Watcher(Listener):
    """Passes everything on to the launcher's view and to other terminals, and looks for `--until` on the way."""

    def __init__(self, view: View, until: UntilMatcher | None, matched: asyncio.Event) -> None:
        self.notes = Notes()
        self._view = view
        self._until = until
        self._matched = matched

    async def on_console(self, chunk: bytes) -> None:
        await self._view.on_console(chunk)
        if self._until is not None and self._until.feed(chunk):
            self._matched.set()

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        await self._view.on_message(message, carrier)
        # Those on the console have been looked at as its bytes.
        if self._until is not None and carrier != "console" and self._until.matches_line(message.text.encode()):
            self._matched.set()

    async def on_text(self, text: bytes) -> None:
        await self._view.on_text(text)

    def on_phase(self, phase: str, seconds: float) -> None:
        self._view.on_phase(phase, seconds)

    def on_note(self, note: str) -> None:
        self.notes.on_note(note)
        self._view.on_note(note)


async def run_session(options: LaunchOptions, view: View, *, with_agent: bool) -> Outcome:
    """Boot what `options` ask for, show it through `view`, end it, and say how it went. Never raises ControlError."""
    with _catch_signals() as interrupts:
        try:
            if options.attach:
                return await _run_attached(options, view, interrupts)
            return await _run_new(options, view, interrupts, with_agent=with_agent)
        except ControlError as error:
            return Outcome(error.exit_code, "failed", error)


async def _run_new(options: LaunchOptions, view: View, interrupts: _Interrupts, *, with_agent: bool) -> Outcome:
    runtime = runtime_directory(Path.cwd())
    name = options.name or DEFAULT_NAME
    with claim_instance(runtime, name, or_next=not options.name) as files:
        if files.directory.name != f"vm.{name}":
            view.on_note(f"{name} is running already; this VM is called {files.directory.name.removeprefix('vm.')}")
        prepared = await prepare(options, files, with_agent=with_agent)
        view.on_accelerator(prepared.accelerator)
        outcome = await _run_prepared(prepared, options, files, view, interrupts)
        if not _died_of_kvm(prepared, options, outcome):
            return outcome
        view.on_note(f"{outcome.error}; starting again with tcg (software emulation)")
        remember_kvm_failure(Path(prepared.spec.qemu), cache_directory(), "it failed in the middle of a guest earlier")
        fallback = await prepare(replace(options, accel="tcg"), files, with_agent=with_agent)
        return await _run_prepared(fallback, options, files, view, interrupts)


def _died_of_kvm(prepared: Prepared, options: LaunchOptions, outcome: Outcome) -> bool:
    """Whether KVM, chosen by ourselves, failed a guest that had not come up yet."""
    if prepared.spec.accelerator != "kvm" or options.accel != "auto" or outcome.how == "failed after it was up":
        return False
    error = outcome.error
    if isinstance(error, LaunchError):
        return explain_words(error.output_tail) is KVM_BROKEN
    return isinstance(error, BootError) and error.code == "accelerator-dead"


async def _run_prepared(
    prepared: Prepared, options: LaunchOptions, files: InstanceFiles, view: View, interrupts: _Interrupts
) -> Outcome:
    matched = asyncio.Event()
    watcher = _Watcher(view, UntilMatcher(options.until) if options.until else None, matched)
    try:
        async with (
            host(prepared.spec.name, files, watcher.notes) as service,
            open_vm(prepared.spec, files, watcher, for_person=view.for_person, judge_boot=options.boot_watch) as vm,
        ):
            service.vm = vm
            await vm.resume()
            return await _see_through(vm, options, view, matched, interrupts)
    except LaunchError as error:
        # Asked only now, because it takes as long as a QEMU start: is it merely too old for its command line?
        await probe_qemu_version(Path(prepared.spec.qemu), run)
        return Outcome(error.exit_code, "failed", error)


async def _run_attached(options: LaunchOptions, view: View, interrupts: _Interrupts) -> Outcome:
    name = check_instance_name(options.name or DEFAULT_NAME)
    files = find_instance_files(runtime_directory(Path.cwd()), name)
    with contextlib.ExitStack() as stack:
        if files.directory.is_dir() and not stack.enter_context(lock_instance(files)):
            raise StateError(
                f"another launcher shows the VM {name!r}",
                state="RUNNING",
                required=("detached",),
                hint="detach there first: Ctrl-], detach",
            )
        return await _run_adopted(name, files, options, view, interrupts)


async def _run_adopted(
    name: str, files: InstanceFiles, options: LaunchOptions, view: View, interrupts: _Interrupts
) -> Outcome:
    record = read_record(files)
    if record is not None and record.sockets:
        files = replace(files, sockets=Path(record.sockets))
    process = find_running(files, record)
    if record is None or process is None:
        raise StateError(
            f"there is no running VM called {name!r} here",
            state="STOPPED",
            required=("RUNNING",),
            hint="start one: make start",
        )
    matched = asyncio.Event()
    watcher = _Watcher(view, UntilMatcher(options.until) if options.until else None, matched)
    async with (
        host(name, files, watcher.notes) as service,
        adopt_vm(record, files, process, watcher, for_person=True) as vm,
    ):
        service.vm = vm
        return await _see_through(vm, options, view, matched, interrupts)


async def _see_through(
    vm: VM, options: LaunchOptions, view: View, matched: asyncio.Event, interrupts: _Interrupts
) -> Outcome:
    """Wait for the first thing that ends the run, and say what it means."""
    vm.hurry = interrupts.second
    async with _tasks(
        ended=_wait_for_ending(vm),
        matched=matched.wait(),
        interrupted=interrupts.first.wait(),
        talk=_converse(vm, view, with_history=options.attach),
    ) as tasks:
        waiting = set(tasks.values())
        deadline = asyncio.get_running_loop().time() + options.timeout_s if options.timeout_s else None
        while True:
            left = deadline - asyncio.get_running_loop().time() if deadline else None
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if tasks["matched"] in done:
                return Outcome(EXIT_OK, "UNTIL was seen")
            if tasks["interrupted"] in done:
                return Outcome(EXIT_INTERRUPTED, "interrupted")
            if tasks["ended"] in done:
                return _judge_ending(vm, options)
            if tasks["talk"] in done:
                outcome: Outcome | None = tasks["talk"].result()
                if outcome is not None:
                    return outcome
                continue
            return _time_out(vm, options)


async def _converse(vm: VM, view: View, *, with_history: bool) -> Outcome | None:
    if with_history:
        await vm.show_history()
    return await view.converse(vm)


async def _wait_for_ending(vm: VM) -> None:
    await asyncio.wait((vm.ended,))


def _judge_ending(vm: VM, options: LaunchOptions) -> Outcome:
    ending = vm.ended.result()
    if ending.error is not None:
        how = "failed after it was up" if vm.watch.up else "failed"
        return Outcome(ending.error.exit_code, how, ending.error)
    if options.until is not None:
        pattern = options.until.pattern.decode("utf-8", "replace")
        return Outcome(
            EXIT_ERROR,
            ending.how,
            BootError(
                f"{ending.how} before the console showed {pattern!r}",
                code="until-not-seen",
                seen=vm.watch.last_lines(),
                exit_code=EXIT_ERROR,
            ),
        )
    return Outcome(EXIT_OK, ending.how)


def _time_out(vm: VM, options: LaunchOptions) -> Outcome:
    seconds = options.timeout_s or 0.0
    waited_for = (
        f"the console to show {options.until.pattern.decode('utf-8', 'replace')!r}"
        if options.until
        else "the guest to end"
    )
    error = WaitTimeout(
        waited_for,
        seconds,
        last_seen=vm.watch.last_lines() or ("the console showed nothing",),
        hint="give it longer with TIMEOUT=" + (", software emulation is slow" if vm.accelerator == "tcg" else ""),
    )
    return Outcome(error.exit_code, f"timed out after {format_duration(seconds)}", error)


@contextlib.asynccontextmanager
async def _tasks(**work: Coroutine[Any, Any, Any]) -> AsyncIterator[dict[str, asyncio.Task[Any]]]:
    """Run all of `work` beside the body; what still runs when it is left is cancelled and waited for."""
    tasks = {name: asyncio.create_task(coroutine) for name, coroutine in work.items()}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


class _Interrupts:
    """SIGINT, SIGTERM and SIGHUP as events, so that the VM is brought down in order; the second one hurries that."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def count(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def _catch_signals() -> Iterator[_Interrupts]:
    """Catch the signals that end a program for the body."""
    loop = asyncio.get_running_loop()
    interrupts = _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, interrupts.count)
    try:
        yield interrupts
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
