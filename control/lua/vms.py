"""Lua interpreters by name (floor 5): made, run, waited for, cancelled, networked, in clusters."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from control.errors import ConfigError, ControlError, WaitTimeout
from control.lua.errors import LuaCancelled, LuaNotFoundError, LuaProcessError, NetworkingError
from control.lua.machine import TIMEOUT_S, LuaResult, LuaVM
from control.session.cluster import Cluster

if TYPE_CHECKING:
    from control.session.session import Session

NET = Path(__file__).with_name("net.lua")
EXECUTABLES = ("lua5.4", "lua54", "lua-5.4")
INSTALL = "make deps-install-lua"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass
class _Entry:
    vm: LuaVM
    pool: ThreadPoolExecutor
    is_networked: bool = False
    future: Future[LuaResult] | None = None
    failures: int = 0
    seats: list[Session] = field(default_factory=list)


class LuaMember:
    """An interpreter as a member of a `Cluster`."""

    def __init__(self, vm: LuaVM, remove: Callable[[str], object]) -> None:
        self.vm = vm
        self._remove = remove

    @property
    def name(self) -> str:
        return self.vm.name

    def execute(self, task: str, /, *args: Any, timeout: float) -> LuaResult:
        return self.vm.execute_string(task, *args, timeout=timeout)

    def close(self) -> None:
        self._remove(self.name)


class LuaVMs:
    """Interpreters by name. Use it as a context manager: all are ended at its end. Thread-safe.

    Args:
        lua_executable: Lua 5.4, a name that is looked for in PATH, or a path.
        cwd: Where they work; the current directory when not given.
        secret: What networked ones of several `LuaVMs` must share; those of one do.

    Raises:
        LuaNotFoundError: This host has no such interpreter.
    """

    def __init__(self, lua_executable: str = "", *, cwd: Path | str | None = None, secret: str = "") -> None:
        self._executable = _find(lua_executable)
        self._cwd = Path(cwd) if cwd is not None else None
        self._secret = secret or secrets.token_hex(16)
        self._directory = Path(tempfile.mkdtemp(prefix="unhinged-lua-"))
        self._entries: dict[str, _Entry] = {}
        self._clusters: dict[str, Cluster[LuaResult]] = {}
        self._guard = threading.Lock()
        self._started = time.monotonic()
        self._created = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown_all()

    # -- one by one ----------------------------------------------------------------------------------------------------

    def create_vm(self, vm_id: str, *, networked: bool = False, memory_bytes: int | None = None) -> LuaVM:
        """Start an interpreter.

        Args:
            networked: Give it `net` (docs/lua.md).
            memory_bytes: The address space it may have; unbounded when not given.

        Raises:
            ConfigError: The name is none, or taken.
            HostError: It cannot be started.
            NetworkingError: It is to be networked, and LuaSocket is not installed.
        """
        if _NAME.fullmatch(vm_id) is None:
            raise ConfigError(f"{vm_id[:80]!r} cannot be the name of an interpreter", key="vm_id")
        with self._guard:
            if vm_id in self._entries:
                raise ConfigError(f"there is an interpreter {vm_id} already", key="vm_id", hint="remove_vm ends it")
            vm = LuaVM(vm_id, self._executable, self._directory, cwd=self._cwd, memory_bytes=memory_bytes)
            entry = self._entries[vm_id] = _Entry(vm, ThreadPoolExecutor(1, f"lua/{vm_id}"))
            self._created += 1
        if networked:
            try:
                self._network(entry)
            except BaseException:
                self.remove_vm(vm_id)
                raise
        return vm

    def remove_vm(self, vm_id: str) -> bool:
        """End an interpreter, whatever it does; whether there was one of that name."""
        with self._guard:
            entry = self._entries.pop(vm_id, None)
        if entry is None:
            return False
        entry.vm.kill()
        for session in entry.seats:
            session.close()
        entry.vm.close()
        entry.pool.shutdown(cancel_futures=True)
        return True

    def list_vms(self) -> tuple[str, ...]:
        """Their names, in the order they were made in."""
        with self._guard:
            return tuple(self._entries)

    def get_vm(self, vm_id: str) -> LuaVM:
        """Return an interpreter. Raises ConfigError when there is none of that name."""
        return self._get(vm_id).vm

    def execute_vm_sync(self, vm_id: str, code: str, *args: Any, timeout: float = TIMEOUT_S) -> LuaResult:
        """Run code and return what came of it; see `LuaVM.execute_string`."""
        return self._execute(self._get(vm_id), code, args, timeout)

    def execute_vm_async(self, vm_id: str, code: str, *args: Any, timeout: float = TIMEOUT_S) -> Future[LuaResult]:
        """Begin to run code, after what this interpreter was given before; the future has what `execute_string` has."""
        entry = self._get(vm_id)
        entry.future = entry.pool.submit(self._execute, entry, code, args, timeout)
        return entry.future

    def wait_for_vm(self, vm_id: str, timeout: float = TIMEOUT_S) -> LuaResult:
        """Wait for what `execute_vm_async` began last. Raises what it ended in; ConfigError when there was nothing."""
        future = self._get(vm_id).future
        if future is None:
            raise ConfigError(f"{vm_id} was given nothing to wait for", key="vm_id", hint="execute_vm_async")
        try:
            return future.result(timeout)
        except CancelledError:
            raise LuaCancelled(f"{vm_id} was cancelled before it began") from None
        except LuaProcessError:
            raise
        except TimeoutError:
            raise WaitTimeout(f"{vm_id}", timeout) from None

    def cancel_vm(self, vm_id: str) -> bool:
        """Interrupt what runs, and forget what waits for its turn; whether there was anything."""
        entry = self._get(vm_id)
        future = entry.future
        was_waiting = future is not None and not future.done() and future.cancel()
        return entry.vm.cancel() or was_waiting

    def get_vm_status(self, vm_id: str) -> str:
        """Say what it does: `idle`, `running`, `attached`, `done`, `failed`, `cancelled` or `ended`.

        `done`, `failed` and `cancelled` are of what `execute_vm_async` began last.
        """
        entry = self._get(vm_id)
        if not entry.vm.is_alive:
            return "ended"
        if any(not session.is_closed for session in entry.seats):
            return "attached"
        future = entry.future
        if entry.vm.is_busy or (future is not None and not future.done()):
            return "running"
        if future is None:
            return "idle"
        if future.cancelled() or isinstance(future.exception(), LuaCancelled):
            return "cancelled"
        return "failed" if future.exception() is not None else "done"

    def get_stats(self) -> dict[str, Any]:
        """Count what there is and was."""
        with self._guard:
            entries = list(self._entries.values())
            clusters = {name: len(cluster) for name, cluster in self._clusters.items()}
        return {
            "executable": self._executable,
            "seconds": time.monotonic() - self._started,
            "created": self._created,
            "alive": sum(entry.vm.is_alive for entry in entries),
            "busy": sum(entry.vm.is_busy for entry in entries),
            "networked": sum(entry.is_networked for entry in entries),
            "executions": sum(entry.vm.executions for entry in entries),
            "failures": sum(entry.failures for entry in entries),
            "clusters": clusters,
        }

    def shutdown_all(self) -> None:
        """End all of them; twice is once."""
        with self._guard:
            entries = list(self._entries)
            self._clusters.clear()
        for vm_id in entries:
            self._entries[vm_id].vm.kill()  # all at once, and each is buried in its turn
        for vm_id in entries:
            self.remove_vm(vm_id)
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- at its terminal -----------------------------------------------------------------------------------------------

    def attach_to_vm(self, vm_id: str, *, timeout: float = TIMEOUT_S) -> Session:
        """Sit at an interpreter's terminal; see `LuaVM.attach`."""
        entry = self._get(vm_id)
        session = entry.vm.attach(timeout=timeout)
        entry.seats = [each for each in entry.seats if not each.is_closed] + [session]
        return session

    # -- networked -----------------------------------------------------------------------------------------------------

    def start_server_vm(self, vm_id: str, *, port: int = 0, handler: str = "return ...") -> int:
        """Let an interpreter, which is made when there is none, listen at 127.0.0.1, and return the port.

        Args:
            port: 0 for one that is free.
            handler: What is run for each message, with the message and the number of the peer as `...`; what it
                returns is the answer. Without one, messages go to `net.inbox`.

        Raises:
            NetworkingError: The port is taken, or LuaSocket missing.
            LuaProcessError: The handler is no Lua.
        """
        entry = self._make_networked(vm_id)
        code = "net.handler = assert(load(..., '=handler', 't'))" if handler else "net.handler = nil"
        self._execute(entry, code, (handler,), TIMEOUT_S)
        return int(self._execute(entry, "return net.listen(...)", (port,), TIMEOUT_S).value)

    def start_client_vm(self, vm_id: str, port: int, *, host: str = "127.0.0.1") -> int:
        """Let an interpreter, which is made when there is none, connect to a server; return the number of the peer.

        In its code `net.call(value)` asks, and `net.send(value)` tells. Raises NetworkingError.
        """
        entry = self._make_networked(vm_id)
        return int(self._execute(entry, "return net.connect(...)", (host, port), TIMEOUT_S).value)

    def start_p2p_vm(
        self,
        vm_id: str,
        *,
        port: int = 0,
        peers: Iterable[tuple[str, int]] = (),
        handler: str = "return ...",
    ) -> int:
        """Let an interpreter be both: listen, and connect to `peers` (host, port). Returns its port."""
        own = self.start_server_vm(vm_id, port=port, handler=handler)
        for host, other in peers:
            self.start_client_vm(vm_id, other, host=host)
        return own

    # -- clusters ------------------------------------------------------------------------------------------------------

    def create_vm_cluster(
        self, cluster_id: str, count: int, *, networked: bool = False, memory_bytes: int | None = None
    ) -> Cluster[LuaResult]:
        """Start `count` interpreters, called `CLUSTER_ID-1` and so on. Raises as `create_vm`; none of them is left."""
        if count < 1 or cluster_id in self._clusters:
            raise ConfigError(f"there can be no cluster {cluster_id} of {count}", key="cluster_id")
        made: list[LuaVM] = []
        try:
            for number in range(1, count + 1):
                name = f"{cluster_id}-{number}"
                made.append(self.create_vm(name, networked=networked, memory_bytes=memory_bytes))
        except BaseException:
            for vm in made:
                self.remove_vm(vm.name)
            raise
        self._clusters[cluster_id] = Cluster(cluster_id, [LuaMember(vm, self.remove_vm) for vm in made])
        return self._clusters[cluster_id]

    def setup_p2p_cluster(self, cluster_id: str, *, handler: str = "return ...") -> dict[str, int]:
        """Connect each member of a cluster with each other; return their ports. Raises NetworkingError."""
        names = list(self._get_cluster(cluster_id).members)
        ports: dict[str, int] = {}
        for name in names:
            peers = [("127.0.0.1", port) for port in ports.values()]
            ports[name] = self.start_p2p_vm(name, peers=peers, handler=handler)
        return ports

    def broadcast_to_cluster(
        self, cluster_id: str, code: str, *args: Any, timeout: float = TIMEOUT_S
    ) -> dict[str, LuaResult | ControlError]:
        """Run the same code on all, at once, and return what came of each, the error of one that failed."""
        cluster = self._get_cluster(cluster_id)
        cluster.broadcast(code, *args, timeout=timeout)
        return cluster.gather(timeout=timeout + TIMEOUT_S)

    def cleanup_cluster(self, cluster_id: str) -> bool:
        """End the members of a cluster; whether there was one."""
        cluster = self._clusters.pop(cluster_id, None)
        if cluster is None:
            return False
        cluster.cleanup()
        return True

    # -- means ---------------------------------------------------------------------------------------------------------

    def _get(self, vm_id: str) -> _Entry:
        with self._guard:
            entry = self._entries.get(vm_id)
        if entry is None:
            raise ConfigError(f"there is no interpreter {vm_id[:80]}", key="vm_id", hint="create_vm makes one")
        return entry

    def _get_cluster(self, cluster_id: str) -> Cluster[LuaResult]:
        if cluster_id not in self._clusters:
            raise ConfigError(f"there is no cluster {cluster_id[:80]}", key="cluster_id", hint="create_vm_cluster")
        return self._clusters[cluster_id]

    def _execute(self, entry: _Entry, code: str, args: tuple[Any, ...], timeout: float) -> LuaResult:
        try:
            return entry.vm.execute_string(code, *args, timeout=timeout)
        except LuaProcessError:
            entry.failures += 1
            raise

    def _make_networked(self, vm_id: str) -> _Entry:
        with self._guard:
            entry = self._entries.get(vm_id)
        if entry is None:
            self.create_vm(vm_id, networked=True)
            return self._get(vm_id)
        if not entry.is_networked:
            self._network(entry)
        return entry

    def _network(self, entry: _Entry) -> None:
        try:
            entry.vm.load_network(NET, self._secret)
        except LuaProcessError as error:
            if "module 'socket' not found" in str(error):
                raise NetworkingError("Lua finds no LuaSocket on this host", hint=INSTALL) from error
            raise
        entry.is_networked = True


def _find(executable: str) -> str:
    for name in (executable,) if executable else EXECUTABLES:
        found = shutil.which(name)
        if found is not None:
            return os.path.abspath(found)  # noqa: PTH100 - resolved, a link to busybox would lose its name
    raise LuaNotFoundError(
        f"this host has no {executable or 'Lua 5.4'}", hint=INSTALL if not executable else "name Lua 5.4"
    )
