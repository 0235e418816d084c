"""The rules of the configuration: a hostile call, a hostile guest, a race: none reaches more than they allow."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest.agent.pathpolicy import READ, WRITE, Denied, Policy
from tests.guest import treeform
from tests.guest.agentprocess import AgentProcess, Json

NOT_PERMITTED = -32003
SECRET = "nobody may read this"


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    """`in` is allowed but for `in/secret`, `out` is not."""
    for name in ("in/dir/deep", "in/secret/deep", "out/dir"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/file").write_text("fine")
    (tmp_path / "in/dir/file").write_text("fine")
    for name in ("out/file", "out/dir/file", "in/secret/file", "in/secret/deep/file"):
        (tmp_path / name).write_text(SECRET)
    return tmp_path


@pytest.fixture
def guarded(ground: Path) -> Iterator[AgentProcess]:
    allowed = [str(ground / "in")]
    settings = {"read_paths": allowed, "write_paths": allowed, "denied_paths": [str(ground / "in/secret")]}
    agent = AgentProcess(ground, settings)
    agent.hello()
    yield agent
    assert agent.close() == 0


MADE: list[Policy] = []


@pytest.fixture(autouse=True)
def close_policies() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def build(ground: Path, read: str = "in", write: tuple[str, ...] = ("in",), denied: str = "in/secret") -> Policy:
    policy = Policy([str(ground / read)], [str(ground / name) for name in write], [str(ground / denied)])
    MADE.append(policy)
    return policy


def read(policy: Policy, path: str | Path) -> str:
    with policy.find(os.fsencode(path), READ) as place:
        fd = place.open_file(os.O_RDONLY)
        try:
            return os.read(fd, 100).decode()
        finally:
            os.close(fd)


def list_ways_out(ground: Path) -> Iterator[tuple[str, str]]:
    """Every way out of the allowed place that we know: what it is, and a path that would lead to the secret."""
    inside = ground / "in"
    (inside / "absolute").symlink_to(ground / "out/file")
    (inside / "relative").symlink_to("../out/file")
    (inside / "directory").symlink_to(ground / "out")
    (inside / "up").symlink_to("..")
    (inside / "chain").symlink_to("absolute")
    (inside / "root").symlink_to("/")
    (inside / "process").symlink_to("/proc/self/root")
    (inside / "back").symlink_to("secret")
    yield "outside", f"{ground}/out/file"
    yield "dots", f"{inside}/../out/file"
    yield "dots behind what is there", f"{inside}/dir/deep/../../../out/file"
    yield "dots from the root", f"/../../..{ground}/out/file"
    yield "doubled slashes", f"//{ground}//out//./file"
    yield "an absolute link", f"{inside}/absolute"
    yield "a relative link", f"{inside}/relative"
    yield "a link to a directory", f"{inside}/directory/file"
    yield "a link upwards", f"{inside}/up/out/file"
    yield "a link to a link", f"{inside}/chain"
    yield "a link to the root", f"{inside}/root{ground}/out/file"
    yield "the root of a process", f"/proc/self/root{ground}/out/file"
    yield "the root of a process by a link", f"{inside}/process{ground}/out/file"
    yield "the directory of a process", f"/proc/self/cwd/..{ground}/out/file"
    yield "a thread", f"/proc/thread-self/root{ground}/out/file"
    yield "a denied directory", f"{inside}/secret/file"
    yield "what lies deep in it", f"{inside}/secret/deep/file"
    yield "a denied directory by dots", f"{inside}/dir/../secret/file"
    yield "a denied directory by a link", f"{inside}/back/deep/file"
    yield "a name that begins like it", f"{inside}/../in-other"


def test_no_way_out_is_open_to_any_method(guarded: AgentProcess, ground: Path) -> None:
    before = {path: path.read_text() for path in ground.glob("**/file")}
    for what, path in list_ways_out(ground):
        stream = guarded.open_stream().number
        calls: list[tuple[str, Json]] = [
            ("file_read", {"path": path}),
            ("file_read", {"path": path, "stream": stream}),
            ("file_write", {"path": path, "text": "overwritten"}),
            ("file_write", {"path": path, "text": "added", "append": True}),
            ("file_stat", {"path": path}),
            ("file_list", {"path": path}),
            ("file_put", {"path": path, "stream": stream}),
            ("file_put", {"path": path, "stream": stream, "resume": True}),
            ("file_get", {"path": path, "stream": stream}),
            ("file_watch", {"path": path}),
        ]
        for method, params in calls:
            error = guarded.error(method, **params)
            assert error["code"] == NOT_PERMITTED, (what, method, error)
        # These act on a link itself, which is inside; only where it leads on the way counts.
        if not Path(path).is_symlink():
            calls = [
                ("file_remove", {"path": path}),
                ("file_rename", {"path": path, "to": f"{ground}/in/stolen"}),
                ("file_rename", {"path": f"{ground}/in/file", "to": path}),
                ("file_mkdir", {"path": path + "/new", "parents": True}),
            ]
            for method, params in calls:
                assert guarded.error(method, **params)["code"] == NOT_PERMITTED, (what, method)
    assert {path: path.read_text() for path in ground.glob("**/file")} == before
    assert guarded.result("file_read", path=f"{ground}/in/dir/../file")["text"] == "fine"


def test_a_refusal_does_not_tell_what_exists(guarded: AgentProcess, ground: Path) -> None:
    for there, not_there in ((ground / "out/dir/file", ground / "out/none/file"), (ground / "out", ground / "none")):
        seen = [guarded.error("file_stat", path=str(path)) for path in (there, not_there)]
        assert seen[0]["code"] == seen[1]["code"] == NOT_PERMITTED
        assert seen[0]["data"]["errno"] == seen[1]["data"]["errno"] and seen[0]["data"]["key"] == "read_paths"


@pytest.mark.parametrize("path", ["/a\0b", "relative", "", "/\ud800", "~/x", "/" + "a" * 5000])
def test_paths_that_are_none(guarded: AgentProcess, path: str) -> None:
    for method in ("file_read", "file_stat", "file_list", "file_remove", "file_watch"):
        assert guarded.error(method, path=path)["code"] == -32602


def test_names_that_are_no_text_go_both_ways(agent: AgentProcess, tmp_path: Path) -> None:
    for name in (b"line\nfeed", b"\xff\xfe", b"\x1b[31m", b" ", b"-rf", b"$(id)", "\u2028".encode()):
        path = str(tmp_path / "names" / os.fsdecode(name))
        agent.result("file_mkdir", path=str(tmp_path / "names"), parents=True)
        agent.result("file_write", path=path, text="x")
        assert (tmp_path / "names" / os.fsdecode(name)).read_text() == "x"
        assert agent.result("file_stat", path=path)["size"] == 1
        agent.result("file_remove", path=path)
        assert list((tmp_path / "names").iterdir()) == []


def test_a_tree_cannot_be_put_through_a_link(guarded: AgentProcess, ground: Path) -> None:
    (ground / "in/dir/link").symlink_to(ground / "out")
    sent = (
        treeform.encode_entry("", "directory")
        + treeform.encode_entry("link", "directory")
        + treeform.encode_file("link/file", b"escaped")
        + treeform.encode_end(3, 7)
    )
    stream = guarded.open_stream()
    job = guarded.result("file_put", path=str(ground / "in/dir"), stream=stream.number)["job"]
    guarded.send_data(stream, sent)
    assert guarded.wait_for_job(job)["error"]["code"] == -32008
    assert (ground / "out/file").read_text() == SECRET


def test_a_tree_leaves_out_and_does_not_fill_what_is_denied(guarded: AgentProcess, ground: Path) -> None:
    stream = guarded.open_stream()
    job = guarded.result("file_get", path=str(ground / "in"), stream=stream.number)["job"]
    entries, _ = treeform.decode_tree(guarded.read_stream(stream))
    assert "dir/file" in entries and not any(path.startswith("secret") for path in entries)
    assert guarded.wait_for_job(job)["result"]["skipped"] == 1
    sent = treeform.encode_entry("", "directory") + treeform.encode_entry("secret", "directory")
    stream = guarded.open_stream()
    job = guarded.result("file_put", path=str(ground / "in"), stream=stream.number)["job"]
    guarded.send_data(stream, sent)
    assert guarded.wait_for_job(job)["error"]["code"] == NOT_PERMITTED
    assert guarded.error("file_remove", path=str(ground / "in"), recursive=True)["code"] == NOT_PERMITTED
    listed = {entry["name"]: entry for entry in guarded.result("file_list", path=str(ground / "in"))["entries"]}
    assert "size" in listed["file"] and "size" not in listed["secret"]


def test_what_is_denied_stays_so_under_another_name(ground: Path) -> None:
    policy = build(ground)
    (ground / "in/secret").rename(ground / "in/public")
    with pytest.raises(Denied):
        read(policy, ground / "in/public/file")
    with pytest.raises(Denied):
        read(policy, ground / "in/public/deep/file")


@pytest.mark.parametrize("inner", ["", "deep"])
def test_what_is_denied_stays_so_behind_another_mount(ground: Path, inner: str) -> None:
    policy = build(ground)
    place = ground / "in/mounted"
    place.mkdir()
    done = subprocess.run(["mount", "--bind", ground / "in/secret" / inner, place], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("mounting is not possible here: run as root where it is")
    try:
        with pytest.raises(Denied):
            read(policy, place / "file")
        with pytest.raises(Denied):
            read(build(ground), place / "file")
    finally:
        subprocess.run(["umount", place], check=True)


def test_rules_named_by_a_link_hold_for_what_it_leads_to(ground: Path) -> None:
    (ground / "name").symlink_to("in")
    policy = build(ground, "name", (), "name/secret")
    assert read(policy, ground / "name/file") == read(policy, ground / "in/file") == "fine"
    for path in ("in/secret/file", "name/secret/file", "out/file"):
        with pytest.raises(Denied):
            read(policy, ground / path)
    with pytest.raises(Denied):
        policy.find(os.fsencode(ground / "in/file"), WRITE)


def test_links_that_go_in_circles(ground: Path) -> None:
    (ground / "in/a").symlink_to("b")
    (ground / "in/b").symlink_to("a")
    for policy in (build(ground), Policy(None, None, [])):
        with pytest.raises(OSError, match="too many levels"):
            read(policy, ground / "in/a")


def test_devices_are_not_opened(ground: Path) -> None:
    os.mkfifo(ground / "in/pipe")
    for policy in (build(ground), Policy(None, None, [])):
        with pytest.raises(OSError, match="not a regular file"):
            read(policy, ground / "in/pipe")


@pytest.mark.parametrize("what", ["last", "middle", "parent"])
def test_a_race_is_never_won(ground: Path, what: str) -> None:
    """Something in the guest swaps a part of the path for a link, or moves it away, as fast as it can."""
    inside = ground / "in"
    (inside / "good").mkdir()
    (inside / "good/file").write_text("fine")
    spare = ground / "spare"
    stop = threading.Event()

    def swap(path: Path, target: Path) -> None:
        while not stop.is_set():
            path.rename(spare)
            path.symlink_to(target)
            path.unlink()
            spare.rename(path)

    ways = {
        "last": (inside / "good/file", ground / "out/file"),
        "middle": (inside / "good", ground / "out"),
        "parent": (inside / "good", inside / "secret"),
    }
    thread = threading.Thread(target=swap, args=ways[what])
    policy = build(ground)
    won = refused = 0
    thread.start()
    try:
        end = time.monotonic() + 30
        # On a busy machine one of the two may have all the luck for a long time.
        while won + refused < 3000 or not ((won and refused) or time.monotonic() > end):
            try:
                assert read(policy, inside / "good/file") != SECRET
                won += 1
            except OSError:
                refused += 1
            try:
                with policy.find(os.fsencode(inside / "good/new"), WRITE) as place:
                    os.close(place.open_file(os.O_WRONLY | os.O_CREAT))
            except OSError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert won and refused
    assert not any((ground / name).exists() for name in ("out/new", "in/secret/new"))


def test_no_descriptor_is_left_by_a_refusal(ground: Path) -> None:
    policy = build(ground)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _, path in list_ways_out(ground):
        with pytest.raises(OSError):
            read(policy, path)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# The other rules


def start(directory: Path, **settings: Any) -> AgentProcess:
    agent = AgentProcess(directory, settings)
    agent.hello()
    return agent


def test_methods_are_allowed_and_denied(tmp_path: Path) -> None:
    agent = start(tmp_path, method_allow=["file_*", "message", "diagnostics"], method_deny=["file_remove"])
    agent.result("file_stat", path="/")
    calls: list[tuple[str, Json]] = [
        ("file_remove", {"path": "/no/such"}),
        ("exec_command", {"argv": ["true"]}),
        ("shutdown", {}),
    ]
    for method, params in calls:
        error = agent.error(method, **params)
        assert error["code"] == NOT_PERMITTED and method in error["message"]
    capabilities = agent.result("get_agent_info")["capabilities"]
    assert "file_stat" in capabilities and "ping" in capabilities
    assert "file_remove" not in capabilities and "exec_command" not in capabilities
    assert agent.command("command", "diagnostics")["type"] == "status"
    for verb in ("shutdown", "restart"):
        answer = agent.command("command", verb)
        assert answer["type"] == "error" and answer["data"]["details"]["code"] == "not-permitted"
    assert agent.close() == 0 and not (tmp_path / "powered-off").exists()


def test_denying_messages_closes_every_carrier(tmp_path: Path) -> None:
    agent = start(tmp_path, method_deny=["message"])
    assert agent.error("message", type="status")["code"] == NOT_PERMITTED
    assert agent.close() == 0


def test_only_allowed_programs_run_and_nothing_is_slipped_into_them(tmp_path: Path) -> None:
    true = subprocess.run(["which", "true"], capture_output=True, text=True, check=True).stdout.strip()
    agent = start(tmp_path, command_allow=[true])
    assert agent.result("exec_command", argv=["true"])["exit_code"] == 0
    assert agent.result("exec_command", argv=[true], env={"LANG": "C", "LC_ALL": "C"})["exit_code"] == 0
    (tmp_path / "true").write_text("#!/bin/sh\n")
    (tmp_path / "true").chmod(0o755)
    calls: list[Json] = [
        {"argv": ["sh", "-c", "true"]},
        {"argv": [str(tmp_path / "true")]},
        {"argv": ["./true"], "cwd": str(tmp_path)},
        {"argv": [true + "/../" + Path(true).name]},
        {"argv": ["true"], "env": {"PATH": str(tmp_path)}},
        {"argv": ["true"], "env": {"LD_PRELOAD": "/tmp/evil.so"}},
    ]
    for params in calls:
        assert agent.error("exec_command", **params)["code"] in (NOT_PERMITTED, -32002), params
        assert agent.error("exec_start", **params)["code"] in (NOT_PERMITTED, -32002), params
    assert agent.close() == 0


def test_commands_have_a_greatest_time(tmp_path: Path) -> None:
    agent = start(tmp_path, exec_max_timeout_s=0.3)
    assert agent.result("exec_command", argv=["sleep", "30"], timeout_s=20)["timed_out"]
    assert agent.result("exec_command", argv=["sleep", "30"])["timed_out"]
    assert agent.close() == 0


def test_too_many_calls_are_told_when_to_come_again(tmp_path: Path) -> None:
    agent = start(tmp_path, calls_per_second=2, calls_burst=5)
    answers = [agent.call("ping") for _ in range(8)]
    errors = [answer["error"] for answer in answers if "error" in answer]
    assert len(errors) >= 2 and all(error["code"] == -32004 for error in errors)
    assert 0 < errors[-1]["data"]["retry_after_s"] <= 0.5
    agent.hello()  # beginning anew is never put off
    assert agent.close() == 0


def test_sizes_are_limited(tmp_path: Path) -> None:
    agent = start(tmp_path, transfer_bytes=1000, transfer_entries=2, file_text_bytes=10)
    big = tmp_path / "big"
    big.write_bytes(bytes(2000))
    stream = agent.open_stream()
    job = agent.result("file_get", path=str(big), stream=stream.number)["job"]
    assert agent.wait_for_job(job)["error"]["code"] == -32007
    for sent in (
        treeform.encode_file("", bytes(2000)),
        treeform.encode_entry("", "file", size=1) + treeform.encode_content((2**40, b"x")),
        treeform.encode_entry("", "file", size=1) + treeform.encode_content(size=2**62),
        treeform.encode_entry("", "directory") + b"".join(treeform.encode_file(name, b"") for name in "ab"),
    ):
        stream = agent.open_stream()
        job = agent.result("file_put", path=str(tmp_path / "new"), stream=stream.number)["job"]
        agent.send_data(stream, sent)
        assert agent.wait_for_job(job)["error"]["code"] == -32007
    assert agent.error("file_write", path=str(big), text="x" * 11)["code"] == -32007
    assert agent.error("file_write", path=str(big), text="x", offset=1000)["code"] == -32007
    assert agent.result("file_read", path=str(big)) == {"text": "\0" * 10, "bytes": 10, "size": 2000, "end": False}
    assert agent.close() == 0


def test_transfers_at_once_are_limited(tmp_path: Path) -> None:
    agent = start(tmp_path, transfers_concurrent=1)
    job = agent.result("file_put", path=str(tmp_path / "a"), stream=agent.open_stream().number)["job"]
    assert agent.error("file_put", path=str(tmp_path / "b"), stream=agent.open_stream().number)["code"] == -32004
    agent.result("job_cancel", job=job)
    agent.wait_for_job(job)
    agent.result("file_put", path=str(tmp_path / "b"), stream=agent.open_stream().number)
    assert agent.close() == 0


def test_transfers_have_a_time_limit(tmp_path: Path) -> None:
    agent = start(tmp_path, transfer_timeout_s=0.2)
    job = agent.result("file_put", path=str(tmp_path / "a"), stream=agent.open_stream().number)["job"]
    assert "transfer_timeout_s" in agent.wait_for_job(job)["error"]["message"]
    assert agent.close() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can work as somebody else: run as root")
def test_files_are_touched_as_another_user(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_mode & 0o1 == 0:
            directory.chmod(directory.stat().st_mode | 0o1)
    agent = start(tmp_path, run_as="nobody")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.chmod(0o777)
    (tmp_path / "private").write_text(SECRET)
    (tmp_path / "private").chmod(0o600)
    assert agent.error("file_read", path=str(tmp_path / "private"))["code"] == NOT_PERMITTED
    assert agent.error("file_write", path=str(tmp_path / "new"), text="x")["code"] == NOT_PERMITTED
    agent.result("file_write", path=str(theirs / "file"), text="x")
    assert (theirs / "file").stat().st_uid == 65534
    sent = treeform.encode_entry("", "directory") + treeform.encode_file("a", b"x") + treeform.encode_end(2, 1)
    stream = agent.open_stream()
    job = agent.result("file_put", path=str(theirs / "tree"), stream=stream.number, durable=True)["job"]
    agent.send_data(stream, sent)
    assert "result" in agent.wait_for_job(job)
    assert (theirs / "tree/a").stat().st_uid == 65534
    stream = agent.open_stream()
    job = agent.result("file_get", path=str(tmp_path / "private"), stream=stream.number)["job"]
    assert agent.wait_for_job(job)["error"]["code"] == NOT_PERMITTED
    assert agent.result("exec_command", argv=["id", "-u"])["stdout"] == "65534\n"
    assert agent.error("exec_command", argv=["id"], user="root")["code"] == NOT_PERMITTED
    assert agent.error("file_put", path="/tmp/x", stream=99, owner=True)["code"] == NOT_PERMITTED
    assert agent.close() == 0
