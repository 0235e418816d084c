"""What a supervisor does for its callers (floor 3): the methods of docs/control.md, each on one living VM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.paths import SCHEMAS, InstanceFiles
from control.vm.instance import read_record
from control.vm.listener import Carrier, Listener
from control.vm.rpc import Call, Method, serve
from control.vm.states import State
from control.vm.vm import VM, build_command
from control.wire import Message

if TYPE_CHECKING:
    from control.vm.consoles import Console
    from control.vm.keyboard import Seat
    from control.vm.snapshots import Snapshot

STOP_TIMEOUT_S = 20.0
WAIT_TIMEOUT_S = 300.0
NOTES_MAX = 50
LOOK_S = 0.02
"""How often something that has no event of its own is looked at."""

SSH_LOOK_S = 0.2
BANNER_WAIT_S = 5.0
NOTE_LENGTH_MAX = 400
LINE_S = 0.25
"""How long a break, or a pulse on a line, lasts when it is not said."""

LAST_WORDS_S = 30.0
"""How long QEMU may take to go once its VM has ended."""


class Notes(Listener):
    """Hears the VM, and keeps what was said of it for `status`."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def on_console(self, chunk: bytes) -> None: ...

    async def on_text(self, text: bytes) -> None: ...

    async def on_message(self, message: Message, carrier: Carrier) -> None: ...

    def on_phase(self, phase: str, seconds: float) -> None: ...

    def on_note(self, note: str) -> None:
        self.notes.append(note)
        del self.notes[:-NOTES_MAX]


class Service:
    """The methods of one supervisor.

    Attributes:
        vm: None while there is none: before it is started again.
        given_up: Set once somebody asked for its end: it is then not started again.
        over: Set once there is no VM, and will be none.
        restarts: How often it was started again.
        on_keep: Called when a VM that was to end with another process is to go on without that.
    """

    def __init__(self, name: str, files: InstanceFiles, notes: Notes) -> None:
        self.vm: VM | None = None
        self.given_up = asyncio.Event()
        self.over = asyncio.Event()
        self.restarts = 0
        self.on_keep: Callable[[], None] = lambda: None
        self._keeping = asyncio.Lock()  # one snapshot or template is worked with at a time
        self._name = name
        self._files = files
        self._notes = notes

    @property
    def methods(self) -> Mapping[str, Method]:
        return {
            "status": self._status,
            "stop": self._stop,
            "kill": self._kill,
            "keep": self._keep,
            "pause": self._pause,
            "resume": self._resume,
            "wait": self._wait,
            "exec": self._in_guest(self._exec),
            "put": self._in_guest(self._put),
            "get": self._in_guest(self._get),
            "authorize": self._in_guest(self._authorize),
            "send": self._in_guest(self._send),
            "agent": self._in_guest(self._ask_agent),
            "qmp": self._qmp,
            "monitor": self._monitor,
            "forward": self._forward,
            "screenshot": self._screenshot,
            "screen_text": self._screen_text,
            "snapshot": self._snapshot,
            "freeze": self._freeze,
            "copy_disks": self._copy_disks,
            "attach": self._attach,
            "line": self._line,
        }

    def _living(self) -> VM:
        if self.vm is None:
            raise StateError(
                f"{self._name} does not run: it is about to be started again",
                state="FAILED",
                required=("RUNNING",),
                hint=f"unhinged wait {self._name}, or end it: unhinged stop {self._name}",
            )
        return self.vm

    def _in_guest(self, work: Method) -> Method:
        """`work`, which waits for the guest: where it waits in vain for one that stands still, that is said."""

        async def do(call: Call, params: dict[str, Any]) -> dict[str, Any]:
            try:
                return await work(call, params)
            except WaitTimeout as error:
                if self.vm is not None and self.vm.state is State.PAUSED:
                    error.hint = f"{self._name} is paused; let it run on: unhinged resume {self._name}"
                raise

        return do

    async def _status(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        record = read_record(self._files)
        vm = self.vm
        runstate = None
        if vm is not None:
            with contextlib.suppress(ControlError):  # one that is just ending has none
                runstate = await vm.monitor.query_runstate(timeout_s=1.0)
        return {
            "name": self._name,
            "state": vm.state.value if vm is not None else (record.state if record is not None else "STOPPED"),
            "runstate": runstate,
            "pid": vm.process.pid if vm is not None and vm.process.running else None,
            "accelerator": vm.accelerator if vm is not None else "",
            "started_at": record.started_at if record is not None else "",
            "has_agent": record is not None and record.agent,
            "agent_ready": vm is not None and vm.agent_is_ready,
            "phases": dict(vm.phases) if vm is not None else {},
            "restarts": self.restarts,
            "trouble": str(vm.trouble) if vm is not None and vm.trouble is not None else "",
            "notes": list(self._notes.notes),
            "supervisor_pid": os.getpid(),
        }

    async def _stop(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        self.given_up.set()
        started = time.monotonic()
        if (vm := await self._vm_or_end()) is None:
            return {"how": "gone", "seconds": round(time.monotonic() - started, 3)}
        timeout_s = params.get("timeout_s", STOP_TIMEOUT_S)
        hurry = asyncio.get_running_loop().call_later(timeout_s, vm.hurry.set)
        try:
            how = await vm.stop(patience_s=max(timeout_s, LOOK_S))
        finally:
            hurry.cancel()
        return {"how": how, "seconds": round(time.monotonic() - started, 3)}

    async def _kill(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        self.given_up.set()
        if (vm := await self._vm_or_end()) is not None:
            await vm.kill()
        return {}

    async def _vm_or_end(self) -> VM | None:
        """The VM that is to be brought down, which may only just be starting; None when there will be none."""
        while self.vm is None and not self.over.is_set():  # noqa: ASYNC110 - whoever runs the VM sets it, before or after
            await asyncio.sleep(LOOK_S)
        return self.vm

    async def _keep(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        self._living()
        self.on_keep()
        return {}

    async def _pause(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        if vm.state is State.RUNNING:
            await vm.monitor.execute("stop")
            await self._until(vm, lambda: vm.state is not State.RUNNING, "the VM to stand still", 10.0)
        if vm.state is not State.PAUSED:
            raise StateError(f"{self._name} cannot be paused now", state=vm.state.value, required=("RUNNING",))
        return {"state": vm.state.value}

    async def _resume(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        if vm.state not in (State.STARTING, State.PAUSED, State.RUNNING):
            raise StateError(f"{self._name} cannot be resumed now", state=vm.state.value, required=("PAUSED",))
        if vm.state is not State.RUNNING:
            await vm.resume()
        return {"state": vm.state.value}

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def _wait(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        telling = asyncio.create_task(self._tell_phases(call))
        try:
            return await self._wait_untold(params)
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)

    async def _tell_phases(self, call: Call) -> None:
        """Tell a caller who waits what the boot has reached: where it is first, then each phase as it comes."""
        told = max(0, len(self.vm.phases) - 1) if self.vm is not None else 0
        while True:
            phases = list(self.vm.phases) if self.vm is not None else []
            for phase in phases[told:]:
                await call.notify("phase", {"phase": phase})
            told = len(phases)
            await asyncio.sleep(LOOK_S)

    async def _wait_untold(self, params: dict[str, Any]) -> dict[str, Any]:
        what, timeout_s = params["for"], params.get("timeout_s", WAIT_TIMEOUT_S)
        started = time.monotonic()
        vm = self._living()
        if what == "stopped":
            await self._wait_for_end(vm, timeout_s)
        elif what == "running":
            await self._until(vm, lambda: vm.state is State.RUNNING, "the VM to run", timeout_s)
        elif what == "boot":
            await self._until(vm, lambda: vm.watch.up, "the guest to come up", timeout_s)
        elif what == "agent":
            if not vm.has_agent:
                raise StateError(
                    f"{self._name} has no agent port",
                    state=vm.state.value,
                    required=("agent = true",),
                    hint="wait for boot or ssh, or declare agent = true",
                )
            await self._until(vm, lambda: vm.agent_is_ready, "the guest's agent", timeout_s)
        else:
            await self._wait_for_ssh(vm, params["port"], timeout_s)
        return {"seconds": round(time.monotonic() - started, 3)}

    async def _until(self, vm: VM, reached: Any, what: str, timeout_s: float) -> None:
        """Wait for what has no event of its own. Raises what the VM ended of, or what seems wrong with its guest."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            self._raise_end(vm)
            if vm.trouble is not None and what != "the VM to stand still":
                raise vm.trouble
            if time.monotonic() > deadline:
                raise WaitTimeout(what, timeout_s, last_seen=vm.watch.last_lines(8))
            await asyncio.sleep(LOOK_S)

    def _raise_end(self, vm: VM) -> None:
        if not vm.ended.done():
            return
        ending = vm.ended.result()
        if ending.error is not None:
            raise ending.error
        raise StateError(f"{self._name} has ended: {ending.how}", state="STOPPED", required=("RUNNING",))

    async def _wait_for_end(self, vm: VM, timeout_s: float) -> None:
        done, _ = await asyncio.wait((vm.ended,), timeout=timeout_s)
        if not done:
            raise WaitTimeout(f"the end of {self._name}", timeout_s, last_seen=vm.watch.last_lines(4))

    async def _wait_for_ssh(self, vm: VM, port: int, timeout_s: float) -> None:
        """An open port says nothing: QEMU takes connections for a guest that is not up. The banner does (RFC 4253)."""
        deadline = time.monotonic() + timeout_s
        while not await _has_banner(port):
            self._raise_end(vm)
            if time.monotonic() > deadline:
                raise WaitTimeout(
                    f"an ssh server behind port {port}",
                    timeout_s,
                    last_seen=vm.watch.last_lines(8),
                    hint="does one run in the guest? its port there is vm_port",
                )
            await asyncio.sleep(SSH_LOOK_S)

    # -- the guest -------------------------------------------------------------------------------------------------

    async def _exec(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.agent.process import Terminal

        vm = self._living()
        await self._wait_for_agent(vm, params.get("start_timeout_s", 10.0))
        terminal = Terminal(**params["terminal"]) if params.get("terminal") else None
        process = await vm.guest.exec(
            params["argv"],
            cwd=params.get("cwd"),
            env=params.get("env"),
            user=params.get("user"),
            stdin=params.get("stdin", False),
            terminal=terminal,
            timeout_s=params.get("timeout_s"),
        )
        call.on_signal = process.send_signal
        call.on_resize = process.resize
        async with process:
            feeding = asyncio.create_task(_feed(call, process.stdin))
            try:
                outputs = [("stdout", process.stdout), ("stderr", process.stderr)]
                async with asyncio.TaskGroup() as tasks:
                    for name, stream in outputs:
                        if stream is not None:
                            tasks.create_task(_pour(call, name, stream))
                    waiting = tasks.create_task(process.wait())
                return vars(waiting.result())
            except BaseExceptionGroup as group:
                raise _first(group) from None
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    async def _wait_for_agent(self, vm: VM, timeout_s: float) -> None:
        if not vm.agent_is_ready:
            vm.agent  # noqa: B018 - raises for a VM that has no agent port
            await self._until(vm, lambda: vm.agent_is_ready, "the guest's agent", timeout_s)

    async def _put(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        await self._wait_for_agent(vm, 10.0)
        copied = await vm.guest.put(params["sources"], params["target"], owner=params.get("owner", False))
        return _plain(copied)

    async def _get(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        await self._wait_for_agent(vm, 10.0)
        copied = await vm.guest.get(params["sources"], params["target"], owner=params.get("owner", False))
        return _plain(copied)

    async def _authorize(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        await self._wait_for_agent(vm, 10.0)
        return {"added": await vm.guest.ssh_key_add(params["user"], [params["key"]])}

    async def _send(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        vm = self._living()
        envelope = params.get("envelope") or build_command("command", params["text"], params.get("details", {}))
        answer = await vm.send(envelope, timeout_s=params.get("timeout_s", 60.0))
        return {"answer": answer.envelope}

    async def _ask_agent(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.agent.contract import check_result

        vm = self._living()
        await self._wait_for_agent(vm, 10.0)
        method = params["method"]
        if not (SCHEMAS / "agent" / f"{method}.result.json").exists():
            raise ConfigError(f"the agent has no method {method}", hint="docs/agent.md lists them")
        answer = await vm.agent.call(method, params.get("params", {}), timeout_s=params.get("timeout_s", 30.0))
        return {"return": check_result(method, answer)}

    # -- QEMU ------------------------------------------------------------------------------------------------------

    async def _qmp(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        return {"return": await self._living().monitor.execute(params["command"], params.get("arguments"))}

    async def _monitor(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        return {"text": await self._living().monitor.human(params["line"])}

    async def _forward(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.spec.network import parse_forward
        from control.vm.forwards import add_forward, list_forwards, remove_forward

        vm, forward = self._living(), None
        if params["action"] != "list":
            change = add_forward if params["action"] == "add" else remove_forward
            forward = str(await change(vm, parse_forward(params["forward"])))
        record = vm.record
        return {"forward": forward, "forwards": [str(each) for each in list_forwards(record.spec, record.forwards)]}

    async def _screenshot(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.vm.screen import save_screenshot

        path = Path(params["path"])
        await save_screenshot(self._living().monitor, path)
        return {"path": str(path), "bytes": path.stat().st_size}

    async def _screen_text(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.vm.screen import is_text_mode, read_text_screen

        monitor = self._living().monitor
        if not await is_text_mode(monitor):
            return {"is_text": False, "lines": []}
        return {"is_text": True, "lines": list(await read_text_screen(monitor, self._files))}

    async def _snapshot(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.vm import snapshots

        vm, started, tag = self._living(), time.monotonic(), params.get("tag", "")
        if params.get("live") and params["action"] != "save":
            raise ConfigError("only a save can be live", key="live", hint="leave it out")
        work: Callable[[], Coroutine[Any, Any, Snapshot]] = {
            "save": lambda: snapshots.save_snapshot(vm, tag, live=params.get("live", False)),
            "restore": lambda: snapshots.restore_snapshot(vm, tag),
            "delete": lambda: snapshots.delete_snapshot(vm, tag),
        }[params["action"]]
        async with self._keeping:
            task = asyncio.ensure_future(work())
            try:
                done = await asyncio.shield(task)
            except asyncio.CancelledError:
                # Whoever wanted it has gone. Half done, the VM would stand still, with leavings in its disks.
                await asyncio.wait((task,))
                if params["action"] == "save":
                    await snapshots.delete_snapshot(vm, task.result().tag)
                raise
        return {"snapshot": done.describe(), "seconds": round(time.monotonic() - started, 3)}

    async def _freeze(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.vm.templates import freeze

        vm = self._living()
        async with self._keeping:
            return await freeze(vm, Path(params["directory"]))

    async def _copy_disks(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        from control.vm.templates import copy_disks

        vm = self._living()
        async with self._keeping:
            return {"disks": [str(path) for path in await copy_disks(vm, Path(params["directory"]))]}

    async def _line(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        await self._living().drive_line(params["line"], params.get("how", "pulse"), params.get("seconds", LINE_S))
        return {}

    async def _attach(self, call: Call, params: dict[str, Any]) -> dict[str, Any]:
        """Give the caller a seat at a console, until they leave or it ends; what it says they read from its file."""
        vm = self._living()
        console = await vm.open_console(params.get("console", ""))
        async with console.keyboard.sit(params.get("who", "somebody"), params.get("mode", "write")) as seat:
            log = console.log
            await call.notify("attached", {"console": console.name, "log": str(log), "bytes": log.stat().st_size})
            await _Attendance(call, console, seat).last_until(vm.ended, console.ended)
            if vm.ended.done():
                # What it says until QEMU is gone is part of the console.
                await asyncio.wait((asyncio.ensure_future(vm.process.wait()),), timeout=LAST_WORDS_S)
                return {"how": vm.ended.result().how}
            return {"how": console.ended.result()}


class _Attendance:
    """One caller at a console: what they type, the size of their terminal, and whose turn it is."""

    def __init__(self, call: Call, console: Console, seat: Seat) -> None:
        self._call = call
        self._console = console
        self._seat = seat
        self._news: asyncio.Queue[str] = asyncio.Queue()
        call.on_resize = self._take_size
        call.on_turn = self._take_wish

    async def last_until(self, *ends: asyncio.Future[Any]) -> None:
        """Serve the caller until one of `ends`. Raises what goes wrong with the console."""
        tasks = [asyncio.create_task(work()) for work in (self._type, self._tell_turns, self._tell_news)]
        self._console.listeners.add(self._news.put_nowait)
        try:
            done, _ = await asyncio.wait((*tasks, *ends), return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done and not any(end.done() for end in ends):
                    task.result()
            if not any(end.done() for end in ends):  # what they type is at its end; they may go on reading
                await asyncio.wait((*tasks[1:], *ends), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._console.listeners.discard(self._news.put_nowait)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _type(self) -> None:
        while (data := await self._call.read_input()) is not None:
            holder = self._seat.holder
            why = self._console.obstacle if self._seat.types else f"the keyboard is with {holder or 'nobody'}"
            if why:
                await self._call.notify("refused", {"bytes": len(data), "holder": holder, "why": why[:NOTE_LENGTH_MAX]})
            else:
                await self._console.type(data)

    async def _tell_turns(self) -> None:
        while True:
            turn = await self._seat.next_news()
            if turn == "yours":
                self._carry_size()
            await self._call.notify("turn", {"turn": turn, "holder": self._seat.holder})

    async def _tell_news(self) -> None:
        while True:
            text = await self._news.get()
            await self._call.notify("note", {"text": text[:NOTE_LENGTH_MAX]})

    async def _take_size(self, rows: int, columns: int) -> None:
        self._seat.rows, self._seat.columns = rows, columns
        if self._seat.types:
            self._carry_size()

    def _carry_size(self) -> None:
        self._console.carry_size(self._seat.rows, self._seat.columns, self._complain)

    def _complain(self, error: ControlError) -> None:
        self._news.put_nowait(f"{error}; {error.hint}" if error.hint else str(error))

    def _take_wish(self, wants: str) -> None:
        {"steal": self._seat.steal, "write": self._seat.wait_for_turn, "read": self._seat.release}[wants]()


@contextlib.asynccontextmanager
async def host(name: str, files: InstanceFiles, notes: Notes) -> AsyncIterator[Service]:
    """Answer for a VM that this process shows in the foreground, as its supervisor would, during the body.

    It begins before the VM does and ends after it, so that who waits for its end is told; the body sets `vm`.

    Raises:
        HostError: The socket cannot be made.
    """
    service = Service(name, files, notes)
    async with serve(files.control_socket, service.methods):
        try:
            yield service
        finally:
            service.vm = None
            service.over.set()


async def _feed(call: Call, stdin: Any) -> None:
    """Carry what the caller sends to the program; one that wants no more of it does not end for that."""
    from control.errors import AgentProtocolError

    if stdin is None:
        return
    with contextlib.suppress(AgentProtocolError):
        while (data := await call.read_input()) is not None:
            stdin.write(data)
            await stdin.drain(0)
        stdin.close()


async def _pour(call: Call, name: str, stream: Any) -> None:
    while chunk := await stream.read():
        await call.send_output(name, chunk)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of ours in `group`; the others follow from it."""
    return next((error for error in group.exceptions if isinstance(error, ControlError)), group.exceptions[0])


def _plain(copied: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(copied).items() if isinstance(value, int | float | str | bool)}


async def _has_banner(port: int) -> bool:
    try:
        async with asyncio.timeout(BANNER_WAIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return (await reader.read(4)).startswith(b"SSH-")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
