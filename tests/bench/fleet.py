"""VMs kept in a file: what each command costs as a whole process, what a supervisor weighs, and twenty VMs at once."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from control.paths import ROOT, find_instance_files, runtime_directory
from tests.bench.figures import Figure, Samples, Target
from tests.bench.guest import open_bare_guest
from tests.bench.memory import read_proportional_mb, read_status_mb
from tests.bench.registry import Settings, benchmark

CONFIGURED = 100
AT_ONCE, QUICK_AT_ONCE = 20, 3
BURST_LINES = 500
UP_TIMEOUT_S = 900
COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from control.cli.begin import run; run()",
)
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
VM = """
[vm.{name}]
memory = "{memory}M"
cpus = 1
accel = "{accel}"
net = "none"
"""
MILLISECOND, KILOBYTE, MEGABYTE = 1000.0, 1024, 1e6


@dataclass(frozen=True)
class Cost:
    """One command, as a whole process."""

    seconds: float
    stdout: bytes


class Fleet:
    """A directory with a configuration of VMs, and the command run in it."""

    def __init__(self, directory: Path, names: list[str], accelerator: str, *, memory: int = 256) -> None:
        directory.mkdir()
        self.directory = directory
        text = "".join(VM.format(name=name, accel=accelerator, memory=memory) for name in names)
        (directory / "unhinged.toml").write_text(text)

    def run(self, *words: str) -> Cost:
        """Run a command to its end. Raises RuntimeError when it fails."""
        began = time.perf_counter()
        with subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            assert child.stdout is not None and child.stderr is not None
            stdout, stderr = child.stdout.read(), child.stderr.read()
        seconds = time.perf_counter() - began
        if child.returncode != 0:
            raise RuntimeError(f"unhinged {' '.join(words)}: {stderr.decode('utf-8', 'replace')}")
        return Cost(seconds, stdout)

    def measure_peak_mb(self, *words: str) -> float:
        """The most memory a command takes at once.

        Told by a small process between it and us: what a process had before it became another program counts as well
        (getrusage(2), ru_maxrss), and we may have had gigabytes.
        """
        argv = [sys.executable, "-I", "-c", PEAK, *COMMAND, *words]
        done = subprocess.run(argv, cwd=self.directory, check=True, capture_output=True)
        return int(done.stdout) * KILOBYTE / MEGABYTE

    def time(self, runs: int, *words: str) -> tuple[float, ...]:
        """Milliseconds of so many runs, after one that does not count."""
        self.run(*words)
        return tuple(self.run(*words).seconds * MILLISECOND for _ in range(runs))


@contextmanager
def _open_fleet(settings: Settings, name: str, names: list[str], **more: int) -> Iterator[Fleet]:
    fleet = Fleet(settings.directory / name, names, settings.accelerator, **more)
    try:
        yield fleet
    finally:
        fleet.run("kill", "--all")
        shutil.rmtree(fleet.directory)


@benchmark("fleet")
def measure_fleet(settings: Settings) -> list[Figure]:
    """Commands on VMs of a file as whole processes, a supervisor's memory, and many VMs started at once."""
    return [*_measure_list(settings), *_measure_one(settings), *_measure_start(settings), *_measure_many(settings)]


def _measure_list(settings: Settings) -> list[Figure]:
    settings.say(f"fleet: list of {CONFIGURED}")
    with _open_fleet(settings, "hundred", [f"vm-{number}" for number in range(CONFIGURED)]) as fleet:
        times = fleet.time(settings.runs, "list")
        peak = fleet.measure_peak_mb("list")
    return [
        Figure(f"list of {CONFIGURED} VMs", "ms", Samples("whole process", times), _bare(settings), (Target(150.0),)),
        Figure("its peak memory", "MB", Samples("ru_maxrss", (peak,)), None, (Target(40.0),)),
    ]


def _bare(settings: Settings) -> Samples:
    """A Python that does nothing."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        return (time.perf_counter() - began) * MILLISECOND

    return Samples("python -c ''", tuple(run() for _ in range(settings.runs)))


def _measure_one(settings: Settings) -> list[Figure]:
    settings.say("fleet: one VM that runs")
    with _open_fleet(settings, "one", ["one"]) as fleet:
        fleet.run("start", "one", "--wait", "agent", "--wait-timeout", str(UP_TIMEOUT_S))
        _wait_until_calm(fleet, "one")
        bare = _bare(settings)
        executed = fleet.time(settings.runs, "exec", "one", "--", "true")
        told = fleet.time(settings.runs, "status", "one")
        pid = json.loads(fleet.run("--json", "status", "one").stdout)["supervisor_pid"]
        resident, shared = read_status_mb(pid, "VmRSS"), read_proportional_mb(pid)
    return [
        Figure("exec NAME -- true", "ms", Samples("whole process", executed), bare, (Target(200.0),)),
        Figure("status NAME", "ms", Samples("whole process", told), bare, (Target(150.0),)),
        Figure("a supervisor", "MB", Samples("VmRSS, after its guest has booted", (resident,)), None, (Target(35.0),)),
        Figure("its own memory and its share of the rest", "MB", Samples("Pss", (shared,))),
    ]


def _wait_until_calm(fleet: Fleet, name: str) -> None:
    fleet.run("wait", name, "--for", "boot", "--timeout", str(UP_TIMEOUT_S))


def _measure_start(settings: Settings) -> list[Figure]:
    """`start --wait agent` against the same QEMU by itself, until its agent has answered, in turn."""
    ours: list[float] = []
    peer: list[float] = []
    with _open_fleet(settings, "pair", ["pair"]) as fleet:
        files = find_instance_files(runtime_directory(fleet.directory), "pair")
        for number in range(settings.runs + 1):
            settings.say(f"fleet: start against bare QEMU, {number} of {settings.runs}")
            ours.append(fleet.run("start", "pair", "--wait", "agent", "--wait-timeout", str(UP_TIMEOUT_S)).seconds)
            fleet.run("stop", "pair", "--timeout", "60")
            argv = [word for word in json.loads(files.argv.read_bytes()) if word != "-S"]
            began = time.perf_counter()
            with open_bare_guest(argv, files) as bare:
                bare.shake_hands()
                peer.append(time.perf_counter() - began)
            for path in files.fleeting:
                path.unlink(missing_ok=True)
    # The first pair does not count: its boot formats the disk.
    return [
        Figure(
            "until the agent has answered",
            "s",
            Samples("unhinged start --wait agent", tuple(ours[1:])),
            Samples("the same QEMU by itself", tuple(peer[1:])),
            (Target(0.25, basis="difference"),),
        )
    ]


def _measure_many(settings: Settings) -> list[Figure]:
    """All at once until each agent has answered; then each guest writes a burst, and all of it is looked for."""
    count = QUICK_AT_ONCE if settings.quick else AT_ONCE
    names = [f"vm-{number}" for number in range(count)]
    settings.say(f"fleet: {count} at once")
    with _open_fleet(settings, "many", names, memory=192) as fleet:
        took = fleet.run("start", "--all", "--wait", "agent", "--wait-timeout", str(UP_TIMEOUT_S)).seconds
        lost = sum(count_lost_lines(fleet.directory, name, fleet.run) for name in names)
        weights = [
            read_proportional_mb(vm["supervisor_pid"])
            for vm in json.loads(fleet.run("--json", "status", "--all").stdout)["vms"]
        ]
    return [
        Figure(f"{count} VMs started at once, until the last agent answers", "s", Samples("start --all", (took,))),
        Figure("lines lost of their consoles", "lines", Samples("lost", (float(lost),)), None, (Target(0.0),)),
        Figure("one of their supervisors", "MB", Samples("Pss", tuple(weights))),
    ]


def count_lost_lines(directory: Path, name: str, run: Callable[..., object]) -> int:
    """Let the guest write numbered lines to its console, and count those that its log has not.

    Messages of the agent and the kernel stand among them: bytes may be added.
    """
    nonce = secrets.token_hex(4)
    burst = f"i=0; while [ $i -lt {BURST_LINES} ]; do echo {nonce}-$i; i=$((i+1)); done > /dev/ttyS0"
    run("exec", name, "--", "sh", "-c", burst)
    log = find_instance_files(runtime_directory(directory), name).serial_log
    deadline = time.monotonic() + UP_TIMEOUT_S
    while f"{nonce}-{BURST_LINES - 1}".encode() not in log.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = iter(log.read_bytes().partition(f"{nonce}-0".encode())[2])
    lines = [f"\r\n{nonce}-{number}".encode() for number in range(1, BURST_LINES)]
    return sum(not all(byte in kept for byte in line) for line in lines)
