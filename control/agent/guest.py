"""What can be done with a guest through its agent, each as a typed method (floor 2); `control.vm` hands it out.

Every result, the end of every job and what it tells before are held against their schemas in `schemas/agent/`: a guest
that says otherwise is one clear error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import time_ns as read_time_ns
from typing import Any

from control.agent import files, process
from control.agent.client import DEFAULT_TIMEOUT_S, AgentClient
from control.agent.contract import check_result
from control.agent.jobs import Job
from control.agent.process import KEPT_BYTES, ExecProcess, ExecResult, Terminal
from control.agent.streams import Incoming
from control.agent.trees import Copied, Limits
from control.errors import AgentProtocolError, TransferError

CHANGE_TIMEOUT_S = 300.0
"""Services, users and the like: how long what changes them may take."""

Result = dict[str, Any]
_List = list[Result]


class Guest:
    """A guest, as its agent shows it.

    All methods raise AgentCallError when the agent refuses or fails, AgentProtocolError when the guest is lost or what
    it answers is none, and WaitTimeout when it does not answer in time. Methods without words of their own do what
    the method of that name in docs/agent.md does.
    """

    def __init__(self, client: AgentClient) -> None:
        self.client = client

    # -- programs --------------------------------------------------------------------------------------------------

    async def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: bool = False,
        terminal: Terminal | None = None,
        timeout_s: float | None = None,
    ) -> ExecProcess:
        """Start a program and return its handle; see `control.agent.process.start_process`."""
        return await process.start_process(
            self.client,
            argv,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            terminal=terminal,
            timeout_s=timeout_s,
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        check: bool = True,
        timeout_s: float | None = None,
        keep_bytes: int = KEPT_BYTES,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> ExecResult:
        """Run a program to its end; see `control.agent.process.run_process`."""
        return await process.run_process(
            self.client,
            argv,
            stdin=stdin,
            check=check,
            timeout_s=timeout_s,
            keep_bytes=keep_bytes,
            cwd=cwd,
            env=env,
            user=user,
        )

    # -- files -----------------------------------------------------------------------------------------------------

    async def put(
        self,
        sources: Path | str | Sequence[Path | str],
        remote: str,
        *,
        resume: bool = False,
        owner: bool = False,
        durable: bool = False,
        progress: files.Progress | None = None,
    ) -> Copied:
        """Copy files and trees into the guest; see `control.agent.files.put`."""
        return await files.put(
            self.client, sources, remote, resume=resume, owner=owner, durable=durable, progress=progress
        )

    async def get(
        self,
        sources: str | Sequence[str],
        local: Path | str,
        *,
        resume: bool = False,
        owner: bool = False,
        keep_special: bool = False,
        limits: Limits | None = None,
        progress: files.Progress | None = None,
    ) -> Copied:
        """Copy files and trees out of the guest; see `control.agent.files.get`."""
        return await files.get(
            self.client,
            sources,
            local,
            resume=resume,
            owner=owner,
            keep_special=keep_special,
            limits=limits,
            progress=progress,
        )

    async def read_bytes(self, path: str, *, limit_bytes: int = files.READ_LIMIT_BYTES) -> bytes:
        """Return a file's content."""
        return await files.read_bytes(self.client, path, limit_bytes=limit_bytes)

    async def read_text(self, path: str, *, limit_bytes: int = files.READ_LIMIT_BYTES) -> str:
        """Return a file's content as text. Raises TransferError when it is not UTF-8."""
        content = await self.read_bytes(path, limit_bytes=limit_bytes)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TransferError(f"{path} is not UTF-8: {error}", path=path, hint="use read_bytes") from error

    async def write_bytes(self, path: str, content: bytes, *, mode: int | None = None, append: bool = False) -> None:
        """Make `content` a file's content in one step."""
        await files.write_bytes(self.client, path, content, mode=mode, append=append)

    async def write_text(self, path: str, text: str, *, mode: int | None = None, append: bool = False) -> None:
        """Make `text`, as UTF-8, a file's content in one step."""
        await self.write_bytes(path, text.encode("utf-8"), mode=mode, append=append)

    async def stat(self, path: str, *, follow: bool = True) -> Result:
        return await self._ask("file_stat", path=path, follow=follow)

    def list(self, path: str) -> AsyncIterator[Result]:
        """Yield what is in a directory, by name."""
        return self._pages("file_list", "entries", path=path)

    async def mkdir(self, path: str, *, parents: bool = False, mode: int | None = None) -> None:
        await self._ask("file_mkdir", path=path, parents=parents, mode=mode)

    async def rename(self, path: str, to: str, *, replace: bool = True) -> None:
        await self._ask("file_rename", path=path, to=to, replace=replace)

    async def remove(self, path: str, *, recursive: bool = False) -> int:
        """Remove a file or directory; return how many there were."""
        return int((await self._ask("file_remove", path=path, recursive=recursive))["removed"])

    async def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[Result]:
        """Yield changes of a file, or in a directory, until the iterator is closed (`contextlib.aclosing`)."""
        async with self._job("file_watch", path=path, recursive=recursive) as job:
            async for event in job.events():
                for change in event["changes"]:
                    yield change

    # -- the machine -----------------------------------------------------------------------------------------------

    async def system_info(self) -> Result:
        return await self._ask("get_system_info")

    async def network_info(self) -> Result:
        """Return interfaces with their addresses and counters, gateways and name servers."""
        return await self._all_pages("get_network_info", "interfaces")

    async def disk_usage(self, *, all_mounts: bool = False) -> _List:
        """Return the mounted file systems, with what is free; also those of the kernel itself with `all_mounts`."""
        return [mount async for mount in self._pages("get_disk_usage", "mounts", all=all_mounts)]

    async def time(self) -> Result:
        return await self._ask("get_time")

    async def set_time(self, time_ns: int | None = None) -> Result:
        return await self._ask("set_time", time_ns=time_ns)

    async def set_hostname(self, hostname: str, *, persistent: bool | None = None) -> None:
        await self._ask("set_hostname", hostname=hostname, persistent=persistent)

    async def identity(self) -> Result:
        """Return the host's name and the machine's id."""
        return await self._ask("get_identity")

    async def renew_identity(
        self, hostname: str, *, machine_id: str, seed: str, macs: Mapping[str, str], reachable: bool | None = None
    ) -> Result:
        """Make a clone a machine of its own, by this host's time.

        Args:
            machine_id: 32 hexadecimal digits.
            seed: At least 32 bytes that nobody else has, in base64.
            macs: The addresses of its network cards, as they are and as they are to be.
            reachable: Whether anybody reaches it over a network; the guest looks by itself when that is not said.
        """
        return await self._ask(
            "renew_identity",
            hostname=hostname,
            machine_id=machine_id,
            seed=seed,
            macs=dict(macs),
            reachable=reachable,
            time_ns=read_time_ns(),
        )

    async def cpus(self) -> _List:
        return [cpu async for cpu in self._pages("cpu_list", "cpus")]

    async def set_cpus_online(self, ids: Sequence[int], online: bool) -> _List:
        cpus: _List = (await self._change("cpu_set_online", ids=list(ids), online=online))["cpus"]
        return cpus

    async def memory_blocks(self) -> _List:
        return [block async for block in self._pages("memory_list", "blocks")]

    async def set_memory_online(self, ids: Sequence[int], online: bool) -> _List:
        blocks: _List = (await self._change("memory_set_online", ids=list(ids), online=online))["blocks"]
        return blocks

    async def shutdown(self) -> None:
        await self._ask("shutdown")

    async def reboot(self) -> None:
        await self._ask("reboot")

    # -- processes, services, packages -----------------------------------------------------------------------------

    def processes(self) -> AsyncIterator[Result]:
        """Yield the running processes, by number."""
        return self._pages("process_list", "processes")

    async def signal(self, pid: int, name: str, *, start_ticks: int | None = None, force: bool = False) -> None:
        """Send a signal, `TERM` for example; with `start_ticks` only to the process that was listed with it."""
        await self._ask("process_signal", pid=pid, signal=name, start_ticks=start_ticks, force=force)

    def services(self) -> AsyncIterator[Result]:
        """Yield the services, by name."""
        return self._pages("service_list", "services")

    async def service_status(self, name: str) -> Result:
        return await self._ask("service_status", name=name)

    async def service_start(self, name: str) -> Result:
        return await self._change("service_start", name=name)

    async def service_stop(self, name: str) -> Result:
        return await self._change("service_stop", name=name)

    async def service_restart(self, name: str) -> Result:
        return await self._change("service_restart", name=name)

    def packages(self, *, prefix: str | None = None) -> AsyncIterator[Result]:
        """Yield the installed packages, by name."""
        return self._pages("package_list", "packages", prefix=prefix)

    def package_install(self, names: Sequence[str], *, refresh: bool | None = None) -> AsyncIterator[bytes]:
        """Install packages, and yield the installer's output as it comes; at its end they are there."""
        return self._output("package_install", names=list(names), refresh=refresh)

    def package_remove(self, names: Sequence[str], *, purge: bool | None = None) -> AsyncIterator[bytes]:
        """Remove packages, and yield the installer's output as it comes; at its end they are gone."""
        return self._output("package_remove", names=list(names), purge=purge)

    def package_update(
        self, names: Sequence[str] | None = None, *, lists_only: bool | None = None
    ) -> AsyncIterator[bytes]:
        """Update packages, all without `names`, and yield the installer's output as it comes."""
        return self._output("package_update", names=names and list(names), lists_only=lists_only)

    # -- users, logs, metrics, file systems ------------------------------------------------------------------------

    def users(self) -> AsyncIterator[Result]:
        """Yield the users."""
        return self._pages("user_list", "users")

    async def user_create(self, name: str, **how: Any) -> Result:
        """Create a user; `how` is as in docs/agent.md: `uid`, `groups`, `home`, `shell`, `comment`, `password`, …"""
        return await self._change("user_create", name=name, **how)

    async def user_delete(self, name: str, *, remove_home: bool = False) -> None:
        await self._change("user_delete", name=name, remove_home=remove_home)

    async def user_set_password(self, name: str, password: str, *, hashed: bool = False) -> None:
        await self._change("user_set_password", name=name, password=password, hashed=hashed)

    async def ssh_keys(self, user: str) -> Result:
        return await self._ask("ssh_key_list", user=user)

    async def ssh_key_add(self, user: str, keys: Sequence[str]) -> int:
        """Let the holders of these keys log in as `user`; return how many were not there before."""
        return int((await self._change("ssh_key_add", user=user, keys=list(keys)))["added"])

    async def ssh_key_remove(
        self, user: str, *, keys: Sequence[str] | None = None, fingerprints: Sequence[str] | None = None
    ) -> int:
        """Take these keys away from `user`; return how many there were."""
        params = {"keys": keys and list(keys), "fingerprints": fingerprints and list(fingerprints)}
        return int((await self._change("ssh_key_remove", user=user, **params))["removed"])

    def log(
        self, path: str | None = None, *, unit: str | None = None, lines: int | None = None, follow: bool = True
    ) -> AsyncIterator[bytes]:
        """Yield a log as it is written: the file `path`, or the journal, or that of one `unit`.

        Args:
            lines: How many of those before now.
        """
        journal = True if path is None and unit is None else None
        return self._output("log_follow", path=path, journal=journal, unit=unit, lines=lines, follow=follow)

    async def metrics(self) -> Result:
        return await self._ask("get_metrics")

    async def watch_metrics(self, interval_s: float, *, count: int | None = None) -> AsyncIterator[Result]:
        """Yield metrics every `interval_s` seconds, `count` times or until the iterator is closed."""
        async with self._job("metrics_watch", interval_s=interval_s, count=count) as job:
            async for event in job.events():
                yield dict(event)

    def apply_cloud_init(self, directives: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Apply first-boot directives, and yield what the programs they start write."""
        return self._output("cloud_init_apply", directives=dict(directives))

    @asynccontextmanager
    async def frozen(
        self, paths: Sequence[str] | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[Result]:
        """Keep file systems from changing while the body runs, for a snapshot for example; at most `timeout_s`."""
        params = {"paths": paths and list(paths), "timeout_s": timeout_s}
        yielded = await self._change("filesystem_freeze", **params)
        try:
            yield yielded
        finally:
            await self._change("filesystem_thaw")

    async def filesystem_status(self) -> Result:
        return await self._ask("filesystem_status")

    async def trim(self, paths: Sequence[str] | None = None, *, minimum_bytes: int | None = None) -> _List:
        """Give blocks that no file uses back to the disk."""
        params = {"paths": paths and list(paths), "minimum_bytes": minimum_bytes}
        trimmed: _List = (await self._change("filesystem_trim", **params))["trimmed"]
        return trimmed

    # -- what they are made of -------------------------------------------------------------------------------------

    async def _ask(self, method: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, **params: Any) -> Result:
        result = await self.client.call(method, _given(params), timeout_s=timeout_s)
        return check_result(method, result)

    async def _change(self, method: str, **params: Any) -> Result:
        return await self._ask(method, timeout_s=CHANGE_TIMEOUT_S, **params)

    async def _pages(self, method: str, key: str, **params: Any) -> AsyncIterator[Result]:
        after: object = None
        while True:
            page = await self._ask(method, after=after, **params)
            for item in page[key]:
                yield item
            if page["next"] is None:
                return
            if page["next"] == after or not page[key]:
                raise AgentProtocolError(f"the guest agent's pages of {method} do not end")
            after = page["next"]

    async def _all_pages(self, method: str, key: str) -> Result:
        result = await self._ask(method)
        after = result["next"]
        while after is not None:
            page = await self._ask(method, after=after)
            if page["next"] == after or not page[key]:
                raise AgentProtocolError(f"the guest agent's pages of {method} do not end")
            result[key] += page[key]
            after = page["next"]
        return result

    @asynccontextmanager
    async def _job(self, method: str, *, output: Incoming | None = None, **params: Any) -> AsyncIterator[Job]:
        """Begin a job; it is ended when the body is left before it has ended by itself."""
        if output is not None:
            params["output"] = output.number
        try:
            job = await self.client.start_job(method, _given(params), timeout_s=CHANGE_TIMEOUT_S)
            try:
                yield job
            finally:
                job.cancel()
        finally:
            if output is not None:
                output.give_up("the host wants no more of it")

    async def _output(self, method: str, **params: Any) -> AsyncIterator[bytes]:
        """Yield what a job writes; an error of the job comes behind that."""
        output = self.client.streams.open_incoming()
        async with self._job(method, output=output, **params) as job:
            try:
                while chunk := await output.read():
                    yield bytes(chunk)
            except AgentProtocolError as error:
                raise await files.why_failed(job, error) from None
            await job.wait()


def _given(params: Mapping[str, Any]) -> Result:
    return {key: value for key, value in params.items() if value is not None}
