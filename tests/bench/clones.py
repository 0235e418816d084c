"""Templates, clones, machines for one command, snapshots: each as a person waits for it, beside a boot."""

from __future__ import annotations

import shutil
import time

from tests.bench.figures import Figure, Samples, Target
from tests.bench.memory import read_private_mb
from tests.bench.registry import Settings, benchmark
from tests.qemu.fleets import Desk, finish, open_desk

CONFIGURATION = """
[vm.one]
image = "builtin"
memory = "256M"
cpus = 1
accel = "{accelerator}"
"""
MANY, QUICK_MANY = 20, 3
WITHIN_S = 300.0


@benchmark("clones")
def measure_clones(settings: Settings) -> list[Figure]:
    """Templates, clones, twenty at once, a machine for one command, snapshots."""
    directory = settings.directory / "clones"
    directory.mkdir()
    with open_desk(directory) as desk:
        desk.write(CONFIGURATION.format(accelerator=settings.accelerator))
        try:
            return [*_measure_run(settings, desk), *_measure_fork(settings, desk)]
        finally:
            desk.run("discard", "--of", "one")
            desk.run("kill", "one")
            shutil.rmtree(directory / ".cache", ignore_errors=True)


def _measure_run(settings: Settings, desk: Desk) -> list[Figure]:
    settings.say("clones: a machine for one command")
    _time(desk, "run", "--", "true")  # makes the template
    cloned, fresh = [], []
    for _ in range(settings.runs):
        cloned.append(_time(desk, "run", "--", "true"))
        fresh.append(_time(desk, "run", "--fresh", "--", "true"))
    return [
        Figure(
            "run -- true, whole process", "s", Samples("a clone", tuple(cloned)),
            Samples("--fresh: a boot", tuple(fresh)), (Target(0.6),),
        ),
        Figure("run --fresh -- true, whole process", "s", Samples("a boot", tuple(fresh)), None, (Target(3.2),)),
    ]  # fmt: skip


def _measure_fork(settings: Settings, desk: Desk) -> list[Figure]:
    settings.say("clones: a template, forks, snapshots")
    many = QUICK_MANY if settings.quick else MANY
    _time(desk, "start", "--wait", "boot", "one")
    desk.run("exec", "-n", "one", "--", "sleep", "8")  # until it has done all that it does at its start
    frozen, made, single, all_of_them, memory = [], [], [], [], []
    saved, live, restored = [], [], []
    for _ in range(settings.runs):
        template = desk.ask("template", "template", "one")
        frozen.append(template["frozen_s"])
        made.append(template["seconds"])
        single.append(desk.ask("fork", "fork", "one")["vms"][0]["seconds"])
        desk.run("discard", "--of", "one")
        began = time.perf_counter()
        forked = finish(desk.begin("--json", "fork", "one", "--count", str(many)), within_s=WITHIN_S).document
        all_of_them.append(time.perf_counter() - began)
        if forked["exit_code"] != 0:
            raise RuntimeError(f"not all of them were forked: {forked}")
        pids = [desk.status(vm["name"])["pid"] for vm in forked["vms"]]
        memory.append(sum(read_private_mb(pid) for pid in pids) / many)
        finish(desk.begin("discard", "--of", "one"), within_s=WITHIN_S)
        saved.append(desk.ask("snapshot_save", "snapshot", "save", "one", "kept")["seconds"])
        kept = desk.ask("snapshot_save", "snapshot", "save", "one", "alive", "--live")
        live.append(kept["snapshot"]["stood_still_s"])
        desk.ask("snapshot_delete", "snapshot", "delete", "one", "alive")
        restored.append(desk.ask("snapshot_restore", "snapshot", "restore", "one", "kept")["seconds"])
        desk.ask("snapshot_delete", "snapshot", "delete", "one", "kept")
    return [
        Figure("template: the guest stands still", "s", Samples("template one", tuple(frozen)), None, (Target(0.1),)),
        Figure("template, until clones can be made", "s", Samples("template one", tuple(made))),
        Figure("fork, until it is its own machine", "s", Samples("fork one", tuple(single)), None, (Target(0.2),)),
        Figure(
            f"{many} forks at once, whole process", "s", Samples(f"fork --count {many}", tuple(all_of_them)), None,
            (Target(4.0),),
        ),
        Figure("private memory of each of them", "MB", Samples("QEMU", tuple(memory)), None, (Target(47.2),)),
        Figure("snapshot save", "s", Samples("until it goes on", tuple(saved)), None, (Target(0.3),)),
        Figure("snapshot save --live: it stands still", "s", Samples("of 0.5 s", tuple(live)), None, (Target(0.05),)),
        Figure("snapshot restore", "s", Samples("until its clock is set", tuple(restored)), None, (Target(0.2),)),
    ]  # fmt: skip


def _time(desk: Desk, *words: str) -> float:
    began = time.perf_counter()
    done = finish(desk.begin(*words), within_s=WITHIN_S)
    if done.exit_code != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return time.perf_counter() - began
