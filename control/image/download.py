"""Downloads what has a known hash (floor 2), once: it is kept under its hash, and never under it before it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control.errors import ImageBuildError
from control.units import GIB, KIB, format_size

CHUNK_BYTES = 256 * KIB
TELL_S = 5.0


@dataclass(frozen=True)
class Limits:
    """How patient a download is.

    Attributes:
        silence_s: How long the server may say nothing.
        slow_bytes, slow_s: What has to come within which time; a server that sends a byte now and then is given up.
        most_bytes: More than any image has.
    """

    silence_s: float = 30.0
    slow_bytes: int = 64 * KIB
    slow_s: float = 60.0
    most_bytes: int = 64 * GIB


def fetch(url: str, sha256: str, directory: Path, note: Callable[[str], None], limits: Limits | None = None) -> Path:
    """Return a file that hashes to `sha256`: one that is in `directory`, else what `url` gives.

    Raises:
        ImageBuildError: It cannot be had, or is something else; nothing of it is kept.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    final, partial = directory / sha256, directory / f"{sha256}.partial"
    with (directory / f"{sha256}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"another command is downloading {url}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_file() and hash_file(final) == sha256:
            return final
        note(f"downloading {url}")
        try:
            found = _download(url, partial, note, limits or Limits())
            if found != sha256:
                raise ImageBuildError(
                    f"{url} is not what is wanted: its sha256 is {found}, not {sha256}",
                    hint="it has changed there, or sha256sum is of another file",
                )
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
    return final


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, target: Path, note: Callable[[str], None], limits: Limits) -> str:
    """Write to `target` what `url` gives, and return its sha256."""
    total, done, told = hashlib.sha256(), 0, time.monotonic()
    with target.open("wb") as file, _open(url, limits) as response:
        expected = int(response.headers.get("Content-Length") or 0)
        of = f" of {format_size(expected)}" if expected else ""
        for chunk in _read(url, response, expected, limits):
            file.write(chunk)
            total.update(chunk)
            done += len(chunk)
            if time.monotonic() - told >= TELL_S:
                note(f"downloaded {format_size(done)}{of}")
                told = time.monotonic()
    return total.hexdigest()


@contextlib.contextmanager
def _open(url: str, limits: Limits) -> Iterator[Any]:
    # Some mirrors turn away what calls itself Python.
    request = urllib.request.Request(url, headers={"User-Agent": "unhinged-vm"})  # noqa: S310 - seen when it was read
    http, https = _Http(), _Https()
    http.limit_s = https.limit_s = limits.slow_s
    opener = urllib.request.build_opener(http, https)
    with _blaming(url, limits):
        response = opener.open(request, timeout=limits.silence_s)
    with response:
        yield response


class _Bounded(urllib.request.AbstractHTTPHandler):
    """Gives up a server whose headers have no end, though each byte of them is in time."""

    limit_s = 0.0

    def do_open(self, http_class: Any, req: urllib.request.Request, **options: Any) -> http.client.HTTPResponse:
        made: list[http.client.HTTPConnection] = []
        is_late = threading.Event()

        def connect(host: str, **more: Any) -> http.client.HTTPConnection:
            made.append(http_class(host, **more))
            return made[-1]

        def cut() -> None:
            is_late.set()
            for connection in made:
                if connection.sock is not None:
                    with contextlib.suppress(OSError):  # the server was quicker
                        connection.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.limit_s, cut)
        timer.start()
        try:
            response = super().do_open(connect, req, **options)
        finally:
            timer.cancel()
            timer.join()
        if is_late.is_set():
            response.close()
            raise urllib.error.URLError(f"too slow: its answer had not begun after {self.limit_s:g} s")
        return response


class _Http(_Bounded, urllib.request.HTTPHandler):
    pass


class _Https(_Bounded, urllib.request.HTTPSHandler):
    pass


def _read(url: str, response: Any, expected: int, limits: Limits) -> Iterator[bytes]:
    """What the server sends, to its end, which has to be where it said. Raises ImageBuildError."""
    done, began, before = 0, time.monotonic(), 0
    while True:
        with _blaming(url, limits):
            chunk: bytes = response.read1(CHUNK_BYTES)
        if not chunk:
            break
        done += len(chunk)
        if done > limits.most_bytes:
            raise _cannot(url, f"it has no end: {format_size(done)} have come")
        if time.monotonic() - began >= limits.slow_s:
            if done - before < limits.slow_bytes:
                raise _cannot(url, f"too slow: {done - before} bytes in {limits.slow_s:g} s")
            began, before = time.monotonic(), done
        yield chunk
    if expected and done != expected:
        raise _cannot(url, f"the connection ended after {done} of {expected} bytes")


@contextlib.contextmanager
def _blaming(url: str, limits: Limits) -> Iterator[None]:
    """Turn what the network has against it into a sentence about `url`."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _cannot(url, f"the server says {error.code} {error.reason}", "look whether it is still there") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _cannot(url, f"nothing came for {limits.silence_s:g} s") from error
        raise _cannot(url, str(getattr(reason, "strerror", "") or reason or type(error).__name__)) from error


def _cannot(url: str, why: str, hint: str = "try again, or name another server") -> ImageBuildError:
    return ImageBuildError(f"{url} cannot be downloaded: {why}", hint=hint)
