"""Copies files and trees between this host and the guest, as `cp -r` would (floor 2).

Content goes over a stream and is verified end to end by its CRC-32. Disks are waited for in threads.
"""

from __future__ import annotations

import asyncio
import functools
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from control.agent.client import AgentClient
from control.agent.contract import check_result
from control.agent.jobs import Job
from control.agent.streams import Incoming, Outgoing
from control.agent.trees import Copied, Limits, TreeWriter, find_crc, pack_tree
from control.errors import AgentCallError, AgentProtocolError, TransferError, WaitTimeout

BATCH_BYTES = 1024 * 1024
READ_LIMIT_BYTES = 256 * 1024 * 1024
"""How large a file `read_bytes` takes into memory when it is not told otherwise."""

START_TIMEOUT_S = 300.0
"""How long the beginning of a copy may take: to resume one, the guest reads what is there already."""

LAST_WORD_S = 10.0
"""How long a guest that gave a stream up has to say why."""

NOT_FOUND = -32002

Progress = Callable[[int], None]
"""Told how many bytes of content have gone so far."""

_Result = TypeVar("_Result")


async def put(
    client: AgentClient,
    sources: Path | str | Sequence[Path | str],
    remote: str,
    *,
    resume: bool = False,
    owner: bool = False,
    durable: bool = False,
    progress: Progress | None = None,
) -> Copied:
    """Copy files and trees of this host into the guest, with their modes, times, links and holes.

    Args:
        sources: One or more; links are copied as links.
        remote: An absolute path in the guest: an existing directory takes the copy into it, otherwise it is the
            copy's name. For more than one source it must be an existing directory.
        resume: Go on with one file of which an earlier, interrupted `put` left a part; and keep that part again.
        owner: Take owners over by number, which takes an agent that works as root. Only with it do files keep their
            setuid and setgid bits.
        durable: Have each file on the guest's disk before it gets its name.

    Raises:
        TransferError: A source cannot be read, or does not fit the destination.
        AgentCallError: The guest refused, or could not write (-32003 not permitted, -32007 too large, -32005 …).
        AgentProtocolError: The guest was lost.
            In all cases no file is left half written under its own name; those before it are there.
    """
    copied = Copied()
    given = [sources] if isinstance(sources, Path | str) else list(sources)
    for source, target in await _choose_remote(client, given, remote):
        told = progress and functools.partial(_add_progress, progress, copied.content_bytes)
        done = await _put_one(client, source, target, resume=resume, owner=owner, durable=durable, progress=told)
        copied.add(done)
    return copied


async def get(
    client: AgentClient,
    sources: str | Sequence[str],
    local: Path | str,
    *,
    resume: bool = False,
    owner: bool = False,
    keep_special: bool = False,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Copied:
    """Copy files and trees of the guest to this host, with their modes, times, links and holes.

    The guest is not trusted: nothing is written outside of `local`, no devices are made, links are not followed.

    Args:
        sources: One or more absolute paths in the guest.
        local: An existing directory takes the copy into it, otherwise it is the copy's name. For more than one source
            it must be an existing directory.
        resume: Go on with one file of which an earlier, interrupted `get` left a part; and keep that part again.
        owner: Take owners over by number, which takes root.
        keep_special: Take over setuid, setgid and sticky bits.
        limits: How much each source may be at most.

    Raises:
        TransferError: What came is not what the guest says it is, or cannot be written here.
        AgentCallError: The guest refused, or could not read.
        AgentProtocolError: The guest was lost.
            In all cases no file is left half written under its own name; those before it are there.
    """
    copied = Copied()
    given = [sources] if isinstance(sources, str) else list(sources)
    for source, target in await _choose_local(client, given, local):
        told = progress and functools.partial(_add_progress, progress, copied.content_bytes)
        open_writer = functools.partial(
            TreeWriter,
            target.parent,
            target.name,
            limits=limits,
            keep_special=keep_special,
            owner=owner,
            resume=resume,
        )
        copied.add(await _get_one(client, source, open_writer, resume=resume, owner=owner, progress=told))
    return copied


async def read_bytes(client: AgentClient, path: str, *, limit_bytes: int = READ_LIMIT_BYTES) -> bytes:
    """Return the content of a file of the guest.

    Raises:
        AgentCallError: It cannot be read.
        TransferError: It has more than `limit_bytes`, or did not arrive as it was sent.
        AgentProtocolError: The guest was lost.
    """
    stream = client.streams.open_incoming()
    job = await _begin(client, "file_read", {"path": path, "stream": stream.number}, stream)
    content = bytearray()
    try:
        stream.widen()
        while data := await stream.read():
            content += data
            if len(content) > limit_bytes:
                raise TransferError(f"{path} has more than {limit_bytes} bytes", path=path, hint="use get")
        result = await job.wait()
    except AgentProtocolError as error:
        raise await why_failed(job, error) from None
    finally:
        _give_up(job, stream)
    _check_content(path, result, content)
    return bytes(content)


async def write_bytes(
    client: AgentClient, path: str, content: bytes, *, mode: int | None = None, append: bool = False
) -> None:
    """Make `content` that of a file of the guest, in one step: whoever reads it sees the old or the new one.

    Args:
        mode: Its permissions; without, those it had, or 0644 when it is new.
        append: Write behind what is there instead.

    Raises:
        AgentCallError: It cannot be written.
        AgentProtocolError: The guest was lost.
    """
    stream = client.streams.open_outgoing()
    params: dict[str, Any] = {"path": path, "stream": stream.number}
    if mode is not None:
        params["mode"] = mode
    if append:
        params["append"] = True
    job = await _begin(client, "file_write", params, stream)
    try:
        stream.open()
        stream.write(content)
        stream.close()
        await stream.drain(0)
        result = await job.wait()
    except AgentProtocolError as error:
        raise await why_failed(job, error) from None
    finally:
        _give_up(job, stream)
    _check_content(path, result, content)


# -- one copy ----------------------------------------------------------------------------------------------------------


async def _put_one(
    client: AgentClient,
    source: Path,
    target: str,
    *,
    resume: bool,
    owner: bool,
    durable: bool,
    progress: Progress | None,
) -> Copied:
    stream = client.streams.open_outgoing()
    params: dict[str, Any] = {"path": target, "stream": stream.number}
    params.update((key, True) for key, wanted in (("resume", resume), ("owner", owner), ("durable", durable)) if wanted)
    job = await _begin(client, "file_put", params, stream)
    copied = Copied()
    try:
        offset, crc = await _find_offset(source, job) if resume else (0, 0)
        stream.open()
        packing = pack_tree(source, copied, owner=owner, offset=offset, crc=crc)
        while batch := await in_thread(_next_batch, packing):
            stream.write(batch)
            await stream.drain()
            if progress is not None:
                progress(copied.content_bytes)
        stream.close()
        await stream.drain(0)
        result = await job.wait()
    except AgentProtocolError as error:
        raise await why_failed(job, error) from None
    finally:
        _give_up(job, stream)
    told = _read_counts(result)
    if (told.entries, told.content_bytes) != (copied.entries, copied.content_bytes):
        raise TransferError(
            f"{copied.entries} entries and {copied.content_bytes} bytes were sent, and the guest took "
            f"{told.entries} and {told.content_bytes}",
            path=str(source),
        )
    return copied


async def _get_one(
    client: AgentClient,
    source: str,
    open_writer: Callable[[], TreeWriter],
    *,
    resume: bool,
    owner: bool,
    progress: Progress | None,
) -> Copied:
    writer = open_writer()
    try:
        params: dict[str, Any] = {"path": source}
        if owner:
            params["owner"] = True
        if resume:
            params["offset"], params["crc32"] = await in_thread(writer.find_resumable)
        stream = client.streams.open_incoming()
        params["stream"] = stream.number
        job = await _begin(client, "file_get", params, stream)
        try:
            stream.widen()
            while data := await stream.read():
                await in_thread(writer.feed, data)
                if progress is not None:
                    progress(writer.copied.content_bytes)
            result = await job.wait()
        except AgentProtocolError as error:
            raise await why_failed(job, error) from None
        finally:
            _give_up(job, stream)
        told = _read_counts(result)
        copied = await in_thread(writer.finish)
        copied.skipped = told.skipped
        copied.changed = [f"{source.rstrip('/')}/{path}" if path else source for path in told.changed]
        return copied
    finally:
        await in_thread(writer.close)


async def _begin(client: AgentClient, method: str, params: dict[str, Any], stream: Incoming | Outgoing) -> Job:
    try:
        return await client.start_job(method, params, timeout_s=START_TIMEOUT_S)
    except BaseException:
        stream.give_up("the copy was not begun")
        raise


def _give_up(job: Job, stream: Incoming | Outgoing) -> None:
    """Stop a copy that has not come to its end; nothing when it has."""
    stream.give_up("the host gave the copy up")
    job.cancel()


async def why_failed(job: Job, error: AgentProtocolError) -> Exception:
    """Return why a copy failed: the guest that gives its stream up says so at the job's end."""
    try:
        await job.wait(LAST_WORD_S)
    except (AgentCallError, AgentProtocolError) as cause:
        return cause
    except WaitTimeout:
        pass
    return error


async def _find_offset(source: Path, job: Job) -> tuple[int, int]:
    """Where to go on with a file, and the CRC-32 of what is before that: at 0, unless the guest has our beginning."""
    offset, crc = job.answer.get("offset"), job.answer.get("crc32")
    if offset is None or crc is None:
        raise AgentProtocolError("the guest agent's answer to file_put does not say where to go on")
    if offset == 0 or not source.is_file() or source.is_symlink():
        return 0, 0
    ours = await in_thread(find_crc, source, offset)
    return (offset, crc) if ours == crc else (0, 0)


def _next_batch(packing: Iterator[bytes | memoryview]) -> bytes:
    """Return the next bytes of a tree, about `BATCH_BYTES` of them; empty at its end."""
    pieces: list[bytes | memoryview] = []
    size = 0
    for piece in packing:
        pieces.append(piece)
        size += len(piece)
        if size >= BATCH_BYTES:
            break
    return b"".join(pieces)


def _add_progress(progress: Progress, before: int, content_bytes: int) -> None:
    progress(before + content_bytes)


def _read_counts(result: Mapping[str, Any]) -> Copied:
    return Copied(result["entries"], result["bytes"], result["skipped"], result["changed"])


def _check_content(path: str, result: Mapping[str, Any], content: bytes | bytearray) -> None:
    if (result["bytes"], result["crc32"]) != (len(content), zlib.crc32(content)):
        raise TransferError(f"the content of {path} did not arrive as it was sent", path=path)


# -- where a copy goes -------------------------------------------------------------------------------------------------


async def _choose_remote(client: AgentClient, sources: Sequence[Path | str], remote: str) -> list[tuple[Path, str]]:
    """Say where in the guest each source goes, as `cp -r` would."""
    found = await find_type(client, remote)
    if found != "directory":
        _check_single(len(sources), remote, found or "not there")
        (source,) = sources
        kind = _type_here(source)
        if remote.endswith("/") and kind != "directory":
            raise TransferError(f"{remote} is not a directory in the guest", path=remote)
        if kind == "directory" and found:
            raise TransferError(f"{remote} is a {found} in the guest, and {source} a directory", path=remote)
        return [(_as_named(source), remote.rstrip("/") or "/")]
    chosen = []
    for source in sources:
        name = _last_part(os.fspath(source))
        target = f"{remote.rstrip('/')}/{name}" if name else remote.rstrip("/") or "/"
        kind, there = _type_here(source), await find_type(client, target, follow=False)
        if there and (kind == "directory") != (there == "directory"):
            raise TransferError(f"{target} is a {there} in the guest, and {source} a {kind}", path=target)
        chosen.append((_as_named(source), target))
    return chosen


async def _choose_local(client: AgentClient, sources: Sequence[str], local: Path | str) -> list[tuple[str, Path]]:
    """Say where on this host each source goes, as `cp -r` would."""
    directory = Path(local)
    if directory.is_dir():
        # A path that ends in `..` has no name of its own to be written under.
        inside = directory.resolve()
        return [(source, inside / name if (name := _last_part(source)) else inside) for source in sources]
    _check_single(len(sources), str(local), "no directory here")
    (source,) = sources
    if os.fspath(local).endswith("/") and await find_type(client, source) != "directory":
        raise TransferError(f"{local} is not a directory here", path=str(local))
    return [(source, directory)]


def _check_single(count: int, target: str, what: str) -> None:
    if count != 1:
        raise TransferError(
            f"{count} sources need an existing directory, and {target} is {what}", path=target, hint="make it first"
        )


def _last_part(path: str) -> str:
    """The name a source has inside of a directory; empty for one that is copied into the directory itself."""
    name = path.rstrip("/").rpartition("/")[2]
    return "" if name in (".", "..") else name


def _as_named(source: Path | str) -> Path:
    """The source itself; a link that is written with a slash at its end means what it leads to."""
    return Path(source).resolve() if os.fspath(source).endswith("/") else Path(source)


def _type_here(source: Path | str) -> str:
    try:
        mode = _as_named(source).lstat().st_mode
    except OSError as error:
        raise TransferError(f"{source}: {error.strerror}", path=str(source)) from error
    return "directory" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "file"


async def find_type(client: AgentClient, path: str, *, follow: bool = True) -> str:
    """Return what there is in the guest (`file`, `directory`, `symlink`, …); empty when nothing is."""
    try:
        found = await client.call("file_stat", {"path": path, "follow": follow})
    except AgentCallError as error:
        if error.code == NOT_FOUND:
            return ""
        raise
    type_: str = check_result("file_stat", found)["type"]
    return type_


async def in_thread(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call `function` in a thread; it is over when this returns, also when the caller was cancelled meanwhile."""
    work = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError:
                continue  # a second one: what is shared with the thread must not be touched before it has ended
        if not work.cancelled():
            work.exception()
        raise
