"""How long a cold boot takes, and what the launcher adds to it."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from control.paths import ROOT, VENV_PYTHON
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import UP_TIMEOUT_S, Instance, make_instance, open_bare_guest, open_guest, open_null_view
from tests.bench.registry import Settings, benchmark

AGENT_READY = b"agent ready"


@benchmark("boot")
def measure_boot(settings: Settings) -> list[Figure]:
    """Cold boot until the agent answers: through the launcher's code, and the same command line bare."""
    instance = make_instance(settings, "boot")
    ours: list[float] = []
    bare: list[float] = []
    seen: list[float] = []
    ended: list[float] = []
    phases: list[dict[str, float]] = []
    for number in range(settings.runs):
        settings.say(f"boot: round {number + 1} of {settings.runs}")
        seconds, reached = asyncio.run(_boot_ours(instance))
        ours.append(seconds)
        phases.append(reached)
        bare.append(_boot_bare(instance))
        shown, whole = _boot_as_process(settings)
        seen.append(shown)
        ended.append(whole)
    peer = Samples("bare QEMU, agent answers", tuple(bare))
    steps = ", ".join(
        f"{phase} {statistics.median(reached[phase] for reached in phases if phase in reached):.2f} s"
        for phase in ("firmware", "kernel", "init", "agent")
        if any(phase in reached for reached in phases)
    )
    return [
        Figure(
            "QEMU's start until the agent answers",
            "s",
            Samples("open_vm, agent answers", tuple(ours)),
            peer,
            (Target(2.6), Target(0.25, basis="difference")),
            (f"medians of the phases, from QEMU's start: {steps}.",),
        ),
        Figure(
            "whole process until the console shows it",
            "s",
            Samples("simple_vm_launcher.py, `agent ready` on stdout", tuple(seen)),
            peer,
        ),
        Figure(
            "whole process until it has ended",
            "s",
            Samples("simple_vm_launcher.py --until 'agent ready'", tuple(ended)),
            peer,
        ),
    ]


async def _boot_ours(instance: Instance) -> tuple[float, dict[str, float]]:
    instance.reset()
    with open_null_view() as view:
        started = time.monotonic()
        async with open_guest(instance, view) as vm:
            return time.monotonic() - started, dict(vm.phases)


def _boot_bare(instance: Instance) -> float:
    instance.reset()
    started = time.monotonic()
    with open_bare_guest(instance.bare_argv, instance.files) as guest:
        guest.shake_hands()
        return time.monotonic() - started


def _boot_as_process(settings: Settings) -> tuple[float, float]:
    """Run the simple launcher; return when its stdout showed that the agent is ready, and when it had ended."""
    started = time.monotonic()
    with open_launcher(settings, "simple", "--until", "agent ready") as child:
        wait_for_output(child, AGENT_READY)
        shown = time.monotonic() - started
        child.communicate(timeout=UP_TIMEOUT_S)
        whole = time.monotonic() - started
    if child.returncode != 0:
        raise RuntimeError(f"the launcher ended with exit code {child.returncode}")
    return shown, whole


@contextlib.contextmanager
def open_launcher(settings: Settings, kind: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `control/KIND_vm_launcher.py` (or the unhinged one) with its console on a pipe; it is ended on leaving."""
    script = "unhinged_launcher.py" if kind == "unhinged" else f"{kind}_vm_launcher.py"
    python = VENV_PYTHON if VENV_PYTHON.exists() else Path(sys.executable)
    options = ("--accel", settings.accelerator, "--name", f"process-{kind}", "--timeout", f"{UP_TIMEOUT_S:g}")
    log = settings.directory / f"{kind}.stderr"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [str(python), str(ROOT / "control" / script), *options, *arguments],
            cwd=settings.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()  # the launcher brings its VM down in order
        if child.stdout is not None:
            child.stdout.close()
        child.wait()


def wait_for_output(child: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Read the launcher's stdout until it holds `text`; return all of it.

    Raises:
        RuntimeError: It ended first.
    """
    if child.stdout is None:
        raise ValueError("the launcher's stdout is not a pipe")
    received = bytearray()
    while text not in received:
        chunk = child.stdout.read1(65536)  # type: ignore[attr-defined]
        if not chunk:
            raise RuntimeError(f"the launcher ended before it showed {text!r}: {bytes(received[-400:])!r}")
        received += chunk
    return bytes(received)
