"""Files to and from a guest (floor 5), through a directory of the server's own that is private and goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from control.errors import ConfigError, HostError
from control.units import format_size
from control.web.context import answer, choose_machine, get_context, note

PIECE_BYTES = 256 * 1024
TRANSFER_S = 24 * 3600.0


async def upload(request: web.Request) -> web.StreamResponse:
    """`PUT /api/vms/NAME/files?path=/root/x`: the request's body becomes that file of the guest."""
    context, name, path = get_context(request), choose_machine(request), _read_path(request)
    base = path.rsplit("/", 1)[1]
    if base in ("", ".", ".."):
        raise ConfigError(f"{path[:80]!r} does not end with the name of a file", key="path", hint="path=/root/file")
    most = context.settings.upload_bytes
    if request.content_length is not None and request.content_length > most:
        raise HostError(f"this file is larger than {format_size(most)}", hint="--upload-limit raises that")
    async with _open_scratch(context.settings.directory) as scratch:
        local = scratch / base
        size = await _receive(request, local, most)
        await context.machines.call(name, "put", {"sources": [str(local)], "target": path}, timeout_s=TRANSFER_S)
    note(request, "upload", name, path=path, bytes=size)
    return answer({"path": path, "bytes": size})


async def download(request: web.Request) -> web.StreamResponse:
    """`GET /api/vms/NAME/files?path=/etc/hostname`: that file of the guest; a directory comes as a tar file."""
    context, name, path = get_context(request), choose_machine(request), _read_path(request)
    async with _open_scratch(context.settings.directory) as scratch:
        await context.machines.call(
            name, "get", {"sources": [path], "target": str(scratch / "got")}, timeout_s=TRANSFER_S
        )
        found, base = scratch / "got", path.rstrip("/").rsplit("/", 1)[-1] or "root"
        kind = found.lstat().st_mode
        if stat.S_ISDIR(kind):
            await context.machines.run(_pack, found, base, scratch / "tar")
            found, base = scratch / "tar", f"{base}.tar"
        elif not stat.S_ISREG(kind):
            raise ConfigError(f"{path[:80]!r} is neither a file nor a directory", key="path")
        note(request, "download", name, path=path, bytes=found.stat().st_size)
        return await _send(request, found, base)


async def _receive(request: web.Request, local: Path, most: int) -> int:
    size = 0
    with local.open("xb") as file:
        async for chunk in request.content.iter_chunked(PIECE_BYTES):
            size += len(chunk)
            if size > most:
                raise HostError(f"this file is larger than {format_size(most)}", hint="--upload-limit raises that")
            await asyncio.to_thread(file.write, chunk)
    return size


async def _send(request: web.Request, found: Path, base: str) -> web.StreamResponse:
    """Send a file that a guest has made, so that a browser keeps it and never shows it as a page of ours."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{quote(base, safe='')}",
            "Content-Security-Policy": "sandbox",
        }
    )
    response.content_length = found.stat().st_size
    await response.prepare(request)
    with found.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, PIECE_BYTES):
            await response.write(chunk)
    await response.write_eof()
    return response


def _pack(directory: Path, base: str, target: Path) -> None:
    with tarfile.open(target, "w") as archive:
        archive.add(directory, arcname=base)


def _read_path(request: web.Request) -> str:
    path = request.query.get("path", "")
    if not path.startswith("/") or "\0" in path or len(path) > 4000:
        raise ConfigError(f"{path[:80]!r} is no absolute path of the guest", key="path", hint="path=/etc/hostname")
    return path


@contextlib.asynccontextmanager
async def _open_scratch(directory: Path) -> AsyncIterator[Path]:
    with _naming_errors():
        scratch = Path(tempfile.mkdtemp(prefix="transfer.", dir=directory))
    try:
        with _naming_errors():
            yield scratch
    finally:
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)


@contextlib.contextmanager
def _naming_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        raise HostError(
            f"{error.strerror or error}: {error.filename or 'this host'}", hint="make room there"
        ) from error


def remove_leftovers(directory: Path) -> None:
    """Remove what a server that was killed had under way."""
    for entry in os.scandir(directory):
        if entry.name.startswith("transfer."):
            shutil.rmtree(entry.path, ignore_errors=True)
