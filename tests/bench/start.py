"""How long `make start` takes to reach QEMU when there is nothing left to set up."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from control.host import find_qemu, look_around
from control.paths import ROOT, VENV_PYTHON, find_instance_files, runtime_directory
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import UP_TIMEOUT_S
from tests.bench.registry import Settings, benchmark

WRAPPER = """#!/bin/bash -p
# Notes when QEMU is executed for a VM; a QEMU that only probes the host has no pid file.
case " $* " in *" -pidfile "*) echo $EPOCHREALTIME >> {stamps} ;; esac
exec {qemu} "$@"
"""
NAME = "bench-start"
SETTLE_S = 30.0
"""How long a launcher that was interrupted may take to bring its VM down."""


@benchmark("start")
def measure_start(settings: Settings) -> list[Figure]:
    """`make start` with nothing to do: from the execution of make to the execution of QEMU."""
    wrapper, stamps = _make_wrapper(settings.directory)
    # ACCEL=auto, as a user has it: its verdict is found in the cache, where the first call of each kind left it.
    options = ["--name", NAME, "--qemu", str(wrapper)]
    python = str(VENV_PYTHON if VENV_PYTHON.exists() else sys.executable)
    by_make = ["make", "-C", str(ROOT), "start", f"ARGS={shlex.join(options)}"]
    direct = [python, str(ROOT / "control" / "enhanced_vm_launcher.py"), *options]
    settings.say("start: first calls, which set up what is missing")
    ours: list[float] = []
    peer: list[float] = []
    try:
        for argv in (by_make, direct):
            _time_to_qemu(argv, settings.directory, stamps)
        for number in range(settings.runs):
            settings.say(f"start: round {number + 1} of {settings.runs}")
            ours.append(_time_to_qemu(by_make, settings.directory, stamps))
            peer.append(_time_to_qemu(direct, settings.directory, stamps))
    finally:
        # The recipe runs in the checkout, and so its instance lies there.
        shutil.rmtree(find_instance_files(runtime_directory(ROOT), NAME).directory, ignore_errors=True)
    return [
        Figure(
            "from make's start to QEMU's",
            "s",
            Samples("make start", tuple(ours)),
            Samples("enhanced_vm_launcher.py, no make and no set-up", tuple(peer)),
            (Target(0.5),),
        )
    ]


def _make_wrapper(directory: Path) -> tuple[Path, Path]:
    """A QEMU that notes when it is executed, by the same clock as `time.time`."""
    wrapper, stamps = directory / "qemu-with-stamp", directory / "stamps"
    wrapper.write_text(WRAPPER.format(stamps=stamps, qemu=find_qemu(look_around())))
    wrapper.chmod(0o700)
    return wrapper, stamps


def _time_to_qemu(argv: list[str], directory: Path, stamps: Path) -> float:
    """Run a launcher until QEMU was executed, interrupt it, and return how long it took to get there."""
    stamps.unlink(missing_ok=True)
    os.mkfifo(stamps)
    reader = os.open(stamps, os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as pipe, _run(argv, directory) as (child, started):
        stamp = _read_stamp(pipe.fileno(), child)
        return stamp - started


@contextlib.contextmanager
def _run(argv: list[str], directory: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """Start a launcher in a session of its own; on leaving it is interrupted, as by Ctrl-C, and waited for."""
    with (directory / "start.log").open("wb") as log:
        started = time.time()
        child = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield child, started
    finally:
        # The second one says that the guest, which has only begun to boot, need not be waited for.
        for _ in range(2):
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0.5)
        child.wait(SETTLE_S)


def _read_stamp(pipe: int, child: subprocess.Popen[bytes]) -> float:
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    deadline = time.monotonic() + UP_TIMEOUT_S
    while time.monotonic() < deadline:
        for _, happened in poller.poll(100):
            if happened & select.POLLIN and (text := os.read(pipe, 100)):
                return float(text)
        if child.poll() is not None:
            raise RuntimeError(f"the launcher ended with exit code {child.returncode} before it started QEMU")
    raise TimeoutError("the launcher did not start QEMU")
