"""A KVM that passed its test and then kills a guest: the VM starts again under TCG, and that is remembered.

Needs a KVM that lies, as on a host that is itself a VM without real nesting; a KVM that works, or none, cannot show it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from control.accel import cache
from control.accel.kvm import KvmHost, KvmVerdict, probe_kvm
from control.process.run import run
from tests.boot.launching import launcher_argv, run_launcher

LAUNCH = launcher_argv("simple_vm", "--boot", "iso", "--until", "agent ready", "--timeout", "110")


def _find_lying_kvm(qemu: Path) -> bool:
    verdict = asyncio.run(probe_kvm(qemu, run))
    return KvmHost().device.exists() and os.access(KvmHost().device, os.R_OK | os.W_OK) and not verdict.works


@pytest.mark.slow
def test_a_kvm_that_dies_gives_way_to_tcg_and_is_remembered(workdir: Path) -> None:
    qemu = Path(shutil.which("qemu-system-x86_64") or "")
    if not _find_lying_kvm(qemu):
        pytest.skip("KVM here works, or is not there: nothing to be learnt about one that lies")
    home = workdir / "cache"
    home.mkdir(mode=0o700)
    key = cache.build_key(qemu, KvmHost())
    assert key is not None
    cache.store_verdict(home / "unhinged", key, KvmVerdict(True, "the test says so", 0.0))
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}

    launch = run_launcher("simple_vm", cwd=workdir, argv=LAUNCH, env=environment)
    assert b"accelerator: kvm" in launch.stderr
    assert b"starting again with tcg" in launch.stderr
    assert b"agent ready" in launch.stdout

    known = cache.find_verdict(home / "unhinged", key)
    assert known is not None
    assert not known.works
