"""Snapshots on the real QEMU, of guests that do nothing: what is kept where, what is refused, what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.fleets import HALT, WITHIN_S, Desk, is_alive, open_desk, wait_for

WITH_DISK = """
[vm.one]
disk = "one.qcow2"
memory = "64M"
accel = "tcg"
net = "none"
agent = false
"""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        (workdir / "one.img").write_bytes(HALT.ljust(1 << 20, b"\0"))
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", "one.img", "one.qcow2"], cwd=workdir, check=True)
        desk.write(WITH_DISK)
        yield desk


def list_tags(desk: Desk) -> list[str]:
    return [each["tag"] for each in desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]]


def list_tags_in_disk(desk: Desk) -> list[str]:
    told = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(desk.directory / "one.qcow2")], capture_output=True, check=True
    )
    return [each["name"] for each in json.loads(told.stdout).get("snapshots", [])]


def start(desk: Desk) -> None:
    done = desk.run("start", "one", "--wait", "running")
    assert done.exit_code == 0, done.stderr


def look_at_memory(desk: Desk, text: str) -> str:
    return str(desk.ask("monitor", "monitor", "one", text)["text"])


def refuse(desk: Desk, *words: str) -> Any:
    document = desk.ask("error", "snapshot", *words)
    return document["error"]


@pytest.mark.parametrize("words", [(), ("--live",)], ids=["standing still", "live"])
def test_one_is_taken_gone_back_to_and_forgotten(desk: Desk, words: tuple[str, ...]) -> None:
    start(desk)
    before = wait_for(
        lambda: "0xf4" in (seen := look_at_memory(desk, "xp /16xb 0x7c00")) and seen
    )  # it has been loaded
    taken = desk.ask("snapshot_save", "snapshot", "save", "one", "clean", *words)["snapshot"]
    assert (taken["tag"], taken["was_running"], taken["had_agent"]) == ("clean", True, False)
    assert taken["disks"] == [str(desk.directory / "one.qcow2")]
    assert taken["bytes"] > 100_000
    assert list_tags(desk) == list_tags_in_disk(desk) == ["clean"]
    assert desk.status("one")["runstate"] == "running"

    desk.ask("qmp", "qmp", "one", "system_reset")
    desk.ask("pause", "pause", "one")
    desk.ask("snapshot_restore", "snapshot", "restore", "one")
    seen = desk.status("one")
    assert (seen["state"], seen["runstate"]) == ("RUNNING", "running")
    assert look_at_memory(desk, "xp /16xb 0x7c00") == before

    desk.ask("snapshot_delete", "snapshot", "delete", "one", "clean")
    assert list_tags(desk) == list_tags_in_disk(desk) == []
    assert not list(desk.files("one").snapshots.iterdir())


@pytest.mark.parametrize("words", [(), ("--live",)], ids=["standing still", "live"])
def test_one_that_stands_still_is_kept_so(desk: Desk, words: tuple[str, ...]) -> None:
    start(desk)
    desk.ask("pause", "pause", "one")
    assert desk.ask("snapshot_save", "snapshot", "save", "one", "still", *words)["snapshot"]["was_running"] is False
    desk.ask("resume", "resume", "one")
    desk.ask("snapshot_restore", "snapshot", "restore", "one")
    assert desk.status("one")["runstate"] == "paused"


def test_one_whose_files_are_limited_is_not_live(desk: Desk) -> None:
    """What QEMU writes while the guest runs must not be ended by a limit: the guest would never go on."""
    desk.write(WITH_DISK + 'limits = { file_size = "1G" }\n')
    start(desk)
    error = refuse(desk, "save", "one", "kept", "--live")
    assert "cannot run on while it is kept: its limit on files" in error["message"] and "--live" in error["hint"]
    assert desk.status("one")["runstate"] == "running" and list_tags_in_disk(desk) == []
    assert not list(desk.files("one").snapshots.glob("*"))
    desk.ask("snapshot_save", "snapshot", "save", "one", "kept")


def test_one_that_does_not_run_is_started_to_go_back(desk: Desk) -> None:
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "kept")
    desk.run("stop", "--timeout", "1", "one")
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "kept")
    assert desk.status("one")["runstate"] == "running"


def test_one_is_forgotten_at_rest(desk: Desk) -> None:
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "first")
    desk.ask("snapshot_save", "snapshot", "save", "one", "second")
    desk.run("stop", "--timeout", "1", "one")
    desk.ask("snapshot_delete", "snapshot", "delete", "one", "first")
    assert list_tags(desk) == list_tags_in_disk(desk) == ["second"]


def test_what_cannot_be_is_refused_and_changes_nothing(desk: Desk) -> None:
    start(desk)
    assert "no snapshot yet" in refuse(desk, "restore", "one")["message"]
    assert "cannot be the name" in refuse(desk, "save", "one", "../up")["message"]
    desk.ask("snapshot_save", "snapshot", "save", "one", "kept")
    assert "a snapshot kept already" in refuse(desk, "save", "one", "kept")["message"]
    assert refuse(desk, "restore", "one", "other")["hint"] == "there are: kept"
    assert "no snapshot other" in refuse(desk, "delete", "one", "other")["message"]
    assert desk.status("one")["runstate"] == "running"
    assert list_tags(desk) == ["kept"]


def test_a_name_that_the_disk_has_already_is_left_alone(desk: Desk) -> None:
    """Somebody's own snapshot within the image is theirs."""
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", "one.qcow2"], cwd=desk.directory, check=True)
    start(desk)
    assert "holds a snapshot mine already" in refuse(desk, "save", "one", "mine")["message"]
    assert list_tags_in_disk(desk) == ["mine"]
    assert list_tags(desk) == []


def test_a_raw_disk_is_named(desk: Desk) -> None:
    desk.write(WITH_DISK.replace('"one.qcow2"', '{ path = "one.img", format = "raw" }'))
    start(desk)
    error = refuse(desk, "save", "one")
    assert "one.img is raw" in error["message"]
    assert "qemu-img convert" in error["hint"]


def test_one_of_another_qemu_or_another_machine_is_refused(desk: Desk) -> None:
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "kept")
    note = desk.files("one").snapshots / "kept.json"
    plain = json.loads(note.read_bytes())
    note.write_text(json.dumps({**plain, "qemu": "9.1.0 Debian"}))
    assert "taken by QEMU 9.1.0 Debian" in refuse(desk, "restore", "one")["message"]
    note.write_text(json.dumps(plain))
    desk.run("stop", "--timeout", "1", "one")
    desk.write(WITH_DISK.replace("64M", "96M"))
    error = refuse(desk, "restore", "one")
    assert "then -m 64M; now -m 96M" in error["message"]
    assert desk.status("one")["state"] == "STOPPED"  # what was started for it is not left


def test_a_disk_made_anew_is_noticed(desk: Desk) -> None:
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "kept")
    desk.run("stop", "--timeout", "1", "one")
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", "one.img", "one.qcow2"], cwd=desk.directory, check=True)
    assert "the disks are not those" in refuse(desk, "restore", "one")["message"]
    desk.ask("snapshot_delete", "snapshot", "delete", "one", "kept")
    assert list_tags(desk) == []


def test_a_state_that_is_damaged_leaves_a_machine_that_stands_still_and_says_so(desk: Desk) -> None:
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "good")
    desk.ask("snapshot_save", "snapshot", "save", "one", "bad")
    state = desk.files("one").snapshots / "bad.qcow2"
    with state.open("r+b") as file:
        file.seek(file.seek(0, os.SEEK_END) // 2)
        file.write(os.urandom(200_000))
    assert "stands still" in refuse(desk, "restore", "one", "bad")["message"]
    assert desk.status("one")["runstate"] != "running"
    desk.ask("snapshot_restore", "snapshot", "restore", "one", "good")
    assert desk.status("one")["runstate"] == "running"


def test_a_qemu_killed_while_it_saves_leaves_none_and_the_name_free(desk: Desk) -> None:
    """With memory that is full of something, so that the save lasts long enough to be met."""
    desk.write(WITH_DISK.replace("64M", "1G"))
    start(desk)
    desk.ask("qmp", "qmp", "one", "stop")
    files = desk.files("one")
    saving = desk.begin("snapshot", "save", "one", "half")
    deadline = time.monotonic() + WITHIN_S
    while not (files.snapshots / "half.qcow2").exists():
        assert time.monotonic() < deadline and saving.poll() is None
    pid = int(files.pid.read_text())
    os.kill(pid, signal.SIGKILL)
    stdout, stderr = saving.communicate(timeout=WITHIN_S)
    assert saving.returncode != 0 and "Traceback" not in stderr, (stdout, stderr)
    while is_alive(pid):
        assert time.monotonic() < deadline
    desk.wait_until_gone()
    assert list_tags(desk) == []
    assert not list(files.snapshots.iterdir())
    start(desk)
    desk.ask("snapshot_save", "snapshot", "save", "one", "half")
    assert list_tags(desk) == ["half"]
