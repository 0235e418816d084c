"""`file_read`, `file_write`, `file_stat`, `file_list`, `file_mkdir`, `file_rename` and `file_remove`."""

from __future__ import annotations

import base64
import json
import os
import stat
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.guest.agentprocess import AgentProcess, Json


def call(agent: AgentProcess, method: str, path: Path, **params: Any) -> Json:
    return agent.result(method, path=str(path), **params)


# Reading


def test_a_file_is_read_in_parts(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("grün und blau")
    assert call(agent, "file_read", path) == {"text": "grün und blau", "bytes": 14, "size": 14, "end": True}
    assert call(agent, "file_read", path, length=3) == {"text": "gr", "bytes": 2, "size": 14, "end": False}
    assert call(agent, "file_read", path, offset=6, length=3) == {"text": "und", "bytes": 3, "size": 14, "end": False}
    assert call(agent, "file_read", path, offset=99) == {"text": "", "bytes": 0, "size": 14, "end": True}


def test_what_is_no_text_comes_as_it_is_too(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a\xffb")
    seen = call(agent, "file_read", path)
    assert seen["text"] == "a\ufffdb" and base64.b64decode(seen["text_base64"]) == b"a\xffb"


@pytest.mark.parametrize("content", [b"\x01", b"\xff", "☃".encode(), b"x"])
def test_an_answer_always_fits_on_a_line(agent: AgentProcess, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content * (400_000 // len(content)))
    data = b""
    while True:
        seen = call(agent, "file_read", path, offset=len(data))
        piece = base64.b64decode(seen["text_base64"]) if "text_base64" in seen else seen["text"].encode()
        assert len(piece) == seen["bytes"] > 0
        data += piece
        if seen["end"]:
            break
    assert data == path.read_bytes()


def test_a_file_is_read_as_a_stream(agent: AgentProcess, tmp_path: Path) -> None:
    agent.hello()
    path = tmp_path / "file"
    data = os.urandom(900_000)
    path.write_bytes(data)
    stream = agent.open_stream()
    begun = call(agent, "file_read", path, offset=1000, length=800_000, stream=stream.number)
    assert begun["size"] == 900_000 and agent.read_stream(stream) == data[1000:801_000]
    assert agent.wait_for_job(begun["job"])["result"] == {"bytes": 800_000, "crc32": zlib.crc32(data[1000:801_000])}


def test_files_of_the_kernel(agent: AgentProcess) -> None:
    assert "VmRSS" in call(agent, "file_read", Path("/proc/self/status"))["text"]


# Writing


def test_a_file_is_replaced_as_a_whole(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert call(agent, "file_write", path, text="one ü") == {"bytes": 6, "size": 6}
    assert path.read_text() == "one ü" and stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    inode = path.stat().st_ino
    with path.open() as held:
        call(agent, "file_write", path, text="two", durable=True)
        assert held.read() == "one ü", "whoever reads the old file sees all of it"
    assert path.stat().st_ino != inode and stat.S_IMODE(path.stat().st_mode) == 0o600
    call(agent, "file_write", path, text="", mode=0o4750)
    assert path.read_bytes() == b"" and stat.S_IMODE(path.stat().st_mode) == 0o4750
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_file_is_written_where_it_is(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("0123456789")
    inode = path.stat().st_ino
    assert call(agent, "file_write", path, text="ab", offset=4) == {"bytes": 2, "size": 10}
    assert call(agent, "file_write", path, text="end", append=True) == {"bytes": 3, "size": 13}
    assert path.read_text() == "0123ab6789end" and path.stat().st_ino == inode
    assert call(agent, "file_write", tmp_path / "new", text="x", offset=3)["size"] == 4
    assert (tmp_path / "new").read_bytes() == b"\0\0\0x"


@pytest.mark.parametrize("how", [{}, {"append": True}, {"offset": 0}])
def test_what_must_or_must_not_be_there(agent: AgentProcess, tmp_path: Path, how: Json) -> None:
    path = tmp_path / "file"
    assert agent.error("file_write", path=str(path), text="x", create=False, **how)["code"] == -32002
    assert not path.exists()
    call(agent, "file_write", path, text="x", exclusive=True, **how)
    assert agent.error("file_write", path=str(path), text="y", exclusive=True, **how)["code"] == -32008
    assert path.read_text() == "x" and len(list(tmp_path.glob(".*part"))) == 0


def test_a_stream_becomes_a_file(agent: AgentProcess, tmp_path: Path) -> None:
    agent.hello()
    data = os.urandom(900_000)
    for how in ({}, {"append": True}):
        stream = agent.open_stream()
        job = call(agent, "file_write", tmp_path / "file", stream=stream.number, **how)["job"]
        agent.send_data(stream, data)
        result = agent.wait_for_job(job)["result"]
        assert result["bytes"] == 900_000 and result["crc32"] == zlib.crc32(data)
    assert (tmp_path / "file").read_bytes() == data * 2


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("file_write", {"path": "/tmp/x"}, -32602),
        ("file_write", {"path": "/tmp/x", "text": "", "stream": 1}, -32602),
        ("file_write", {"path": "/tmp/x", "text": "", "append": True, "offset": 1}, -32602),
        ("file_write", {"path": "/tmp/x", "text": 1}, -32602),
        ("file_write", {"path": "/tmp", "text": ""}, -32005),
        ("file_write", {"path": "/proc/version", "text": ""}, -32002),
        ("file_write", {"path": "/proc/none", "text": ""}, -32002),
        ("file_write", {"path": "/dev/null", "text": "", "append": True}, -32005),
        ("file_write", {"path": "/etc/passwd/x", "text": ""}, -32002),
        ("file_read", {"path": "/tmp"}, -32005),
        ("file_read", {"path": "/no/such"}, -32002),
        ("file_read", {"path": "/dev/zero"}, -32005),
        ("file_read", {"path": "/tmp", "offset": -1}, -32602),
        ("file_list", {"path": "/etc/passwd"}, -32002),
        ("file_list", {"path": "/tmp", "after": "xx"}, -32602),
        ("file_list", {"path": "/tmp", "after": "abc"}, -32602),
        ("file_list", {"path": "/tmp", "limit": 0}, -32602),
        ("file_mkdir", {"path": "/tmp"}, -32008),
        ("file_mkdir", {"path": "/etc/passwd/a/b", "parents": True}, -32002),
        ("file_mkdir", {"path": "/etc/passwd", "parents": True}, -32008),
        ("file_rename", {"path": "/no/such", "to": "/tmp/x"}, -32002),
        ("file_remove", {"path": "/no/such"}, -32002),
        ("file_remove", {"path": "/"}, -32005),
        ("file_remove", {"path": "/", "recursive": True}, -32005),
        ("file_stat", {"path": "/no/such"}, -32002),
        ("file_stat", {"path": "/" + "x" * 300}, -32005),
    ],
)
def test_refusals(agent: AgentProcess, method: str, params: Json, code: int) -> None:
    if params["path"] == "/":
        # What would be the end of this machine is tried on a directory that something is mounted on.
        params = {**params, "path": "/proc"}
        code = -32005 if params.get("recursive") else -32004
    error = agent.error(method, **params)
    assert error["code"] == code, error


# Looking


def test_stat_tells_what_a_file_is(agent: AgentProcess, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    path.chmod(0o2751)
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    (tmp_path / "link").symlink_to("file")
    seen = call(agent, "file_stat", tmp_path / "link")
    assert (seen["type"], seen["size"], seen["mode"], seen["mtime_ns"]) == (
        "file",
        5000,
        0o2751,
        1_700_000_000_123_456_789,
    )
    assert seen["inode"] == str(path.stat().st_ino) and seen["links"] == 1 and "target" not in seen
    link = call(agent, "file_stat", tmp_path / "link", follow=False)
    assert (link["type"], link["target"]) == ("symlink", "file")
    types = {"/": "directory", "/dev/null": "character-device", str(tmp_path / "fifo"): "fifo"}
    os.mkfifo(tmp_path / "fifo")
    assert {name: call(agent, "file_stat", Path(name))["type"] for name in types} == types


def test_a_directory_is_listed_in_pages(agent: AgentProcess, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    names = [*sorted(f"file {number:04d}".encode() for number in range(2500)), b"\xff odd", "ü".encode()]
    for name in names:
        (place / os.fsdecode(name)).touch()
    seen: list[bytes] = []
    after: Json = {}
    while True:
        page = call(agent, "file_list", place, limit=1000, **after)
        assert page["total"] == 2502
        for entry in page["entries"]:
            name = entry.get("name_base64")
            seen.append(base64.b64decode(name) if name else entry["name"].encode())
            assert entry["type"] == "file" and entry["size"] == 0
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert seen == sorted(names)
    assert call(agent, "file_list", place, limit=2)["next"] == b"file 0001".hex()


# Changing


def test_directories_are_made(agent: AgentProcess, tmp_path: Path) -> None:
    assert call(agent, "file_mkdir", tmp_path / "a", mode=0o2770) == {"created": 1}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o2770
    assert agent.error("file_mkdir", path=str(tmp_path / "b/c"))["code"] == -32002
    assert call(agent, "file_mkdir", tmp_path / "b/c/d", parents=True, mode=0o700) == {"created": 3}
    assert stat.S_IMODE((tmp_path / "b/c").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "b/c/d").stat().st_mode) == 0o700
    assert call(agent, "file_mkdir", tmp_path / "b/c/d", parents=True) == {"created": 0}


def test_files_are_renamed(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    error = agent.error("file_rename", path=str(tmp_path / "a"), to=str(tmp_path / "b"), replace=False)
    assert error["code"] == -32008
    assert call(agent, "file_rename", tmp_path / "a", to=str(tmp_path / "b")) == {}
    assert (tmp_path / "b").read_text() == "a" and not (tmp_path / "a").exists()
    (tmp_path / "link").symlink_to("b")
    call(agent, "file_rename", tmp_path / "link", to=str(tmp_path / "other"))
    assert (tmp_path / "other").is_symlink() and (tmp_path / "b").exists()


def test_a_tree_is_removed_and_nothing_behind_a_link(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/file").touch()
    for name in ("a/b/c", "a/d"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree/a/file").touch()
    (tmp_path / "tree/a/link").symlink_to(tmp_path / "keep")
    (tmp_path / "tree/a/b/c").chmod(0o500)
    assert agent.error("file_remove", path=str(tmp_path / "tree"))["code"] == -32005
    assert call(agent, "file_remove", tmp_path / "tree", recursive=True) == {"removed": 7}
    assert not (tmp_path / "tree").exists() and (tmp_path / "keep/file").exists()
    (tmp_path / "link").symlink_to("keep")
    assert call(agent, "file_remove", tmp_path / "link", recursive=True) == {"removed": 1}
    assert (tmp_path / "keep/file").exists()


def test_a_long_removal_holds_up_nobody_and_can_be_cancelled(agent: AgentProcess, tmp_path: Path) -> None:
    for name in range(20):
        (tmp_path / f"tree/{name}").mkdir(parents=True)
        for file in range(1000):
            (tmp_path / f"tree/{name}/{file}").touch()
    id_ = agent.send_request("file_remove", {"path": str(tmp_path / "tree"), "recursive": True})
    agent.result("ping")
    assert (tmp_path / "tree").exists(), "the ping waited for the removal"
    agent.send(json.dumps({"jsonrpc": "2.0", "method": "cancel", "params": {"id": id_}}).encode() + b"\n")
    assert agent.wait_for_answer(id_)["error"]["code"] == -32006
    assert (tmp_path / "tree").exists()
    assert agent.result("file_remove", path=str(tmp_path / "tree"), recursive=True)["removed"] > 1


def test_a_tree_that_grows_while_it_is_removed(agent: AgentProcess, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    stop = threading.Event()

    def grow() -> None:
        for number in range(100_000):
            if stop.is_set():
                return
            try:
                (tree / str(number)).touch()
            except OSError:
                return

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        agent.result("file_remove", path=str(tree), recursive=True)
    finally:
        stop.set()
        thread.join()
    assert not tree.exists()
