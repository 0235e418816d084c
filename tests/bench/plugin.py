"""Fifty trivial tests, each with a machine of its own: what the pytest plugin costs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.figures import Figure, Samples, Target
from tests.bench.registry import Settings, benchmark

TESTS, QUICK_TESTS = 50, 3
RUNS_MAX = 3
WITHIN_S = 600.0

_SUITE = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_trivial(vm, number):
    vm.succeed("true")
"""


@benchmark("plugin")
def measure_tests(settings: Settings) -> list[Figure]:
    """Tests with a fresh machine each: one after the other, and on two workers of pytest-xdist."""
    directory = settings.directory / "plugin"
    directory.mkdir()
    count = QUICK_TESTS if settings.quick else TESTS
    (directory / "test_trivial.py").write_text(_SUITE.format(count=count))
    _run(directory, "-k", "trivial[0]")  # makes the template
    alone, beside = [], []
    for number in range(min(settings.runs, RUNS_MAX)):
        settings.say(f"plugin: {number + 1}/{min(settings.runs, RUNS_MAX)}")
        alone.append(_run(directory))
        beside.append(_run(directory, "-n", "2"))
    return [
        Figure(
            f"{count} trivial tests, each with a fresh machine, whole pytest run", "s",
            Samples("one after the other", tuple(alone)), Samples("-n 2", tuple(beside)), (Target(20.0),),
        )
    ]  # fmt: skip


def _run(directory: Path, *words: str) -> float:
    options = ("-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:timeout", "--rootdir", str(directory))
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=directory,
        env={**os.environ, "HOME": str(directory)},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the tests failed: {done.stdout[-2000:]}")
    return time.perf_counter() - began
