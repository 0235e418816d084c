"""Files where somebody in the guest works against the agent, or where a file system is at its edges."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.agent import dispatch, pathpolicy, sshkeys, usertables
from guest.agent.filewriter import FileWriter
from tests.guest import treeform
from tests.guest.agentprocess import AGENT, AgentProcess, Json
from tests.guest.test_agent_files_transfer import get, put, put_done, put_fails

NOT_PERMITTED, FAILED = -32003, -32005
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is led to do what others may not: run as root")


@pytest.fixture(autouse=True)
def session(agent: AgentProcess) -> None:
    agent.hello()


# What was planted before the agent came


def test_a_planted_part_is_not_gone_on_with(agent: AgentProcess, tmp_path: Path) -> None:
    """A kept part has a name that anybody can tell: as a second name of another file it must not be written through."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".new.unhinged-part").hardlink_to(victim)
    sent = treeform.encode_file("", b"new content") + treeform.encode_end(1, 11)
    put_done(agent, tmp_path / "new", sent, resume=True)
    assert (tmp_path / "new").read_text() == "new content"
    assert victim.read_text() == "precious"
    assert (tmp_path / "new").stat().st_ino != victim.stat().st_ino


@as_root
def test_a_part_of_somebody_else_is_not_gone_on_with(agent: AgentProcess, tmp_path: Path) -> None:
    """Whoever made it may still have it open, and would own what it becomes."""
    part = tmp_path / ".new.unhinged-part"
    part.write_text("x")
    os.chown(part, NOBODY, NOBODY)
    with part.open("r+b") as theirs:
        sent = treeform.encode_file("", b"new content", mode=0o600) + treeform.encode_end(1, 11)
        put_done(agent, tmp_path / "new", sent, resume=True)
        theirs.write(b"changed")
    assert (tmp_path / "new").read_text() == "new content"
    assert (tmp_path / "new").stat().st_uid == 0


@pytest.mark.parametrize("kind", ["device", "socket"])
def test_a_device_is_not_replaced_by_a_file(agent: AgentProcess, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "null"
    if kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o666)
    elif os.geteuid() == 0:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        pytest.skip("only root makes devices: run as root")
    assert agent.error("file_write", path=str(path), text="x")["code"] == FAILED
    sent = treeform.encode_file("", b"x") + treeform.encode_end(1, 1)
    assert put_fails(agent, path, sent)["code"] == FAILED
    assert not stat.S_ISREG(path.stat().st_mode)


# What is planted while the agent works


@contextmanager
def swap(directory: Path, plant: Callable[[Path], None], beginning: str = ".") -> Iterator[None]:
    """Replaces each hidden thing in the directory by something else, as fast as somebody in the guest could."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            for entry in os.scandir(directory):
                if entry.name.startswith(beginning):
                    try:
                        (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)
                        plant(Path(entry.path))
                    except OSError:
                        continue

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("how", ["symlink", "hardlink"])
def test_a_new_fifo_or_link_that_is_swapped_changes_nothing_else(agent: AgentProcess, tmp_path: Path, how: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    before = victim.stat()
    theirs = tmp_path / "theirs"
    theirs.mkdir()

    def plant(path: Path) -> None:
        if how == "symlink":
            path.symlink_to(victim)
        else:
            path.hardlink_to(victim)

    owner = {"uid": 12345, "gid": 12345} if os.geteuid() == 0 else {}
    sent = treeform.encode_entry("", "directory", **owner)
    for number in range(2000):
        sent += treeform.encode_entry(f"f{number}", "fifo", mode=0o666, **owner)
        sent += treeform.encode_entry(f"l{number}", "symlink", target="x", **owner)
    sent += treeform.encode_end(4001, 0)
    with swap(theirs, plant):
        put(agent, theirs, sent, owner=bool(owner))
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


def test_a_file_that_appears_before_it_is_made_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To append, a file is made where there is none; one that comes in between may be a second name of another one."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    place = pathpolicy.Policy(None, None, []).find(os.fsencode(tmp_path / "log"), pathpolicy.WRITE)
    find = pathpolicy.Place.find_stat

    def find_then_lose(self: pathpolicy.Place) -> os.stat_result | None:
        found = find(self)
        if found is None:
            (tmp_path / "log").hardlink_to(victim)
        return found

    monkeypatch.setattr(pathpolicy.Place, "find_stat", find_then_lose)
    writer = FileWriter(place, {"append": True}, 0)
    work = writer.run()
    next(work)
    with pytest.raises(StopIteration):
        work.throw(EOFError())
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


@as_root
@pytest.mark.parametrize("method", ["file_write", "file_put"])
def test_a_file_is_replaced_where_owners_may_not_be_changed(tmp_path: Path, method: str) -> None:
    """As in the profile `strict`, whose filter refuses every change of an owner."""
    agent = AgentProcess(tmp_path, start=str(Path(__file__).parent / "without_chown.py"))
    agent.hello()
    path = tmp_path / "file"
    path.write_text("old")
    if method == "file_write":
        agent.result("file_write", path=str(path), text="new")
    else:
        put_done(agent, path, treeform.encode_file("", b"new") + treeform.encode_end(1, 3))
    assert path.read_text() == "new"
    assert agent.close() == 0


# Edges of file systems


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory of a file system that knows every time that there is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.mark.parametrize("moment_s", [-(2**31), -1, 2**33, 16_000_000_000])
def test_times_of_long_ago_and_far_ahead(agent: AgentProcess, memory: Path, moment_s: int) -> None:
    path = memory / "file"
    path.write_text("x")
    os.utime(path, (moment_s, moment_s))
    if path.stat().st_mtime != moment_s:
        pytest.skip("this file system has no such time")
    entries, result = get(agent, path)
    assert result["changed"] == []
    told = entries[""].line["mtime_ns"]
    assert told == min(moment_s * 10**9, 2**63 - 1)
    assert agent.result("file_stat", path=str(path))["mtime_ns"] == told
    sent = treeform.encode_file("", b"x", mtime_ns=told) + treeform.encode_end(1, 1)
    put_done(agent, memory / "copy", sent)
    assert (memory / "copy").stat().st_mtime_ns == told


@as_root
def test_a_directory_that_may_be_read_but_not_searched_is_listed(tmp_path: Path) -> None:
    open_up(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_text("x")
    (tmp_path / "d").chmod(0o744)
    (tmp_path / "a").mkdir()
    agent = AgentProcess(tmp_path / "a", {"run_as": "nobody"})
    listed = agent.result("file_list", path=str(tmp_path / "d"))["entries"]
    assert listed == [{"name": "file", "type": "unknown"}]
    assert agent.close() == 0


# As somebody else


def open_up(directory: Path) -> None:
    """Lets everybody through to a directory of the tests."""
    for above in (directory, *directory.parents):
        if above.stat().st_mode & 0o1 == 0:
            above.chmod(above.stat().st_mode | 0o1)


@as_root
def test_what_the_agent_is_made_of_is_read_as_itself(tmp_path: Path) -> None:
    """The user of `run_as` may read neither Python's modules, here those of root's own Python, nor the agent's."""
    open_up(tmp_path)
    theirs = tmp_path / "theirs"
    (theirs / "tree").mkdir(parents=True)
    for path in (theirs, theirs / "tree"):
        os.chown(path, NOBODY, NOBODY)
    (theirs / os.fsdecode(b"\xff")).touch()
    copy = tmp_path / "copy"
    shutil.copytree(AGENT, copy)
    copy.chmod(0o700)
    agent = AgentProcess(tmp_path, {"run_as": "nobody"}, start=str(copy / "__main__.py"))
    agent.hello()
    sent = treeform.encode_file("", b"new") + treeform.encode_end(1, 3)
    put_done(agent, theirs / "file", sent, resume=True)
    assert len(agent.result("file_list", path=str(theirs))["entries"]) == 3
    agent.result("file_remove", path=str(theirs / "tree"), recursive=True)
    stream = agent.open_stream()
    job = agent.result("file_read", path=str(theirs / "file"), stream=stream.number)["job"]
    assert agent.wait_for_job(job)["result"]["bytes"] == 3
    agent.result("file_watch", path=str(theirs))
    assert agent.close() == 0


def test_directives_write_no_more_than_other_calls(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, {"transfer_bytes": 100})
    agent.hello()
    wishes: list[Json] = [{"path": str(tmp_path / "new"), "content": "x" * 60, "append": True}]
    for ok in (True, False):
        job = agent.result("cloud_init_apply", directives={"write_files": wishes})["job"]
        assert agent.wait_for_job(job)["result"]["directives"][0]["ok"] is ok
    assert (tmp_path / "new").read_text() == "x" * 60
    assert agent.close() == 0


# Keys


def test_a_line_of_keys_ends_where_sshd_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "B" * 43
    other = "AAAAC3NzaC1lZDI1NTE5AAAAI" + "C" * 43
    home = tmp_path
    (home / ".ssh").mkdir(mode=0o700)
    keys = home / ".ssh/authorized_keys"
    keys.write_text(f"# \u2028ssh-ed25519 {blob}\nssh-ed25519 {other}\n")
    user = usertables.User(["me", "x", str(os.geteuid()), str(os.getegid()), "", str(home), "/bin/sh"])
    assert [key.blob for key in sshkeys.list_keys(user)] == [other]
    assert sshkeys.remove_keys(user, {other}, set()) == 1
    assert keys.read_text() == f"# \u2028ssh-ed25519 {blob}\n"


@as_root
def test_a_new_ssh_directory_that_is_swapped_changes_nothing_else(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    user = usertables.User(["nobody", "x", str(NOBODY), str(NOBODY), "", str(home), "/bin/sh"])
    with swap(home, lambda path: path.hardlink_to(victim), ".ssh"):
        for _ in range(500):
            with contextlib.suppress(dispatch.CallError, OSError):
                sshkeys.add_keys(user, [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'B' * 43}"])
            shutil.rmtree(home / ".ssh", ignore_errors=True)
            (home / ".ssh").unlink(missing_ok=True)
    assert victim.stat().st_uid == 0


def test_a_moved_directory_is_watched_no_longer(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "w/inner").mkdir(parents=True)
    job = agent.result("file_watch", path=str(tmp_path / "w"), recursive=True)["job"]
    (tmp_path / "w/inner").rename(tmp_path / "gone")
    seen = agent.wait_for_notification("file_changed")["changes"]
    assert seen == [{"change": "deleted", "path": "inner"}]
    (tmp_path / "gone/private").write_text("x")
    (tmp_path / "w/last").write_text("x")
    told: list[Json] = []
    while not any(change["path"] == "last" for change in told):
        told += agent.wait_for_notification("file_changed")["changes"]
    assert {change["path"] for change in told} == {"last"}
    agent.result("job_cancel", job=job)
