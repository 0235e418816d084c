"""Remembers whether KVM works, until this host boots again (floor 2; `choice.py` calls it).

The answer is tied to all that could change it: the boot, the QEMU binary, the user, the device and the probe itself.
The cache is a convenience and is never trusted further than its owner: what is not a private file of this user
is ignored, and a cache that cannot be written costs time, not success.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from control.accel import rom
from control.accel.kvm import KvmHost, KvmVerdict
from control.log import LOG

UNFIRM_VERDICT_S = 600.0
"""How long a verdict holds that a busy machine may have caused."""

_SIZE_LIMIT_BYTES = 64 * 1024


def build_key(qemu_binary: Path, host: KvmHost) -> dict[str, str] | None:
    """Return all that the verdict depends on, or None when some of it cannot be read and nothing may be cached."""
    try:
        binary = qemu_binary.stat()
        device = host.device.stat()
        boot_id = host.boot_id.read_text(encoding="ascii").strip()
        resolved = qemu_binary.resolve(strict=True)
    except (OSError, UnicodeDecodeError) as error:
        LOG.debug("the KVM verdict is not cached: %s", error)
        return None
    if not boot_id:
        return None
    return {
        "boot": boot_id,
        "qemu": f"{resolved} {binary.st_size} {binary.st_mtime_ns} {binary.st_ino}",
        "user": f"{os.getuid()} {os.getgid()} {sorted(os.getgroups())}",
        "device": f"{device.st_ino} {device.st_rdev} {device.st_mode:o} {device.st_uid} {device.st_gid}",
        "probe": hashlib.sha256(rom.build_image()).hexdigest(),
    }


def find_verdict(cache_dir: Path, key: dict[str, str]) -> KvmVerdict | None:
    """Return the verdict remembered for `key`; None when there is none that can be trusted."""
    try:
        content = _read_private(_file_of(cache_dir, key))
        if content is None:
            return None
        entry = json.loads(content)
        if not isinstance(entry, dict) or entry.get("key") != key or not _is_current(entry.get("expires_s")):
            return None
        return _verdict_of(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        LOG.debug("the cached KVM verdict is ignored: %s", error)
        return None


def store_verdict(cache_dir: Path, key: dict[str, str], verdict: KvmVerdict) -> None:
    """Remember a verdict; a directory that cannot be made, written or trusted is noted in the log and left alone."""
    expires_s = None if verdict.firm else _seconds_since_boot() + UNFIRM_VERDICT_S
    entry = {
        "key": key,
        "works": verdict.works,
        "reason": verdict.reason,
        "hint": verdict.hint,
        "seconds": verdict.seconds,
        "expires_s": expires_s,
    }
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(cache_dir.lstat(), stat.S_ISDIR):
            LOG.debug("the KVM verdict is not cached: %s is not a private directory of this user", cache_dir)
            return
        descriptor, temporary = tempfile.mkstemp(dir=cache_dir, prefix=".kvm-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(entry, file)
            Path(temporary).replace(_file_of(cache_dir, key))
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        LOG.debug("the KVM verdict is not cached: %s", error)


def _file_of(cache_dir: Path, key: dict[str, str]) -> Path:
    # One file for each QEMU binary, so that two of them do not push each other out.
    return cache_dir / f"kvm-{hashlib.sha256(key['qemu'].encode(errors='surrogateescape')).hexdigest()[:12]}.json"


def _read_private(path: Path) -> bytes | None:
    if not _is_private(path.parent.lstat(), stat.S_ISDIR):
        LOG.debug("the cached KVM verdict is ignored: %s is not a private directory of this user", path.parent)
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not _is_private(os.fstat(file.fileno()), stat.S_ISREG):
            LOG.debug("the cached KVM verdict is ignored: %s is not a private file of this user", path)
            return None
        return file.read(_SIZE_LIMIT_BYTES)


def _is_private(found: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return is_kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def _is_current(expires_s: object) -> bool:
    return expires_s is None or (isinstance(expires_s, float) and _seconds_since_boot() < expires_s)


def _seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _verdict_of(entry: dict[str, object]) -> KvmVerdict | None:
    works, reason, hint, seconds = (entry.get(name) for name in ("works", "reason", "hint", "seconds"))
    if not isinstance(works, bool) or not isinstance(reason, str) or not isinstance(hint, str):
        return None
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        return None
    return KvmVerdict(works, reason, float(seconds), hint, firm=entry.get("expires_s") is None)
