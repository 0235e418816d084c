"""The machines a web server shows (floor 5): what there is, how it does, and what can be done with it.

Looking costs no supervisor anything: it is read from the disk and the kernel (`control.vm.reach.look`). What is done
is done as the command line does it, in threads, because those calls wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from control.errors import ConfigError, StateError
from control.paths import InstanceFiles
from control.spec.declaration import VMDeclaration
from control.spec.fleet import Fleet, load_fleet
from control.spec.locate import Location
from control.vm.forwards import list_forwards
from control.vm.lifetime import start, stop, wait_until_free, work_with_snapshot
from control.vm.reach import Seen, connect, look
from control.vm.remote import Remote

WORKERS = 24
"""Calls that wait at once; more wait for one of them."""

TICK_HZ = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
MESSAGE_TAIL_BYTES = 64 * 1024
MESSAGE_LENGTH_MAX = 300


@dataclass(frozen=True)
class _Used:
    """CPU time of a process, in seconds, at a moment of the monotonic clock."""

    pid: int
    cpu_s: float
    at: float


class Machines:
    """All machines of a configuration, and those that run beside it in the same directory."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._fleet: Fleet | None = None
        self._fleet_stamp: tuple[int, int] | None = None
        self._fleet_lock = threading.Lock()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="machines")
        self._used: dict[str, _Used] = {}
        self._cpu: dict[str, float] = {}
        self._messages: dict[str, tuple[tuple[int, int], str]] = {}

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    # -- what there is ---------------------------------------------------------------------------------------------

    @property
    def fleet(self) -> Fleet | None:
        """The configuration as it is now; None without a file. Raises ConfigFileError for what is wrong with it."""
        with self._fleet_lock:
            stamp = self._find_stamp()
            if stamp != self._fleet_stamp:
                self._fleet = load_fleet(self.location) if stamp is not None else None
                self._fleet_stamp = stamp
            return self._fleet

    @property
    def declared(self) -> Mapping[str, VMDeclaration]:
        """The machines of the file that can be started, in its order."""
        fleet = self.fleet
        return {} if fleet is None else {name: fleet.vms[name] for name in fleet.names}

    def _find_stamp(self) -> tuple[int, int] | None:
        try:
            found = self.location.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size

    def list_names(self) -> list[str]:
        """The machines of the file in its order, then those that run or ran without it."""
        names = list(self.declared)
        known = set(names)
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(self.location.runtime), key=lambda entry: entry.name):
                name = entry.name.removeprefix("vm.")
                if entry.name.startswith("vm.") and name not in known and (Path(entry.path) / "state.json").exists():
                    names.append(name)
        return names

    def check(self, name: str) -> str:
        """Return `name` when there is such a machine. Raises ConfigError."""
        if name in self.declared or (
            "/" not in name and name not in ("", ".", "..") and self.files(name).state.is_file()
        ):
            return name
        raise ConfigError(f"there is no machine {name[:80]!r}", hint="GET /api/vms lists them")

    def files(self, name: str) -> InstanceFiles:
        """Where its files lie, also those of one whose sockets were put elsewhere."""
        return look(self.location.runtime, name).files

    def find_last_run(self, name: str) -> str:
        """What tells the run that the logs are of from others, also when it has ended; empty before the first."""
        record = self.look(name).record
        return "" if record is None else f"{record.pid}.{record.start_ticks}"

    def look(self, name: str) -> Seen:
        return look(self.location.runtime, name, self.location.earlier_runtimes)

    def describe(self, name: str) -> dict[str, Any]:
        """What a list shows of a machine (`schemas/web/vm.json`)."""
        seen = self.look(name)
        declared = self.declared.get(name)
        record = seen.record
        spec: Mapping[str, Any] = record.spec if record is not None else {}
        cpu, memory_bytes = self._measure(name, seen.pid)
        kind = (
            declared.kind
            if declared is not None
            else {"process": "process", "serial": "serial"}.get(str(spec.get("kind")), "vm")
        )
        return {
            "name": name,
            "kind": kind,
            "is_declared": declared is not None,
            "state": seen.state,
            "pid": seen.pid,
            "accelerator": (record.accelerator if record is not None else "") or "",
            "started_at": record.started_at if record is not None else "",
            "cpus": spec.get("cpus"),
            "memory_limit_bytes": spec.get("memory_bytes"),
            "cpu_percent": cpu,
            "memory_bytes": memory_bytes,
            "forwards": [str(each) for each in list_forwards(dict(spec), record.forwards)]
            if record is not None and seen.is_running
            else [],
            "consoles": self._find_consoles(kind, seen),
            "has_screen": seen.is_running and seen.files.vnc_socket.exists(),
            "has_spice": seen.is_running and seen.files.spice_socket.exists(),
            "has_agent": record is not None and record.agent,
            "run": self.find_last_run(name) if seen.is_running else "",
            "note": seen.note,
            "message": self._find_last_message(name, seen.files),
        }

    def choose_console(self, name: str, wanted: str) -> str:
        """Return the console `wanted`, or the first there is. Raises ConfigError when there is no such console."""
        offered: list[str] = self.describe(name)["consoles"]
        if wanted and wanted not in offered:
            raise ConfigError(f"{name} has no console {wanted[:20]!r}", hint=f"it has {', '.join(offered)}")
        return wanted or offered[0]

    def _find_consoles(self, kind: str, seen: Seen) -> list[str]:
        if kind != "vm":
            return ["console"]
        record = seen.record
        if record is None:
            return ["ttyS0"]
        return ["ttyS0", *(["hvc0"] if record.hvc0 else []), *(["shell"] if record.agent else [])]

    def _measure(self, name: str, pid: int | None) -> tuple[float | None, int | None]:
        """CPU in percent of one, since it was last looked at, and resident memory of the process."""
        if pid is None:
            self._used.pop(name, None)
            return None, None
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError, ValueError):
            return None, None  # it has just ended
        fields = stat[stat.rindex(")") + 2 :].split()
        used = _Used(pid, (int(fields[11]) + int(fields[12])) / TICK_HZ, time.monotonic())
        before = self._used.get(name)
        if before is None or before.pid != pid:
            self._used[name] = used
            self._cpu.pop(name, None)
        elif used.at - before.at >= 0.5:
            self._cpu[name] = round(100 * (used.cpu_s - before.cpu_s) / (used.at - before.at), 1)
            self._used[name] = used
        return self._cpu.get(name), pages * PAGE_BYTES

    def _find_last_message(self, name: str, files: InstanceFiles) -> str:
        try:
            found = files.messages.stat()
            stamp = (found.st_size, found.st_mtime_ns)
            if self._messages.get(name, ((-1, -1), ""))[0] != stamp:
                self._messages[name] = (stamp, _read_last_message(files.messages, found.st_size))
            return self._messages[name][1]
        except OSError:
            return ""

    # -- what is done ----------------------------------------------------------------------------------------------

    async def call(self, name: str, method: str, params: Mapping[str, Any], *, timeout_s: float = 60.0) -> Any:
        """Call a method of the machine's supervisor (docs/control.md). Raises what that raises."""
        return await self.run(self._call, name, method, params, timeout_s)

    def _call(self, name: str, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        with connect(self.location.runtime, name) as remote:
            return remote.call(method, params, timeout_s=timeout_s)

    async def exec(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Run a program in the guest and collect what it says, up to a limit."""
        found: dict[str, Any] = await self.run(self._exec, name, params)
        return found

    def _exec(self, name: str, params: Mapping[str, Any]) -> dict[str, Any]:
        from control.vm.collect import collect_exec

        with connect(self.location.runtime, name) as remote:
            return collect_exec(remote, params)

    async def start(self, name: str, *, is_paused: bool = False) -> bool:
        fleet = self.fleet
        if fleet is None or name not in fleet.names:
            raise StateError(
                f"{name} is not in {self.location.file}: what it was started from is not known",
                state="STOPPED",
                required=("declared",),
                hint="start it as before, or declare it there",
            )
        return bool(await self.run(lambda: start(fleet, name, is_paused=is_paused)))

    async def stop(self, name: str, timeout_s: float) -> bool:
        return bool(await self.run(lambda: stop(self.location.runtime, name, timeout_s=timeout_s)))

    async def kill(self, name: str) -> None:
        await self.call(name, "kill", {})
        await self.run(wait_until_free, self.location.runtime, name)

    async def work_with_snapshot(self, name: str, action: str, tag: str, *, live: bool) -> dict[str, Any]:
        """Save, restore or delete a snapshot. Raises as `control.vm.lifetime.work_with_snapshot`."""
        work = partial(work_with_snapshot, self.location, self.fleet, name, action, tag, live=live)
        done: dict[str, Any] = await self.run(work)
        return done

    async def run(self, function: Any, *arguments: Any) -> Any:
        """Run what waits in one of our threads."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    async def connect(self, name: str) -> Remote:
        """A connection to the machine's supervisor, for a console. Raises as `control.vm.reach.connect`."""
        remote: Remote = await self.run(connect, self.location.runtime, name)
        return remote


def _read_last_message(path: Path, size: int) -> str:
    with path.open("rb") as file:
        file.seek(max(0, size - MESSAGE_TAIL_BYTES))
        for line in reversed(file.read(MESSAGE_TAIL_BYTES).splitlines()):
            try:
                data = json.loads(line)["data"]
            except (ValueError, KeyError, TypeError):
                continue  # the first of them may be cut
            text = data.get("message") if isinstance(data, dict) else None
            if isinstance(text, str):
                return text[:MESSAGE_LENGTH_MAX]
    return ""
