"""Snapshots of the built-in guest: what it holds in memory and on its disk, its console, its agent, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.one_vm import open_one_vm
from tests.qemu.fleets import WITHIN_S, Desk, end_at_once, finish, wait_for


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_one_vm(Path(tmp_path_factory.mktemp("snapshots"))) as desk:
        shell(desk, "until grep -q ' /data ' /proc/mounts; do usleep 20000; done")
        yield desk


def shell(desk: Desk, script: str) -> str:
    done = desk.run("exec", "one", "-n", "--", "sh", "-c", script)
    assert done.exit_code == 0, done
    return done.stdout


def test_a_guest_comes_back_from_what_nothing_else_would_bring_it_back_from(desk: Desk) -> None:
    shell(desk, "echo kept > /tmp/memory; sleep 1000 & echo $! > /tmp/sleeper")
    sleeper = shell(desk, "cat /tmp/sleeper").strip()
    desk.ask("snapshot_save", "snapshot", "save", "one", "clean")
    desk.run("exec", "one", "-n", "--", "sh", "-c", "echo lost > /tmp/memory; rm -rf /usr /lib /bin")
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "clean")
    assert shell(desk, "cat /tmp/memory") == "kept\n"
    assert "sleep" in shell(desk, f"cat /proc/{sleeper}/cmdline")


def look(desk: Desk, what: str) -> str:
    return str(desk.ask("monitor", "monitor", "one", what)["text"])


BUSY = """
memory, turn = bytearray(40 << 20), 0
open("/tmp/busy", "w").close()
while True:
    turn += 1
    for page in range(0, len(memory), 4096):
        memory[page] = turn & 255
"""


def test_a_busy_guest_goes_on_while_it_is_kept(desk: Desk) -> None:
    """And what is kept is whole; a supervisor that is killed meanwhile leaves a guest that goes on, and no snapshot."""
    shell(desk, f"python3 -c '{BUSY}' & echo $! > /tmp/pid; until [ -e /tmp/busy ]; do usleep 20000; done")
    shell(desk, "echo then > /data/live; sync")
    done = desk.ask("snapshot_save", "snapshot", "save", "one", "busy", "--live")
    assert done["snapshot"]["stood_still_s"] < done["seconds"] / 2
    shell(desk, "echo now > /data/live; sync")
    supervisor = desk.status("one")["supervisor_pid"]
    saving = desk.begin("snapshot", "save", "one", "other", "--live")
    wait_for(lambda: "active" in look(desk, "info migrate") and "running" in look(desk, "info status"))
    end_at_once(supervisor)
    assert finish(saving).exit_code != 0
    on = "kill -0 $(cat /tmp/pid) && cat /data/live"
    # QEMU sees it through, for nobody.
    assert shell(desk, on) == "now\n"
    assert desk.status("one")["state"] == "RUNNING"
    assert [each["tag"] for each in desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]][-1] == "busy"
    wait_for(lambda: "active" not in look(desk, "info migrate"))
    # Over what is left of the first one.
    assert desk.ask("snapshot_save", "snapshot", "save", "one", "other", "--live")["snapshot"]["tag"] == "other"
    for _ in range(2):  # in the QEMU that took it, and in one that went back to it
        assert desk.ask("snapshot_restore", "snapshot", "restore", "one", "busy")["snapshot"]["tag"] == "busy"
        assert shell(desk, f"sleep 1; {on}") == "then\n"
    shell(desk, "kill $(cat /tmp/pid); rm /tmp/busy")
    for tag in ("other", "busy"):
        assert desk.run("snapshot", "delete", "one", tag).exit_code == 0


def test_what_a_command_did_is_undone(desk: Desk) -> None:
    shell(desk, "echo first > /data/undone; sync")
    assert desk.run("exec", "--checkpoint", "-n", "one", "--", "sh", "-c", "echo second > /data/undone").exit_code == 0
    done = desk.run("exec", "--checkpoint", "-n", "one", "--", "rm", "-rf", "/usr", "/bin", "/data/undone")
    assert done.exit_code in (0, 1)
    assert "no such program" in desk.run("exec", "-n", "one", "--", "ls").stderr
    desk.ask("undo", "undo", "one")
    assert shell(desk, "cat /data/undone") == "second\n"
    desk.ask("undo", "undo", "one")
    assert shell(desk, "cat /data/undone") == "first\n"
    assert "no checkpoint" in desk.ask("undo", "undo", "one")["error"]["message"]


def test_no_more_checkpoints_are_kept_than_a_few(desk: Desk) -> None:
    for _ in range(7):
        assert desk.run("exec", "--checkpoint", "-n", "one", "--", "true").exit_code == 0
    kept = [each["tag"] for each in desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]]
    checkpoints = [tag for tag in kept if tag.startswith("checkpoint-")]
    assert len(checkpoints) == 5 and checkpoints == sorted(checkpoints)
    for tag in checkpoints:
        desk.ask("snapshot_delete", "snapshot", "delete", "one", tag)


def test_the_disk_goes_back_with_the_memory(desk: Desk) -> None:
    shell(desk, "echo then > /data/file; sync")
    desk.ask("snapshot_save", "snapshot", "save", "one", "then")
    shell(desk, "echo now > /data/file; sync")
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "then")
    # What is kept in memory is not asked: what lies on the disk is.
    assert shell(desk, "echo 3 > /proc/sys/vm/drop_caches; cat /data/file") == "then\n"


def test_the_clock_is_the_hosts_again(desk: Desk) -> None:
    desk.ask("snapshot_save", "snapshot", "save", "one", "earlier")
    time.sleep(5)  # what is shown is that this time has passed in the guest as well
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "earlier")
    assert abs(float(shell(desk, "date +%s")) - time.time()) < 4


def test_what_is_under_way_is_told_and_whoever_is_at_the_console_stays(desk: Desk) -> None:
    desk.ask("snapshot_save", "snapshot", "save", "one", "before")
    long = desk.begin("exec", "one", "-n", "--", "sleep", "500")
    console = desk.begin("console", "one", "--read-only", "--until", "back here", "--timeout", str(WITHIN_S))
    deadline = time.monotonic() + WITHIN_S
    while "sleep 500" not in shell(desk, "ps"):
        assert time.monotonic() < deadline
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "before")
    done = finish(long)
    assert done.exit_code != 0
    assert "the machine was put back to before" in done.stderr
    shell(desk, "echo back here > /dev/ttyS0")
    there = finish(console)
    assert there.exit_code == 0
    assert "one is back at its snapshot before" in there.stderr


def test_what_has_changed_since(desk: Desk) -> None:
    shell(desk, "mkdir -p /srv/a; for name in one two same; do echo 1 > /srv/a/$name; done; echo d > /data/mode; sync")
    desk.ask("snapshot_save", "snapshot", "save", "one", "first")
    shell(desk, "echo x >> /srv/a/one; rm /srv/a/two; mkdir /srv/b; ln -s x '/srv/b/a link'; echo n > /data/new")
    shell(desk, "chmod 600 /data/mode; cat /srv/a/same")
    document = desk.ask("snapshot_diff", "snapshot", "diff", "one", "first")
    changes = {(each["what"], each["path"]) for each in document["changes"]}
    wanted = {
        ("M", "/srv/a/one"), ("D", "/srv/a/two"), ("A", "/srv/b"), ("A", "/srv/b/a link"), ("A", "/data/new"),
        ("M", "/data/mode"),
    }  # fmt: skip
    assert wanted <= changes and ("M", "/srv/a/same") not in changes
    assert len(changes - wanted) < 20, changes  # a guest does something by itself, too
    assert document["snapshot"]["tag"] == "first"
    assert "A /srv/b/a link\n" in desk.run("snapshot", "diff", "one").stdout  # the newest
    assert shell(desk, "cat /srv/a/one") == "1\nx\n"
    assert [path.name for path in desk.runtime.glob("vm.*")] == ["vm.one"]
    desk.ask("snapshot_delete", "snapshot", "delete", "one", "first")
    assert "there is no snapshot" in desk.ask("snapshot_diff", "snapshot", "diff", "one", "first")["error"]["message"]
