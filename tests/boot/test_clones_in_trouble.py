"""Templates, forks, snapshots and runs that are killed at any moment, on a disk that is full, of files that change."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_INTERRUPTED
from control.paths import IMAGE
from control.vm.provision import read_manifest
from tests.qemu.fleets import Desk, open_desk, wait_for

CONFIGURATION = """
[vm.one]
image = "builtin"
memory = "256M"
cpus = 1
accel = "tcg"
net = "none"
display = "none"
[vm.two]
kernel = "kernel"
initrd = "initrd"
append = "{append}"
memory = "256M"
cpus = 1
accel = "tcg"
net = "none"
display = "none"
"""
ENDS = (signal.SIGKILL, signal.SIGINT)
PARTS = 3
PYTHON_S = 0.15
"""Before that it is Python itself that begins, and says what it likes when it is interrupted."""
SEED = 20261130


def write_configuration(desk: Desk) -> None:
    desk.write(CONFIGURATION.format(append=read_manifest()["kernel_command_line"]))


def start(desk: Desk, name: str) -> None:
    done = desk.run("start", "--wait", "agent", name)
    assert done.exit_code == 0, done.stderr


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(Path(tmp_path_factory.mktemp("trouble"))) as desk:
        write_configuration(desk)
        start(desk, "one")
        assert desk.run("template", "one", "--as", "warm").exit_code == 0
        yield desk
        desk.run("discard", "--of", "warm")
        desk.run("kill", "one", "two")
        desk.wait_until_gone()


def kill_at_any_moment(desk: Desk, *words: str) -> None:
    """Run a command to its end once, and then kill and interrupt it, at moments spread over that time."""
    began = time.monotonic()
    assert desk.run(*words).exit_code == 0
    whole_s = time.monotonic() - began
    chance = random.Random(SEED)
    for part in range(PARTS):
        for end in ENDS:
            end_after(desk, whole_s * (part + chance.random()) / PARTS, end, *words)


def end_after(desk: Desk, seconds: float, end: signal.Signals, *words: str) -> None:
    process = desk.begin(*words)
    time.sleep(max(seconds, PYTHON_S))  # the moment is what is tried here
    process.send_signal(end)
    _, told = process.communicate(timeout=60)
    assert "Traceback" not in told, told
    # Before Python has begun, an interrupt is the end of it; later we say 130, or had done it all.
    assert process.returncode in (-end, EXIT_INTERRUPTED, 0), (process.returncode, told)


def list_drafts(desk: Desk, runtime: Path) -> list[str]:
    return [path.name for path in (runtime / "templates").glob(".*.draft")]


@pytest.mark.slow
def test_a_template(desk: Desk) -> None:
    kill_at_any_moment(desk, "template", "one", "--as", "other")
    assert desk.run("exec", "one", "--", "echo", "here").stdout == "here\n"
    # What was killed is no template, or a whole one; the next maker clears its draft away.
    assert desk.run("template", "one", "--as", "other").exit_code == 0
    assert list_drafts(desk, desk.runtime) == []
    assert {each["name"] for each in desk.ask("template", "template", "--list")["templates"]} == {"other", "warm"}
    assert desk.run("fork", "other", "--name", "of-other").exit_code == 0
    assert desk.run("exec", "of-other", "--", "hostname").stdout == "of-other\n"
    assert desk.run("discard", "of-other").exit_code == 0


@pytest.mark.slow
def test_a_fork(desk: Desk) -> None:
    kill_at_any_moment(desk, "fork", "warm")
    # Each name that was taken is a clone, running or not begun, and can be thrown away; none is half of one.
    done = desk.ask("discard", "discard", "--of", "warm")
    assert done["exit_code"] == 0, done
    assert desk.run("fork", "warm", "--name", "after").exit_code == 0
    assert desk.run("exec", "after", "--", "hostname").stdout == "after\n"
    assert desk.run("discard", "after").exit_code == 0
    running = {path.name for path in desk.runtime.glob("vm.*/pid")}
    assert running <= {"pid"}


@pytest.mark.slow
def test_a_snapshot_and_going_back(desk: Desk) -> None:
    tag = "kept"
    assert desk.run("exec", "one", "--", "sh", "-c", "echo before > /tmp/word").exit_code == 0
    assert desk.run("snapshot", "save", "one", tag).exit_code == 0
    kill_at_any_moment(desk, "snapshot", "save", "one")
    assert desk.run("exec", "one", "--", "sh", "-c", "echo after > /tmp/word").exit_code == 0
    kill_at_any_moment(desk, "snapshot", "diff", "one", tag)
    assert desk.run("exec", "one", "--", "cat", "/tmp/word").stdout == "after\n"
    kill_at_any_moment(desk, "snapshot", "restore", "one", tag)
    assert desk.run("snapshot", "restore", "one", tag).exit_code == 0
    assert desk.run("exec", "one", "--", "cat", "/tmp/word").stdout == "before\n"
    disk = next(iter(desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]))["disks"][0]
    kept = {each["tag"] for each in desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]}
    told = subprocess.run(["qemu-img", "info", "-U", "--output=json", disk], capture_output=True, text=True, check=True)
    assert {each["name"] for each in json.loads(told.stdout)["snapshots"]} == kept  # nothing of those that were ended
    for each in desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"]:
        assert desk.run("snapshot", "delete", "one", each["tag"]).exit_code == 0


@pytest.mark.slow
def test_a_run(desk: Desk) -> None:
    kill_at_any_moment(desk, "run", "--", "true")
    home = desk.directory / ".cache/unhinged/run"
    wait_for(lambda: not list(home.glob("vm.run-*")))
    assert list_drafts(desk, home) == []


@pytest.mark.slow
def test_a_run_that_makes_its_template(tmp_path: Path) -> None:
    """In an empty cache, so that each is ended while its guest boots or is frozen."""
    with open_desk(tmp_path) as desk:
        home = tmp_path / ".cache/unhinged/run"
        for seconds, end in ((0.6, signal.SIGINT), (2.0, signal.SIGINT), (2.5, signal.SIGKILL), (5.0, signal.SIGINT)):
            end_after(desk, seconds, end, "run", "--", "true")
            desk.wait_until_gone()
            assert not list(home.glob("vm.run-*"))
            assert not list(home.glob("templates/[!.]*"))
        assert desk.run("run", "--", "echo", "at last").stdout == "at last\n"
        assert list_drafts(desk, home) == []


@pytest.mark.slow
def test_files_that_change_under_a_template(desk: Desk) -> None:
    for name, of in (("kernel", "vmlinux"), ("initrd", "initrd")):
        shutil.copyfile(IMAGE / of, desk.directory / name)
    start(desk, "two")
    assert desk.run("template", "two").exit_code == 0
    os.utime(desk.directory / "kernel")
    error = desk.ask("fork", "fork", "two")["error"]
    assert "was made of has changed: " in error["message"] and "kernel" in error["message"]
    assert "unhinged restart two && unhinged template two --as two" in error["hint"]
    assert not list(desk.runtime.glob("vm.two-*"))
    assert desk.run("kill", "two").exit_code == 0
    start(desk, "two")
    done = desk.run("fork", "two")
    assert done.exit_code == 0 and "has changed since the template two was made: it is made again of two" in done.stderr
    assert desk.run("exec", "two-1", "--", "hostname").stdout == "two-1\n"
    assert desk.run("discard", "two-1").exit_code == 0
    note = desk.runtime / "templates/two/template.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "machine": "of another version"}))
    error = desk.ask("fork", "fork", "two")["error"]
    assert "was made of has changed: the command line of its machine" in error["message"]
    assert desk.run("template", "two").exit_code == 0 and desk.run("fork", "two").exit_code == 0
    assert desk.run("discard", "two-1").exit_code == 0 and desk.run("kill", "two").exit_code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", where], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def test_a_disk_that_is_full(small_disk: Path) -> None:
    """Whatever does not fit fails with a sentence, leaves nothing, and harms nothing; with more room it works."""
    with open_desk(small_disk) as desk:
        write_configuration(desk)
        start(desk, "one")
        for words in (("template", "one"), ("snapshot", "save", "one"), ("snapshot", "save", "one", "--live")):
            done = desk.run(*words)
            assert done.exit_code != 0 and done.stderr.startswith("error: "), done.stderr
            assert desk.run("exec", "one", "--", "echo", "here").stdout == "here\n", words
        assert list_drafts(desk, desk.runtime) == [] and not list(desk.runtime.glob("templates/one/*"))
        assert desk.ask("snapshot_list", "snapshot", "list", "one")["snapshots"] == []
        assert shutil.disk_usage(small_disk).used < 30 << 20
        subprocess.run(["mount", "-o", "remount,size=2g", small_disk], check=True)
        assert desk.run("template", "one").exit_code == 0
        assert desk.run("snapshot", "save", "one").exit_code == 0
        assert desk.run("kill", "one").exit_code == 0
        desk.wait_until_gone()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_runs_and_twenty_at_once(desk: Desk) -> None:
    home = desk.directory / ".cache/unhinged/run"
    assert desk.run("run", "--", "true").exit_code == 0  # its template stays
    processes_before, files_before = find_processes(desk.directory), list_files(desk.directory)
    assert len(processes_before) >= 2 and len(files_before) > 10
    ownerless_before = read_ownerless_mb()
    for number in range(100):
        done = desk.run("run", "--", "echo", str(number))
        assert (done.exit_code, done.stdout) == (0, f"{number}\n"), done.stderr
    processes = [desk.begin("run", "--", "sh", "-c", "cat /etc/machine-id") for _ in range(20)]
    wait_for(lambda: list(home.glob("vm.run-*")) and find_processes(desk.directory) > processes_before)
    told = {process.communicate(timeout=300)[0] for process in processes}
    assert len(told) == 20 and all(process.returncode == 0 for process in processes)
    assert not list(home.glob("vm.run-*"))
    wait_for(lambda: find_processes(desk.directory) == processes_before)
    assert list_files(desk.directory) == files_before
    # A process that ends has no words any more while the kernel still takes its memory apart.
    wait_for(lambda: read_ownerless_mb() < ownerless_before + 200)


def find_processes(directory: Path) -> set[int]:
    """All that have anything to do with a directory: in their words or environment, open, mapped, or as their place."""
    needle, found = os.fsencode(directory), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has just ended
                texts = [(entry / name).read_bytes() for name in ("cmdline", "environ", "maps")]
                links = [os.fsencode(link.readlink()) for link in (entry / "cwd", *(entry / "fd").iterdir())]
                if any(needle in each for each in texts + links):
                    found.add(int(entry.name))
    return found


def read_ownerless_mb() -> int:
    """Memory of this host that is in use, and no process's own: what other tests' machines hold does not count."""
    told = {name: int(rest.split()[0]) for name, rest in _read_fields(Path("/proc/meminfo"))}
    held = 0
    for rollup in Path("/proc").glob("[0-9]*/smaps_rollup"):
        with contextlib.suppress(OSError):  # it has just ended, or is the kernel's
            held += sum(
                int(rest.split()[0]) for name, rest in _read_fields(rollup) if name in ("Pss_Anon", "Pss_Shmem")
            )
    return (told["MemTotal"] - told["MemAvailable"] - held) // 1024


def _read_fields(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, colon, rest = line.partition(":")
        if colon and rest.strip()[:1].isdigit():
            yield name, rest


def list_files(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))
