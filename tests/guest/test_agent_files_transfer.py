"""`file_put` and `file_get`: every kind of entry, every way to break one, and what is left behind."""

from __future__ import annotations

import json
import os
import stat
import time
import zlib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tests.guest import treeform
from tests.guest.agentprocess import RESET, AgentProcess, Json, wait_until

SCHEMAS = Path(__file__).parents[2] / "schemas" / "agent"
MTIME_NS = 1_700_000_000_123_456_789


@pytest.fixture(autouse=True)
def session(agent: AgentProcess) -> None:
    agent.hello()


def validate(name: str, value: Any) -> None:
    jsonschema_rs.validator_for(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(value)


def put(agent: AgentProcess, path: Path, data: bytes, **params: Any) -> Json:
    """Puts these bytes, and gives what `job_done` says."""
    stream = agent.open_stream()
    params = {"path": str(path), "stream": stream.number, **params}
    validate("file_put.params", params)
    job = agent.result("file_put", **params)
    validate("file_put.result", job)
    try:
        agent.send_data(stream, data)
    except AssertionError:
        assert stream.reset is not None  # it did not want the rest
    return agent.wait_for_job(job["job"])


def put_done(agent: AgentProcess, path: Path, data: bytes, **params: Any) -> Json:
    outcome = put(agent, path, data, **params)
    assert "result" in outcome, outcome
    result: Json = outcome["result"]
    return result


def put_fails(agent: AgentProcess, path: Path, data: bytes, **params: Any) -> Json:
    outcome = put(agent, path, data, **params)
    assert "error" in outcome, outcome
    error: Json = outcome["error"]
    return error


def get(agent: AgentProcess, path: Path, crc: int = 0, **params: Any) -> tuple[dict[str, treeform.Received], Json]:
    stream = agent.open_stream()
    params = {"path": str(path), "stream": stream.number, **params}
    validate("file_get.params", params)
    job = agent.result("file_get", **params)
    validate("file_get.result", job)
    data = agent.read_stream(stream)
    result: Json = agent.wait_for_job(job["job"])["result"]
    entries, end = treeform.decode_tree(data, crc)
    assert (end["entries"], end["bytes"]) == (result["entries"], result["bytes"])
    return entries, result


def begin_anew(agent: AgentProcess) -> None:
    """A new session ends the one before it, whose last frames are taken first."""
    agent.result("ping")
    agent.hello()


def list_hidden(directory: Path) -> list[Path]:
    return [path for path in directory.rglob(".*") if path.name.endswith(".unhinged-part")]


# What goes well


def test_one_file(agent: AgentProcess, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    target = tmp_path / "file"
    assert put_done(agent, target, treeform.encode_file("", data, mode=0o640) + treeform.encode_end(1, len(data))) == {
        "entries": 1,
        "bytes": len(data),
        "skipped": 0,
        "changed": [],
    }
    seen = target.stat()
    assert target.read_bytes() == data
    assert (stat.S_IMODE(seen.st_mode), seen.st_mtime_ns) == (0o640, MTIME_NS)
    entries, _ = get(agent, target)
    assert entries[""].content == data
    assert entries[""].line == {"path": "", "type": "file", "mode": 0o640, "mtime_ns": MTIME_NS, "size": len(data)}


def test_a_tree_of_every_kind_comes_back_as_it_went(agent: AgentProcess, tmp_path: Path) -> None:
    odd = b"\xff line\nfeed".decode("utf-8", "surrogateescape")
    sent = (
        treeform.encode_entry("", "directory", mode=0o751)
        + treeform.encode_file("a", b"first")
        + treeform.encode_entry("bin", "directory", mode=0o500)
        + treeform.encode_file("bin/tool", b"x" * 100_000, mode=0o4755)
        + treeform.encode_entry("bin/alias", "symlink", target="tool")
        + treeform.encode_entry("bin/away", "symlink", target="/no/such/place")
        + treeform.encode_entry("bin/again", "hardlink", target="a")
        + treeform.encode_entry("empty", "directory")
        + treeform.encode_entry("pipe", "fifo", mode=0o622)
        + treeform.encode_file(odd, b"")
        + treeform.encode_entry("sparse", "file", size=10_000_000)
        + treeform.encode_content((4_000_000, b"middle"), size=10_000_000)
        + treeform.encode_end(11, 5 + 100_000 + 6)
    )
    root = tmp_path / "tree"
    put_done(agent, root, sent)
    assert stat.S_IMODE(root.stat().st_mode) == 0o751 and root.stat().st_mtime_ns == MTIME_NS
    assert stat.S_IMODE((root / "bin").stat().st_mode) == 0o500 and (root / "bin").stat().st_mtime_ns == MTIME_NS
    assert stat.S_IMODE((root / "bin/tool").stat().st_mode) == 0o4755
    assert (root / "bin/alias").readlink() == Path("tool") and (root / "bin/away").lstat().st_mtime_ns == MTIME_NS
    assert (root / "bin/again").stat().st_ino == (root / "a").stat().st_ino
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode) and stat.S_IMODE((root / "pipe").stat().st_mode) == 0o622
    sparse = (root / "sparse").stat()
    assert sparse.st_size == 10_000_000 and sparse.st_blocks * 512 < 100_000
    assert b"\xff line\nfeed" in os.listdir(os.fsencode(root))  # noqa: PTH208 # as bytes
    assert not list_hidden(tmp_path)

    entries, result = get(agent, root)
    assert result["entries"] == 11 and not result["skipped"] and not result["changed"]
    types = {path: entry.line["type"] for path, entry in entries.items()}
    # Which of two names of a file comes first is for the file system to say.
    assert {types.pop("a"), types.pop("bin/again")} == {"file", "hardlink"}
    assert types == {
        "": "directory", "bin": "directory", "bin/tool": "file", "bin/alias": "symlink", "bin/away": "symlink",
        "empty": "directory", "pipe": "fifo", odd: "file", "sparse": "file",
    }  # fmt: skip
    assert entries["bin/tool"].content == b"x" * 100_000 and entries["bin/alias"].line["target"] == "tool"
    assert entries["sparse"].content == bytes(4_000_000) + b"middle" + bytes(5_999_994)
    assert sum(length for _, length in entries["sparse"].pieces) < 100_000
    assert all(entry.line["mtime_ns"] == MTIME_NS for entry in entries.values())
    paths = list(entries)
    for path in paths[1:]:
        parent = path.rpartition("/")[0]
        between = paths[paths.index(parent) + 1 : paths.index(path)]
        assert all(other.startswith(f"{parent}/") or not parent for other in between), "a directory comes in parts"


def test_a_tree_is_merged_into_what_is_there(agent: AgentProcess, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "sub").chmod(0o700)
    (root / "sub/old").write_text("old")
    (root / "sub/new").write_text("before")
    (root / "link").symlink_to("/no/such")
    sent = (
        treeform.encode_entry("", "directory")
        + treeform.encode_entry("sub", "directory", mode=0o777)
        + treeform.encode_file("sub/new", b"after")
        + treeform.encode_file("link", b"a file now")
        + treeform.encode_end(4, 15)
    )
    put_done(agent, root, sent)
    assert (root / "sub/old").read_text() == "old" and (root / "sub/new").read_text() == "after"
    assert not (root / "link").is_symlink() and (root / "link").read_text() == "a file now"
    assert stat.S_IMODE((root / "sub").stat().st_mode) == 0o700


def test_a_link_at_the_end_of_the_path_is_followed(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to("real")
    put_done(agent, tmp_path / "link", treeform.encode_file("", b"after") + treeform.encode_end(1, 5))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "after"
    assert get(agent, tmp_path / "link")[0][""].content == b"after"


def test_a_replaced_file_keeps_its_owner_and_asked_ones_are_set(agent: AgentProcess, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away: run as root")
    target = tmp_path / "file"
    target.write_text("before")
    os.chown(target, 1234, 2345)
    put_done(agent, target, treeform.encode_file("", b"after") + treeform.encode_end(1, 5))
    assert (target.stat().st_uid, target.stat().st_gid) == (1234, 2345)
    sent = treeform.encode_file("", b"again", uid=3456, gid=4567) + treeform.encode_end(1, 5)
    put_done(agent, target, sent, owner=True)
    assert (target.stat().st_uid, target.stat().st_gid) == (3456, 4567)
    line = get(agent, target, owner=True)[0][""].line
    assert (line["uid"], line["gid"]) == (3456, 4567)


def test_durable_files_arrive_like_any_other(agent: AgentProcess, tmp_path: Path) -> None:
    sent = (
        treeform.encode_entry("", "directory")
        + b"".join(treeform.encode_file(f"f{number}", b"data") for number in range(5))
        + treeform.encode_end(6, 20)
    )
    put_done(agent, tmp_path / "tree", sent, durable=True)
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == [f"f{number}" for number in range(5)]


def test_ten_thousand_small_files_hold_up_nobody(agent: AgentProcess, tmp_path: Path) -> None:
    count = 10_000
    stream = agent.open_stream()
    job = agent.result("file_put", path=str(tmp_path / "tree"), stream=stream.number)["job"]
    sent = treeform.encode_entry("", "directory") + b"".join(
        treeform.encode_file(f"file-{number}", b"%d" % number) for number in range(count)
    )
    slowest = 0.0
    for at in range(0, len(sent), 60_000):
        agent.send_data(stream, sent[at : at + 60_000], end=False)
        begin = time.monotonic()
        agent.result("ping")
        slowest = max(slowest, time.monotonic() - begin)
    agent.send_data(stream, treeform.encode_end(count + 1, sum(len(str(number)) for number in range(count))))
    assert agent.wait_for_job(job)["result"]["entries"] == count + 1
    assert slowest < 0.5, "a ping waited for files"
    entries, _ = get(agent, tmp_path / "tree")
    assert len(entries) == count + 1 and entries["file-77"].content == b"77"


def test_what_cannot_be_copied_is_counted(agent: AgentProcess, tmp_path: Path) -> None:
    import socket

    root = tmp_path / "tree"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        entries, result = get(agent, root)
    assert list(entries) == [""] and result["skipped"] == 1


def test_files_of_the_kernel_are_read_to_their_end(agent: AgentProcess) -> None:
    entries, result = get(agent, Path("/proc/self/status"))
    assert entries[""].line["size"] == 0 and b"VmRSS" in entries[""].content and not result["changed"]


# What goes wrong


ROOT = treeform.encode_entry("", "directory")
LINK = treeform.encode_entry("a", "symlink", target="/etc")


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        (b"", -32010, "too early"),
        (ROOT, -32010, "too early"),
        (treeform.encode_file("", b"data")[:-2], -32010, "too early"),
        (treeform.encode_file("", b"data"), -32010, "too early"),
        (treeform.encode_file("", b"data") + treeform.encode_end(1, 5), -32010, "1 entries with 4 bytes"),
        (treeform.encode_file("", b"data") + treeform.encode_end(2, 4), -32010, "1 entries with 4 bytes"),
        (treeform.encode_file("", b"data") + treeform.encode_end(1, 4) + b"x", -32010, "follows the end"),
        (treeform.encode_file("", b"data")[:-1] + b"\xee", -32010, "CRC-32"),
        (treeform.encode_entry("", "file", size=1) + treeform.encode_content((5, b"a"), (2, b"b")), -32010, "piece"),
        (treeform.encode_entry("", "file", size=1) + (0).to_bytes(8, "little") + b"\xff" * 4, -32010, "piece"),
        (treeform.encode_entry("", "file", size=1) + b"\xff" * 8 + bytes(8), -32010, "piece"),
        (b"x" * 200_000, -32010, "longer"),
        (b"[]\n", -32010, "not an object"),
        (b"\xff\n", -32010, "not JSON"),
        (b"[" * 100_000 + b"\n", -32010, "nested"),
        (b"{}\n", -32010, "type"),
        (treeform.encode_entry("", "device"), -32010, "type"),
        (treeform.encode_entry("", "directory", mode=0o10000), -32010, "mode"),
        (treeform.encode_entry("", "directory", mtime_ns=2**64), -32010, "mtime_ns"),
        (treeform.encode_entry("a", "directory"), -32010, "follow its directory"),
        (ROOT + treeform.encode_file("a/b", b""), -32010, "follow its directory"),
        (ROOT + LINK + treeform.encode_file("a/b", b""), -32010, "follow its directory"),
        (ROOT + ROOT, -32010, "second time"),
        (ROOT + treeform.encode_file("../out", b""), -32010, "path"),
        (ROOT + treeform.encode_file("/etc/passwd", b""), -32010, "path"),
        (ROOT + treeform.encode_file("a//b", b""), -32010, "path"),
        (ROOT + treeform.encode_file("a\0b", b""), -32010, "name"),
        (ROOT + treeform.encode_file("\ud800", b""), -32010, "text"),
        (ROOT + treeform.encode_entry("a", "hardlink", target="../out"), -32010, "hard link"),
        (ROOT + treeform.encode_entry("a", "hardlink", target="/etc/passwd"), -32010, "hard link"),
        (ROOT + treeform.encode_entry("a", "hardlink", target="none"), -32010, "hard link"),
        (ROOT + treeform.encode_file("x" * 256, b"data"), -32005, "too long"),
        (ROOT + treeform.encode_entry("taken", "directory"), -32008, "taken"),
        (ROOT + treeform.encode_file("folder", b""), -32005, "folder"),
    ],
)  # fmt: skip
def test_a_broken_tree_ends_the_job_and_leaves_nothing_half_written(
    agent: AgentProcess, tmp_path: Path, sent: bytes, code: int, words: str
) -> None:
    target = tmp_path / "place" / "target"
    if sent.startswith(ROOT):
        target.mkdir(parents=True)
        (target / "taken").write_text("here before")
        (target / "folder").mkdir()
    else:
        target.parent.mkdir()
    (tmp_path / "place" / "out").write_text("outside")
    error = put_fails(agent, target, sent)
    assert error["code"] == code and words in error["message"], error
    assert not list_hidden(tmp_path)
    if target.is_dir():
        assert (target / "taken").read_text() == "here before"
        assert {path.name for path in target.iterdir()} <= {"taken", "folder", "a"}
    else:
        assert not target.exists()
    agent.result("ping")


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"path": "relative"}, -32602),
        ({"path": "/a\0b"}, -32602),
        ({"path": "/\ud800"}, -32602),
        ({"path": "/no/such/directory/file"}, -32002),
        ({"path": "/etc/passwd/file"}, -32002),
        ({"path": "/" + "x" * 4095}, -32602),
        ({"stream": 0}, -32602),
        ({"owner": 1}, -32602),
    ],
)
def test_a_call_that_cannot_begin(agent: AgentProcess, params: Json, code: int) -> None:
    for method in ("file_put", "file_get"):
        assert agent.error(method, **{"path": "/no/such/file", "stream": 1, **params})["code"] == code
        assert agent.result("job_list")["jobs"] == []


def test_a_device_is_not_copied(agent: AgentProcess) -> None:
    stream = agent.open_stream()
    job = agent.result("file_get", path="/dev/null", stream=stream.number)["job"]
    assert agent.wait_for_job(job)["error"]["code"] == -32005


def test_the_host_that_goes_midway_leaves_nothing(agent: AgentProcess, tmp_path: Path) -> None:
    target = tmp_path / "file"
    sent = treeform.encode_file("", b"x" * 500_000)
    stream = agent.open_stream()
    agent.result("file_put", path=str(target), stream=stream.number)
    agent.send_data(stream, sent[:200_000], end=False)
    wait_until(lambda: list_hidden(tmp_path), "the hidden file")
    begin_anew(agent)
    assert not list_hidden(tmp_path) and not target.exists()
    stream = agent.open_stream()
    job = agent.result("file_put", path=str(target), stream=stream.number)["job"]
    agent.send_data(stream, sent[:200_000], end=False)
    wait_until(lambda: list_hidden(tmp_path), "the hidden file")
    agent.send_frame(RESET, stream.number, b"changed my mind")
    assert agent.wait_for_job(job)["error"]["code"] == -32006
    assert not list_hidden(tmp_path) and not target.exists()


@pytest.mark.parametrize("method", ["file_put", "file_get"])
def test_a_job_is_cancelled(agent: AgentProcess, tmp_path: Path, method: str) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(2_000_000))
    stream = agent.open_stream()
    stream.grants = False
    path = big if method == "file_get" else tmp_path / "new"
    job = agent.result(method, path=str(path), stream=stream.number)["job"]
    agent.result("job_cancel", job=job)
    assert agent.wait_for_job(job)["error"]["code"] == -32006
    agent.wait_until(lambda: stream.reset is not None, "the reset")
    assert not list_hidden(tmp_path) and agent.result("job_list")["jobs"] == []


def list_descriptors(agent: AgentProcess) -> list[str]:
    return sorted(str(path.readlink()) for path in Path(f"/proc/{agent.process.pid}/fd").iterdir())


def test_no_descriptor_is_left_behind(agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    before: list[str] = []
    for _ in range(3):
        before = before or (list_descriptors(agent) if (tmp_path / "tree").exists() else [])
        put_done(agent, tmp_path / "new", treeform.encode_file("", b"data") + treeform.encode_end(1, 4))
        put_fails(agent, tmp_path / "other", treeform.encode_file("", b"data"))
        put_done(
            agent, tmp_path / "tree", ROOT + treeform.encode_file("a", b"") + treeform.encode_end(2, 0), durable=True
        )
        get(agent, tmp_path)
        stream = agent.open_stream()
        for method in ("file_put", "file_get"):
            job = agent.result(method, path=str(tmp_path / "file"), stream=agent.open_stream().number)["job"]
            agent.call("job_cancel", job=job)  # a short one may have ended already
            agent.wait_for_job(job)
        agent.error("file_get", path=str(tmp_path / "none"), stream=stream.number)
        agent.error("file_put", path=str(tmp_path / "none/none"), stream=stream.number)
    assert before and list_descriptors(agent) == before


# Files that do not stand still


def test_a_file_that_shrinks_or_grows_arrives_as_it_was_read(agent: AgentProcess, tmp_path: Path) -> None:
    for change, seen in (("shrink", 1_000_000), ("grow", 3_000_000)):
        path = tmp_path / change
        path.write_bytes(b"y" * 3_000_000)
        stream = agent.open_stream()
        stream.grants = False
        job = agent.result("file_get", path=str(path), stream=stream.number)["job"]
        agent.wait_until(lambda stream=stream: len(stream.data) == 262144, "the first bytes")  # type: ignore[misc]
        if change == "shrink":
            os.truncate(path, seen)
        else:
            with path.open("ab") as file:
                file.write(b"z" * 1000)
        stream.grants = True
        agent.send_frame(5, stream.number, (262144).to_bytes(4, "little"))
        entries, _ = treeform.decode_tree(agent.read_stream(stream))
        assert entries[""].content == b"y" * seen
        assert agent.wait_for_job(job)["result"]["changed"] == [""]


# Resuming


def test_a_put_is_resumed_where_it_was_cut_off(agent: AgentProcess, tmp_path: Path) -> None:
    data = os.urandom(600_000)
    target = tmp_path / "file"
    hidden = tmp_path / ".file.unhinged-part"
    stream = agent.open_stream()
    first = agent.result("file_put", path=str(target), stream=stream.number, resume=True)
    assert (first["offset"], first["crc32"]) == (0, 0)
    busy = agent.open_stream()
    assert agent.error("file_put", path=str(target), stream=busy.number, resume=True)["code"] == -32004
    agent.send_data(stream, treeform.encode_file("", data)[:400_000], end=False)
    wait_until(lambda: hidden.stat().st_size > 250_000, "most of what was sent")
    begin_anew(agent)
    assert not target.exists()

    there = hidden.stat().st_size
    stream = agent.open_stream()
    again = agent.result("file_put", path=str(target), stream=stream.number, resume=True)
    assert again["offset"] == there and again["crc32"] == zlib.crc32(data[:there])
    sent = treeform.encode_entry("", "file", size=len(data), offset=there)
    sent += treeform.encode_content((there, data[there:]), crc=again["crc32"])
    agent.send_data(stream, sent + treeform.encode_end(1, len(data) - there))
    assert agent.wait_for_job(again["job"])["result"]["bytes"] == len(data) - there
    assert target.read_bytes() == data and not hidden.exists()


def test_a_put_begins_anew_when_the_source_has_changed(agent: AgentProcess, tmp_path: Path) -> None:
    target = tmp_path / "file"
    (tmp_path / ".file.unhinged-part").write_bytes(b"z" * 1000)
    sent = treeform.encode_file("", b"short") + treeform.encode_end(1, 5)
    put_done(agent, target, sent, resume=True)
    assert target.read_bytes() == b"short" and not list_hidden(tmp_path)
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / ".file.unhinged-part").symlink_to("other")
    put_done(agent, target, sent, resume=True)
    assert target.read_bytes() == b"short" and not target.is_symlink() and not list_hidden(tmp_path)
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_resumed_put_that_is_broken_keeps_what_is_there(agent: AgentProcess, tmp_path: Path) -> None:
    target = tmp_path / "file"
    put_fails(agent, target, treeform.encode_file("", b"data")[:-30], resume=True)
    assert not target.exists() and (tmp_path / ".file.unhinged-part").exists()
    assert put_fails(agent, target, ROOT, resume=True)["code"] == -32010


def test_a_get_is_resumed(agent: AgentProcess, tmp_path: Path) -> None:
    data = os.urandom(500_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    crc = zlib.crc32(data[:123_457])
    entries, result = get(agent, path, crc, offset=123_457, crc32=crc)
    assert entries[""].line["offset"] == 123_457 and entries[""].content[123_457:] == data[123_457:]
    assert result["bytes"] == 500_000 - 123_457
    entries, result = get(agent, path, offset=123_457, crc32=crc ^ 1)
    assert "offset" not in entries[""].line and entries[""].content == data
    entries, _ = get(agent, path, offset=600_000, crc32=crc)
    assert entries[""].content == data


def test_names_as_long_as_names_can_be(agent: AgentProcess, tmp_path: Path) -> None:
    name = "ü" * 127
    sent = treeform.encode_file("", b"data") + treeform.encode_end(1, 4)
    put_done(agent, tmp_path / name, sent)
    put_done(agent, tmp_path / (name + "x"), sent, resume=True)
    assert (tmp_path / name).read_bytes() == (tmp_path / (name + "x")).read_bytes() == b"data"


def test_a_full_disk_leaves_nothing_behind(agent: AgentProcess, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m none {full}") != 0:
        pytest.skip("mounting is not possible here: run as root where it is")
    try:
        (full / "file").write_text("before")
        sent = treeform.encode_file("", bytes(1_300_000)) + treeform.encode_end(1, 1_300_000)
        error = put_fails(agent, full / "file", sent)
        assert error["code"] == -32005 and error["data"]["errno"] == "ENOSPC"
        assert (full / "file").read_text() == "before" and not list_hidden(full)
        os.system(f"mount -o remount,ro {full}")
        error = put_fails(agent, full / "file", treeform.encode_file("", b"data") + treeform.encode_end(1, 4))
        assert error["code"] == -32003 and error["data"]["errno"] == "EROFS"
    finally:
        os.system(f"umount {full}")
