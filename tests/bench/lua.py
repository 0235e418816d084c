"""Lua interpreters that stay, beside one that is started anew for each piece of code."""

from __future__ import annotations

import statistics
import subprocess
import time

from control.lua import LuaVMs
from tests.bench.figures import Figure, Samples, Target
from tests.bench.memory import read_proportional_mb
from tests.bench.registry import Settings, benchmark

MANY, QUICK_MANY = 100, 10
CALLS, QUICK_CALLS = 2000, 200
MILLISECOND = 1000.0


@benchmark("lua")
def measure_lua(settings: Settings) -> list[Figure]:
    """A hundred interpreters at once, and what an execution takes, beside a process for each."""
    settings.say("lua: a hundred at once")
    many = QUICK_MANY if settings.quick else MANY
    calls = QUICK_CALLS if settings.quick else CALLS
    created, executed, processes = [], [], []
    weight = 0.0
    for _ in range(settings.runs):
        with LuaVMs() as vms:
            began = time.perf_counter()
            cluster = vms.create_vm_cluster("many", many)
            answers = vms.broadcast_to_cluster("many", "return 1")
            created.append(time.perf_counter() - began)
            if len(answers) != many or vms.get_stats()["alive"] != many:
                raise RuntimeError("not all of them are alive")
            weight = sum(read_proportional_mb(vms.get_vm(name).pid) for name in cluster.members)
            executed.append(statistics.median(_time_execution(vms) for _ in range(calls)) * MILLISECOND)
        processes.append(statistics.median(_time_process() for _ in range(20)) * MILLISECOND)
    return [
        Figure(
            f"{many} interpreters made, each has answered",
            "s",
            Samples("create_vm_cluster, broadcast", tuple(created)),
            None,
            (),
            (f"together they weigh {weight:.1f} MB (Pss).",),
        ),
        Figure(
            f"an execution among {many} that are alive, median of {calls}",
            "ms",
            Samples("execute_vm_sync", tuple(executed)),
            Samples("lua5.4 -e, a process for each", tuple(processes)),
            (Target(1.0),),
        ),
    ]


def _time_execution(vms: LuaVMs) -> float:
    began = time.perf_counter()
    vms.execute_vm_sync("many-1", "return 1")
    return time.perf_counter() - began


def _time_process() -> float:
    began = time.perf_counter()
    subprocess.run(["lua5.4", "-e", "print(1)"], check=True, capture_output=True)
    return time.perf_counter() - began
