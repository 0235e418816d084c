"""The probe's guest on the real QEMU: it must work under TCG, or a verdict against KVM would mean nothing."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from control.accel import rom
from control.accel.choice import choose_accelerator
from control.accel.kvm import judge, probe_kvm, run_probe_guest
from control.errors import HostError
from control.process.run import run

_FOUND = shutil.which("qemu-system-x86_64")
QEMU = Path(_FOUND or "qemu-system-x86_64")

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(_FOUND is None, reason="QEMU is not installed: make deps-install-essential"),
]

# TCG is no test of speed: other tests may run beside this one on a small machine.
TCG_DEADLINE_S = 30.0


@pytest.mark.parametrize(
    ("cpu", "steps"),
    [
        ("max", b"RPLCFXKBWS."),
        ("qemu64", b"RPLCFKBWS."),  # has no xsave
        ("qemu64,-cx16", b"RPLCFBWS."),
    ],
)
async def test_the_guest_runs_to_its_end_under_tcg(cpu: str, steps: bytes) -> None:
    completed = await run_probe_guest(QEMU, run, accelerator="tcg", cpu=cpu, timeout_s=TCG_DEADLINE_S)
    assert (completed.return_code, completed.stdout) == (rom.WORKED, steps), completed.stderr
    assert judge(completed).works


async def test_a_processor_without_long_mode_is_told_apart() -> None:
    completed = await run_probe_guest(QEMU, run, accelerator="tcg", cpu="qemu32", timeout_s=TCG_DEADLINE_S)
    assert completed.return_code == rom.WRONG_RESULT
    assert "computes a wrong result at the switch to long mode" in judge(completed).reason


async def test_an_instruction_the_processor_lacks_is_an_exception_at_its_step() -> None:
    # Under TCG without fxsr the instruction is undefined: the guest's own exception handler must report it.
    completed = await run_probe_guest(QEMU, run, accelerator="tcg", cpu="max,-fxsr", timeout_s=TCG_DEADLINE_S)
    assert completed.return_code == rom.UNEXPECTED_EXCEPTION, completed
    assert "gets an exception at fxsave" in judge(completed).reason


async def test_kvm_is_judged_within_the_deadline(tmp_path: Path) -> None:
    """On a host whose KVM works this is the positive test; on one that lies it must be found out, with a reason."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is missing or closed to this user: sudo modprobe kvm_intel, or join the group kvm")
    started = time.monotonic()
    verdict = await probe_kvm(QEMU, run)
    seconds = time.monotonic() - started
    print(f"{verdict} in {seconds:.3f} s")
    assert seconds < 6.0
    assert verdict.reason
    if verdict.works:
        return
    assert "KVM" in verdict.reason
    with pytest.raises(HostError):
        await choose_accelerator("kvm", QEMU, run, tmp_path / "cache")
    first = await choose_accelerator("auto", QEMU, run, tmp_path / "cache")
    assert first.name == "tcg"
    assert first.from_cache
