"""Templates of the built-in guest and their clones: what they share, what they must not, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.fleets import Desk, finish, open_desk, wait_for

CONFIGURATION = """
[vm.one]
image = "builtin"
memory = "256M"
cpus = 1
accel = "tcg"
net = ["user", "lan:private"]
forward = ["auto:8080"]
[vm.one.ssh]
port = "auto"
"""

MOUNTED = "until grep -q ' /data ' /proc/mounts; do usleep 20000; done"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk with the template `warm` of a VM that goes on; a program waits in its guest."""
    with open_desk(Path(tmp_path_factory.mktemp("clones"))) as desk:
        desk.write(CONFIGURATION)
        assert desk.run("start", "--wait", "boot", "one").exit_code == 0
        shell(desk, "one", f"{MOUNTED}; echo before > /data/file; echo kept > /tmp/memory; sync; sleep 5000 & :")
        made = desk.ask("template", "template", "one", "--as", "warm")["made"]
        assert made["name"] == "warm" and made["vm"] == "one" and made["bytes"] > 1 << 20
        yield desk
        assert desk.run("discard", "--of", "warm").exit_code == 0
        desk.run("stop", "one")
        desk.wait_until_gone()
        assert [path.name for path in desk.runtime.glob("vm.*")] == ["vm.one"]


@pytest.fixture
def pair(desk: Desk) -> Iterator[tuple[str, str]]:
    """Two clones."""
    made = desk.ask("fork", "fork", "warm", "--count", "2")
    assert made["exit_code"] == 0, made
    first, second = (vm["name"] for vm in made["vms"])
    yield first, second
    desk.run("discard", first, second)


def shell(desk: Desk, name: str, script: str) -> str:
    done = desk.run("exec", name, "-n", "--", "sh", "-c", script)
    assert done.exit_code == 0, done
    return done.stdout


def test_a_clone_goes_on_where_the_template_was(desk: Desk, pair: tuple[str, str]) -> None:
    for name in pair:
        assert shell(desk, name, "cat /tmp/memory /data/file; pidof sleep > /dev/null") == "kept\nbefore\n"
    assert shell(desk, "one", "cat /tmp/memory") == "kept\n"


def test_clones_share_nothing_that_tells_machines_apart(desk: Desk, pair: tuple[str, str]) -> None:
    script = """
    hostname; cat /etc/hostname; cat /etc/machine-id || echo none; cat /sys/class/net/eth1/address
    head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid
    until [ -s /data/.unhinged/dropbear/ed25519 ]; do usleep 20000; done
    sleep 1; md5sum < /data/.unhinged/dropbear/ed25519
    """
    told = [shell(desk, name, script).splitlines() for name in ("one", *pair)]
    assert [lines[0] for lines in told] == [lines[1] for lines in told] == ["unhinged", *pair]
    for row in zip(*told, strict=True):
        assert len(set(row)) == 3, row


def test_the_clock_of_a_clone_is_the_hosts(desk: Desk, pair: tuple[str, str]) -> None:
    for name in pair:
        assert abs(float(shell(desk, name, "date +%s")) - time.time()) < 4


def test_what_one_writes_no_other_sees(desk: Desk, pair: tuple[str, str]) -> None:
    first, second = pair
    shell(desk, first, "echo mine > /tmp/memory; echo mine > /data/file; sync; echo 3 > /proc/sys/vm/drop_caches")
    assert shell(desk, first, "cat /tmp/memory /data/file") == "mine\nmine\n"
    for name in ("one", second):
        assert shell(desk, name, "cat /tmp/memory; cat /data/file") == "kept\nbefore\n"


def test_each_has_ports_of_its_own_and_answers_ssh_with_a_key_of_its_own(desk: Desk, pair: tuple[str, str]) -> None:
    ports = [json.loads(desk.files(name).state.read_bytes())["ports"] for name in ("one", *pair)]
    assert len({port for each in ports for port in each.values()}) == 6
    for name in pair:
        assert desk.run("wait", name, "--for", "ssh").exit_code == 0
        done = desk.run("ssh", name, "--via", "ssh", "--", "hostname")
        assert done.stdout == f"{name}\n", done


@pytest.mark.slow
def test_a_clone_that_was_stopped_boots_from_its_own_disk(desk: Desk, pair: tuple[str, str]) -> None:
    name = pair[0]
    shell(desk, name, "echo mine > /data/file; sync")
    assert desk.run("stop", name).exit_code == 0
    assert desk.run("start", "--wait", "boot", name).exit_code == 0
    assert shell(desk, name, f"{MOUNTED}; cat /data/file; test -e /tmp/memory || echo anew") == "mine\nanew\n"


@pytest.mark.slow
def test_a_clone_that_is_reset_boots(desk: Desk, pair: tuple[str, str]) -> None:
    """QEMU is still the one that took the template's state."""
    name = pair[0]
    assert desk.run("qmp", name, "system_reset").exit_code == 0
    gone = ["exec", name, "-n", "--", "sh", "-c", "test ! -e /tmp/memory"]
    wait_for(lambda: desk.run(*gone).exit_code == 0)
    assert desk.status(name)["state"] == "RUNNING"


def test_a_clone_outlives_its_supervisor(desk: Desk, pair: tuple[str, str]) -> None:
    name = pair[0]
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(desk.files(name).control_socket))
        supervisor = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    os.kill(supervisor, signal.SIGKILL)
    assert shell(desk, name, "cat /tmp/memory") == "kept\n"


def test_a_template_that_is_needed_stays(desk: Desk, pair: tuple[str, str]) -> None:
    for words in (("--delete", "warm"), ("one", "--as", "warm")):
        error = desk.ask("template", "template", *words)["error"]
        assert "has clones" in error["message"] and pair[0] in error["message"]
    listed = desk.ask("template", "template", "--list")["templates"]
    assert [(each["name"], set(pair) <= set(each["clones"])) for each in listed] == [("warm", True)]


def test_what_has_not_been_used_for_longest_goes_for_the_budget(desk: Desk, pair: tuple[str, str]) -> None:
    for name in ("older", "newer", "newest"):
        assert desk.ask("template", "template", "one", "--as", name)["removed"] == []
    assert desk.run("fork", "older", "--name", "cloned").exit_code == 0
    assert desk.run("discard", "cloned").exit_code == 0
    sizes = {each["name"]: each["bytes"] for each in desk.ask("template", "template", "--list")["templates"]}
    budget = sizes["newest"] + sizes["older"] + sizes["newer"] // 2
    done = desk.run("template", "one", "--as", "newest", "--budget", f"{budget // 1024}K")
    assert done.exit_code == 0 and "the template newer is gone: all were to take no more than" in done.stderr
    # `older` was cloned after `newer` was made; `warm` has clones.
    left = {each["name"] for each in desk.ask("template", "template", "--list")["templates"]}
    assert left == {"warm", "older", "newest"}
    for name in ("older", "newest"):
        assert desk.run("template", "--delete", name).exit_code == 0
    assert "--budget" in desk.run("template", "one", "--budget", "lots").stderr


def test_names(desk: Desk) -> None:
    made = desk.ask("fork", "fork", "warm", "--name", "special_1")
    assert [vm["name"] for vm in made["vms"]] == ["special_1"]
    assert shell(desk, "special_1", "hostname") == "special-1\n"
    assert "already" in desk.ask("fork", "fork", "warm", "--name", "special_1")["error"]["message"]
    assert "already" in desk.ask("fork", "fork", "warm", "--name", "one")["error"]["message"]
    assert desk.ask("discard", "discard", "special_1")["exit_code"] == 0
    assert not desk.files("special_1").directory.exists()
    assert "is no clone" in desk.ask("discard", "discard", "one")["vms"][0]["error"]["message"]
    assert shell(desk, "one", "cat /tmp/memory") == "kept\n"


def test_what_there_is_not(desk: Desk) -> None:
    error = desk.ask("fork", "fork", "cold")["error"]
    assert error["message"] == "there is no template cold" and "warm" in error["hint"]
    assert "cold" in desk.ask("template", "template", "--delete", "cold")["error"]["message"]
    assert "one of" in desk.ask("template", "template")["error"]["message"]


def test_a_clone_is_no_model(desk: Desk, pair: tuple[str, str]) -> None:
    assert "is a clone itself" in desk.ask("template", "template", pair[0])["error"]["message"]


def test_what_is_under_way_is_in_no_template(desk: Desk) -> None:
    long = desk.begin("exec", "one", "-n", "--", "sleep", "3")
    deadline = time.monotonic() + 30
    while "sleep 3" not in shell(desk, "one", "ps | grep -v 5000"):
        assert time.monotonic() < deadline
    assert "something is under way" in desk.ask("template", "template", "one")["error"]["message"]
    assert finish(long).exit_code == 0


def test_a_template_of_another_qemu(desk: Desk) -> None:
    note = desk.runtime / "templates" / "warm" / "template.json"
    before = note.read_text()
    try:
        note.write_text(json.dumps({**json.loads(before), "qemu": "1.2.3"}))
        [vm] = desk.ask("fork", "fork", "warm")["vms"]
        assert "was frozen by QEMU 1.2.3" in vm["error"]["message"]
        assert not desk.files(vm["name"]).directory.exists()
    finally:
        note.write_text(before)


def test_a_damaged_state_leaves_nothing(desk: Desk) -> None:
    state = desk.runtime / "templates" / "warm" / "state"
    before = state.read_bytes()
    try:
        state.write_bytes(before[: len(before) // 2])
        [vm] = desk.ask("fork", "fork", "warm")["vms"]
        assert vm["outcome"] == "failed"
        assert not desk.files(vm["name"]).directory.exists()
    finally:
        state.write_bytes(before)


def test_two_of_one_name_at_once_and_a_maker_that_is_killed(desk: Desk) -> None:
    killed = desk.begin("template", "one", "--as", "twice")
    deadline = time.monotonic() + 30
    while not list((desk.runtime / "templates").glob(".twice.*.draft/stream")):
        assert time.monotonic() < deadline
    killed.kill()  # in the middle of it, for what the VM writes is there and is not all yet, or has just been written
    killed.communicate()
    assert shell(desk, "one", "echo goes on") == "goes on\n"
    makers = [desk.begin("--json", "template", "one", "--as", "twice") for _ in range(2)]
    assert sorted(finish(maker).exit_code for maker in makers)[0] == 0
    assert [path.name for path in (desk.runtime / "templates").iterdir() if path.name.startswith(".")] == [".lock"]
    assert desk.ask("fork", "fork", "twice")["exit_code"] == 0
    assert desk.run("discard", "--of", "twice").exit_code == 0
    assert desk.ask("template", "template", "--delete", "twice") == {"deleted": "twice"}
    assert shell(desk, "one", "cat /tmp/memory") == "kept\n"
