"""How much memory our processes take on the host, beside a Python that does nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

from control.paths import ROOT
from tests.bench.boot import AGENT_READY, open_launcher, wait_for_output
from tests.bench.console import (
    BURST_BLOCKS,
    QUICK_BLOCKS,
    build_burst,
    build_making_argv,
    build_sending_argv,
    make_console_instance,
)
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import Instance
from tests.bench.holder import encode_spec
from tests.bench.payload import BLOCK_BYTES
from tests.bench.registry import Settings, benchmark

LAUNCHERS = ("simple", "enhanced", "unhinged")
ENOUGH_RUNS = 3
"""Memory hardly varies from run to run."""

LAUNCHER_LIMIT_MB = 60.0
SUPERVISOR_LIMIT_MB = 35.0
BARE = "import asyncio, sys; asyncio.run(asyncio.sleep(0)); print('ready', flush=True); sys.stdin.read()"


@benchmark("memory")
def measure_memory(settings: Settings) -> list[Figure]:
    """Peak memory of the launchers during a boot, and of a process that only holds a VM, also through a burst."""
    runs = min(settings.runs, ENOUGH_RUNS)
    instance = make_console_instance(settings, "memory")
    blocks = QUICK_BLOCKS if settings.quick else BURST_BLOCKS
    peaks: dict[str, list[float]] = {name: [] for name in (*LAUNCHERS, "bare", "holder", "burst", "proportional")}
    for number in range(runs):
        settings.say(f"memory: round {number + 1} of {runs}")
        for kind in LAUNCHERS:
            with open_launcher(settings, kind) as child:
                wait_for_output(child, AGENT_READY)
                peaks[kind].append(read_status_mb(child.pid, "VmHWM"))
        peaks["bare"].append(_measure_bare())
        for name, value in _measure_holder(instance, blocks).items():
            peaks[name].append(value)
    bare = Samples("bare Python with asyncio", tuple(peaks["bare"]))
    limit = (Target(LAUNCHER_LIMIT_MB),)
    figures = [
        Figure(f"peak until the agent is ready, {kind}", "MB", Samples("VmHWM", tuple(peaks[kind])), bare, limit)
        for kind in LAUNCHERS
    ]
    size = blocks * BLOCK_BYTES / 1e6
    return [
        *figures,
        Figure(
            "peak of a process that only holds a VM",
            "MB",
            Samples("VmHWM, agent ready", tuple(peaks["holder"])),
            bare,
            (Target(SUPERVISOR_LIMIT_MB),),
            ("this is the least a supervisor will need; a target of the work on many VMs.",),
        ),
        Figure(f"the same after a burst of {size:.0f} MB", "MB", Samples("VmHWM", tuple(peaks["burst"])), bare),
        Figure("its share of what is shared, and its own", "MB", Samples("Pss", tuple(peaks["proportional"])), bare),
    ]


def _measure_bare() -> float:
    with subprocess.Popen([sys.executable, "-I", "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        _expect(child.stdout, b"ready\n")
        return read_status_mb(child.pid, "VmHWM")


def _measure_holder(instance: Instance, blocks: int) -> dict[str, float]:
    """Let a process of its own hold the VM, and look at it from outside, before and after a burst."""
    burst = build_burst("/tmp/plain", blocks, 0)
    instance.reset()
    command = [sys.executable, "-m", "tests.bench.holder", str(instance.files.directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        _tell(child.stdin, encode_spec(instance.spec))
        _expect(child.stdout, b"ready\n")
        peaks = {
            "holder": read_status_mb(child.pid, "VmHWM"),
            "proportional": read_proportional_mb(child.pid),
        }
        for argv in (build_making_argv(burst), build_sending_argv(burst, "console")):
            _tell(child.stdin, json.dumps(argv).encode() + b"\n")
            _expect(child.stdout, b"0\n")
        peaks["burst"] = read_status_mb(child.pid, "VmHWM")
    return peaks


def _tell(pipe: IO[bytes] | None, line: bytes) -> None:
    if pipe is None:
        raise ValueError("not a pipe")
    pipe.write(line)
    pipe.flush()


def _expect(pipe: IO[bytes] | None, line: bytes) -> None:
    """Read one line. Raises RuntimeError when it is another one, or none."""
    found = pipe.readline() if pipe is not None else b""
    if found != line:
        raise RuntimeError(f"the process said {found!r} where {line!r} was due")


def read_status_mb(pid: int, name: str) -> float:
    """Read a field of /proc/PID/status (proc(5)); VmHWM is the most that was ever resident since its execution."""
    return _read_kilobytes(Path(f"/proc/{pid}/status"), name) * 1024 / 1e6


def read_proportional_mb(pid: int) -> float:
    return _read_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss") * 1024 / 1e6


def read_private_mb(pid: int) -> float:
    """What a process has written, and shares with nobody. A page of a file counts only once it was copied."""
    return _read_kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Anonymous") * 1024 / 1e6


def _read_kilobytes(path: Path, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"{path} has no {name}")
    return int(match[1])
