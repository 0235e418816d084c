"""The benchmarks by name, and what each is handed when it runs.

A module registers its functions with `@benchmark`; `__main__` imports the modules and runs what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.bench.figures import Figure


@dataclass(frozen=True)
class Settings:
    """How a run is done.

    Attributes:
        runs: How many pairs each comparison takes.
        boots: How many boots in a row the stability benchmark does.
        quick: Less of everything: shows that the harness works, and no more.
        accelerator: What the guests run on; named, because a comparison needs the same on both sides.
        directory: Where instances and scratch files go; its path is short enough for sockets.
        keep: Where the evidence of failures is left.
        say: Tells the person who waits what is being done.
    """

    runs: int
    boots: int
    quick: bool
    accelerator: Literal["tcg", "kvm"]
    directory: Path
    keep: Path
    say: Callable[[str], None]


Run = Callable[[Settings], list[Figure]]


@dataclass(frozen=True)
class Benchmark:
    """One entry of the table of contents."""

    name: str
    summary: str
    run: Run


BENCHMARKS: dict[str, Benchmark] = {}


def benchmark(name: str) -> Callable[[Run], Run]:
    """Register the decorated function as `name`; the first line of its docstring is its summary."""

    def register(run: Run) -> Run:
        if name in BENCHMARKS:
            raise ValueError(f"two benchmarks are called {name}")
        BENCHMARKS[name] = Benchmark(name, (run.__doc__ or "").partition("\n")[0], run)
        return run

    return register
