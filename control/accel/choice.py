"""Chooses the accelerator a VM runs on, and says why in one line (floor 2; the launchers call it)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from control.accel import cache
from control.accel.kvm import KvmHost, KvmVerdict, find_device_lack, probe_kvm
from control.errors import ConfigError, HostError
from control.streams import Runner

_TCG = "accelerator: tcg (software emulation, slower)"


@dataclass(frozen=True)
class AcceleratorChoice:
    """What a VM runs on.

    Attributes:
        name: The accelerator, as QEMU's `-accel` takes it.
        reason: One line for the user: what was chosen and why.
        from_cache: The answer was found earlier in this boot of the host.
        verdict: What is known about KVM; None when nobody asked.
    """

    name: Literal["kvm", "tcg"]
    reason: str
    from_cache: bool = False
    verdict: KvmVerdict | None = None


async def choose_accelerator(
    requested: str, qemu_binary: Path, run: Runner, cache_dir: Path, *, host: KvmHost | None = None
) -> AcceleratorChoice:
    """Decide what the VM runs on: KVM when guest code was seen running on it, or else TCG.

    Args:
        requested: `auto` decides by testing; `kvm` insists on KVM; `tcg` tests nothing.
        qemu_binary: Absolute path of the QEMU that will run the VM.
        run: Runs the child processes of the test.
        cache_dir: Where the answer is remembered until the host boots again; need not exist.
        host: Where KVM is looked for; None means this machine.

    Raises:
        ConfigError: `requested` is no accelerator we know.
        HostError: `kvm` was requested and does not work, or QEMU cannot be started; nothing was started.
    """
    if requested == "tcg":
        return AcceleratorChoice("tcg", f"{_TCG}, as asked")
    if requested not in ("auto", "kvm"):
        raise ConfigError(f"ACCEL={requested!r} is not an accelerator", key="ACCEL", hint="use auto, kvm or tcg")
    host = host or KvmHost()
    verdict, from_cache = recall_kvm_verdict(qemu_binary, cache_dir, host)
    if verdict is None:
        verdict = await probe_kvm(qemu_binary, run, host=host)
        if (key := cache.build_key(qemu_binary, host)) is not None:
            cache.store_verdict(cache_dir, key, verdict)
    return _judge(requested, verdict, from_cache)


def choose_without_loop(qemu_binary: Path, run: Runner, cache_dir: Path) -> AcceleratorChoice:
    """As `choose_accelerator` with `auto`, for who has no event loop; it costs none where the answer is known."""
    verdict, from_cache = recall_kvm_verdict(qemu_binary, cache_dir, KvmHost())
    if verdict is not None:
        return _judge("auto", verdict, from_cache)
    import asyncio

    return asyncio.run(choose_accelerator("auto", qemu_binary, run, cache_dir))


def _judge(requested: str, verdict: KvmVerdict, from_cache: bool) -> AcceleratorChoice:
    if verdict.works:
        proof = "proved earlier in this boot of the host" if from_cache else verdict.reason
        return AcceleratorChoice("kvm", f"accelerator: kvm ({proof})", from_cache, verdict)
    if requested == "kvm":
        hint = f"{verdict.hint}; or use ACCEL=tcg" if verdict.hint else "use ACCEL=tcg"
        raise HostError(f"ACCEL=kvm was asked for, but {verdict.reason}", hint=hint)
    return AcceleratorChoice("tcg", f"{_TCG}, because {verdict.reason}", from_cache, verdict)


def recall_kvm_verdict(qemu_binary: Path, cache_dir: Path, host: KvmHost) -> tuple[KvmVerdict | None, bool]:
    """Say whether KVM works, None where it has to be tried; the second value tells whether it is from the cache.

    A device that is missing or closed to this user is seen at once and not remembered: its cure must work at once too.
    """
    lack = find_device_lack(host)
    if lack is not None:
        return lack, False
    key = cache.build_key(qemu_binary, host)
    known = cache.find_verdict(cache_dir, key) if key is not None else None
    return known, known is not None


def remember_kvm_failure(qemu_binary: Path, cache_dir: Path, reason: str, *, host: KvmHost | None = None) -> None:
    """Choose TCG from now on, until the host boots again: a guest has died of a KVM that had passed its test."""
    key = cache.build_key(qemu_binary, host or KvmHost())
    if key is not None:
        cache.store_verdict(cache_dir, key, KvmVerdict(False, f"KVM here fails: {reason}", 0.0))
