"""Whether boot after boot succeeds, also on a machine that is busy with something else."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from control.paths import ROOT, VENV_PYTHON, find_instance_files, runtime_directory
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import UP_TIMEOUT_S
from tests.bench.registry import Settings, benchmark

BUSY_LOOPS = 4
BLOCK = 10
"""So many boots alone, then so many beside the busy loops, and so on: what else happens weighs on both."""

KILL_AFTER_S = 60.0
"""On top of the launcher's own timeout: a launcher that does not keep it is killed, and that is a failure too."""


@benchmark("stability")
def measure_stability(settings: Settings) -> list[Figure]:
    """Boot after boot through the launcher, every other ten beside four busy loops; none may fail."""
    alone: list[float] = []
    busy: list[float] = []
    failures: list[str] = []
    block = min(BLOCK, max(1, settings.boots // 2))
    for begin in range(0, settings.boots, block):
        beside = (begin // block) % 2 == 1
        with _busy_loops(BUSY_LOOPS if beside else 0):
            for number in range(begin, min(begin + block, settings.boots)):
                seconds, failure = _boot(settings, number)
                (busy if beside else alone).append(seconds)
                failures += [failure] if failure else []
        done = len(alone) + len(busy)
        settings.say(f"stability: {done} of {settings.boots} boots done, {len(failures)} failed")
    counts = f"{len(alone)} boots alone and {len(busy)} beside {BUSY_LOOPS} busy loops"
    notes = tuple(failures) or (f"{counts}; all came up.",)
    figures = [
        Figure(
            f"failed, of {settings.boots} boots in a row", "", Samples("failures", (float(len(failures)),)), None,
            (Target(0.0),), notes,
        ),
        Figure("a boot by itself, whole process", "s", Samples("alone", tuple(alone))),
    ]  # fmt: skip
    if busy:
        figures.append(Figure("a boot beside busy loops, whole process", "s", Samples("busy", tuple(busy))))
    return figures


def _boot(settings: Settings, number: int) -> tuple[float, str]:
    """Boot once through the enhanced launcher; return the seconds, and what went wrong when something did."""
    name = f"boot-{number}"
    python = str(VENV_PYTHON if VENV_PYTHON.exists() else sys.executable)
    argv = [python, str(ROOT / "control" / "enhanced_vm_launcher.py"), "--accel", settings.accelerator]
    argv += ["--name", name, "--until", "agent ready", "--timeout", f"{UP_TIMEOUT_S:g}"]
    files = find_instance_files(runtime_directory(settings.directory), name)
    output = settings.directory / f"{name}.output"
    started = time.monotonic()
    with output.open("wb") as log:
        child = subprocess.Popen(argv, cwd=settings.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            child.wait(UP_TIMEOUT_S + KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            child.kill()
        finally:
            child.wait()
    seconds = time.monotonic() - started
    if child.returncode == 0 and not files.pid.exists():
        shutil.rmtree(files.directory)
        output.unlink()
        return seconds, ""
    evidence = settings.keep / name
    shutil.rmtree(evidence, ignore_errors=True)
    evidence.mkdir(parents=True)
    for path in (output, files.serial_log, files.qemu_log, files.argv, files.state, files.messages):
        if path.exists():
            shutil.copy(path, evidence / path.name)
    last = output.read_bytes()[-300:].decode("utf-8", "replace").strip().replace("\n", " / ")
    left = ", and left a QEMU running" if files.pid.exists() else ""
    where = evidence.relative_to(ROOT) if evidence.is_relative_to(ROOT) else Path(evidence.name)
    return seconds, f"boot {number} ended with exit code {child.returncode}{left}: {last}; its files are in {where}"


@contextlib.contextmanager
def _busy_loops(count: int) -> Iterator[None]:
    """Keep `count` processes busy for the body."""
    loops = [subprocess.Popen([sys.executable, "-IS", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
