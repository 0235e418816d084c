"""Limits of CPU and memory on the real QEMU and this host's control groups: kept, shown, named when they end a VM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_QEMU_DIED, HostError
from control.paths import ROOT
from control.process.limits import Group, from_plain, make_group
from control.spec.limits import Limits
from control.units import MIB
from control.vm.instance import read_record
from tests.qemu.fleets import Desk, end_at_once, is_alive, open_desk, wait_for

LIMITS = "limits = { cpu = 0.5, memory = '512M' }\n"


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    try:
        make_group("unhinged-tests-probe", Limits(1.0, 64 * MIB)).remove()
    except HostError as error:
        pytest.skip(f"limits cannot be kept here: {error}")
    with open_desk(workdir) as desk:
        yield desk


def find_group(desk: Desk, name: str) -> Group:
    record = read_record(desk.files(name))
    assert record is not None
    group = from_plain(record.group)
    assert group is not None
    return group


def is_there(group: Group) -> bool:
    return any(Path(place).exists() for place in group.places)


def test_a_vm_runs_within_its_limits_and_leaves_no_group(desk: Desk) -> None:
    desk.declare("one", more=LIMITS)
    desk.start("one")
    group = find_group(desk, "one")
    seen = desk.status("one")
    limits = {"cpu": 0.5, "memory_bytes": 512 * MIB, "file_bytes": None}
    assert seen["limits"] == {**limits, "kept_by": group.kind}
    assert "0.5 CPUs, 512 MiB of memory" in desk.run("status", "one").stdout
    if group.kind != "systemd":
        for place in group.places:
            assert str(seen["pid"]) in (Path(place) / "cgroup.procs").read_text().split()
    assert desk.run("restart", "one").exit_code == 0
    assert is_there(group) or group.kind == "systemd"
    assert desk.run("stop", "--timeout", "1", "one").exit_code == 0
    desk.wait_until_gone()
    assert not is_there(group)
    assert desk.status("one")["state"] == "STOPPED"


def test_a_vm_that_wants_more_memory_is_told_apart_from_one_that_died(desk: Desk) -> None:
    desk.write("""
[vm.greedy]
cmd = ["-nodefaults -machine pc,accel=tcg -m 256 -mem-prealloc -display none"]
limits = { memory = "128M" }
""")
    done = desk.run("start", "greedy")
    assert done.exit_code == EXIT_QEMU_DIED
    assert "wanted more memory than its limit of 128 MiB" in done.stderr, done.stderr
    assert "wanted more memory" in desk.status("greedy")["note"]
    desk.wait_until_gone()
    assert not is_there(find_group(desk, "greedy"))


def test_a_group_that_nobody_removed_goes_with_the_next_command(desk: Desk) -> None:
    desk.declare("one", more=LIMITS)
    desk.start("one")
    group = find_group(desk, "one")
    seen = desk.status("one")
    for pid in (seen["supervisor_pid"], seen["pid"]):
        end_at_once(pid)
    assert not is_alive(seen["pid"])
    desk.start("one")
    assert find_group(desk, "one") == group, "made anew in the same place"
    adopted = desk.status("one")
    end_at_once(adopted["supervisor_pid"])
    assert desk.run("stop", "--timeout", "1", "one").exit_code == 0
    desk.wait_until_gone()
    assert not is_there(group), "one that was adopted goes too"


def test_a_file_grows_to_its_limit_and_the_guest_is_told(workdir: Path) -> None:
    """Its disk is written by QEMU's monitor."""
    with open_desk(workdir) as desk:
        desk.declare("one", more='limits = { file_size = "4M" }\n')
        with (workdir / "one.img").open("r+b") as file:
            file.truncate(8 * MIB)
        desk.start("one")
        assert desk.status("one")["limits"] == {
            "cpu": None, "memory_bytes": None, "file_bytes": 4 * MIB, "kept_by": "setrlimit"
        }  # fmt: skip
        [disk] = desk.ask("qmp", "qmp", "one", "query-block")["return"]
        files, before = desk.files("one"), desk.status("one")
        for where in ("4094k", "4M"):
            desk.run("monitor", "one", f'qemu-io -d {disk["qdev"]} "write {where} 2k"')
        wait_for(lambda: "wrote 2048/2048 bytes" in files.qemu_output.read_text())
        wait_for(lambda: "File too large" in files.qemu_output.read_text() + files.qemu_log.read_text())
        after = desk.status("one")
        assert (after["state"], after["pid"]) == (before["state"], before["pid"])


def test_who_may_not_limit_is_told_why(desk: Desk, public_path: Path) -> None:
    """As another user, who owns no control group."""
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import os, encodings.utf_8; from pathlib import Path\n"
        "from control.process import limits\n"
        "limits.SYSTEMD_RUNS = Path('/nowhere')\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: limits.make_group('unhinged-tests-nobody', limits.Limits(1.0, 1 << 30))\n"
        "except limits.HostError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("limits cannot be kept on this host: "), done
    assert "Permission denied" in done.stdout or "no controller" in done.stdout
