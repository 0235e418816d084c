"""What the figures were measured on: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from control.paths import ROOT
from control.units import GIB


def read_machine(qemu: str) -> dict[str, Any]:
    """Collect the facts of this host, of the QEMU program `qemu`, and of the checkout."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _read_cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _first_line([qemu, "--version"]).removeprefix("QEMU emulator version "),
        "commit": _read_commit(),
        "load": read_load(),
    }


def read_load() -> float:
    """The load average of the last minute: what else this machine was doing."""
    return os.getloadavg()[0]


def _read_cpu() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else platform.machine()


def _read_commit() -> str:
    commit = _first_line(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    changed = _first_line(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit} with changes" if changed else commit


def _first_line(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.partition("\n")[0].strip()
