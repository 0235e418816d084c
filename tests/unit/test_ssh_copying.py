"""Copies over ssh, with a local shell in the place of the guest's: what `cp -r` means, and a guest that lies."""

from __future__ import annotations

import filecmp
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import ControlError
from control.process.piped import run_piped
from control.ssh.copying import build_get, build_put, pack, unpack


def put(sources: list[str], target: str) -> tuple[int, str]:
    return run_piped(["sh", "-c", build_put(sources, target)], "stdin", lambda pipe: pack(sources, pipe))


def get(sources: list[str], target: Path) -> tuple[int, str]:
    return run_piped(["sh", "-c", build_get(sources)], "stdout", lambda pipe: unpack(pipe, target, sources))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "a tree's"
    (top / "deep" / "er").mkdir(parents=True)
    (top / "deep").chmod(0o750)
    (top / "deep" / "er" / ("n" * 200)).write_bytes(os.urandom(70_000))
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o755)
    (top / "link").symlink_to("deep/er")
    (top / "nowhere").symlink_to("/does/not/exist")
    return top


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def see_same(left: Path, right: Path) -> None:
    compared = filecmp.dircmp(left, right)
    assert not compared.left_only and not compared.right_only
    for folder, folders, names in os.walk(left):
        for name in (*folders, *names):
            one = Path(folder) / name
            other = right / one.relative_to(left)
            assert one.is_symlink() == other.is_symlink()
            if one.is_symlink():
                assert one.readlink() == other.readlink()
            else:
                assert one.stat().st_mode == other.stat().st_mode
                assert one.is_dir() or one.read_bytes() == other.read_bytes()


@pytest.fixture(params=["put", "get"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def copy(way: str, sources: list[Path | str], target: Path) -> tuple[int, str]:
    names = [str(source) for source in sources]
    return put(names, str(target)) if way == "put" else get(names, target)


def see_nothing_left(folder: Path) -> None:
    assert not [name for name in list_names(folder) if name.startswith(".unhinged")]


def test_to_a_name_that_is_not_there(way: str, tree: Path, tmp_path: Path) -> None:
    assert copy(way, [tree], tmp_path / "copy") == (0, "")
    see_same(tree, tmp_path / "copy")
    see_nothing_left(tmp_path)


def test_into_a_directory_and_over_what_is_there(way: str, tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / tree.name / "deep").mkdir(parents=True)
    (target / tree.name / "deep" / "kept").write_text("kept")
    (target / tree.name / "run").write_text("older")
    assert copy(way, [tree, tree / "run"], target) == (0, "")
    assert (target / tree.name / "deep" / "kept").read_text() == "kept"
    assert (target / tree.name / "run").read_text() == (target / "run").read_text() == "#!/bin/sh\n"
    see_nothing_left(target)


def test_the_contents_of_a_directory(way: str, tree: Path, tmp_path: Path) -> None:
    assert copy(way, [f"{tree}/."], tmp_path / "copy")[0] == 0
    see_same(tree, tmp_path / "copy")


def test_a_link_is_copied_as_one(way: str, tree: Path, tmp_path: Path) -> None:
    assert copy(way, [tree / "nowhere"], tmp_path / "copied") == (0, "")
    assert (tmp_path / "copied").readlink() == Path("/does/not/exist")


def test_what_is_missing_is_named(way: str, tmp_path: Path) -> None:
    if way == "put":
        with pytest.raises(ControlError, match="no-such-file"):
            copy(way, [tmp_path / "no-such-file"], tmp_path / "copy")
    else:
        code, words = copy(way, [tmp_path / "no-such-file"], tmp_path / "copy")
        assert code != 0 and "no-such-file" in words
    assert list_names(tmp_path) == []


def test_several_need_a_directory(way: str, tree: Path, tmp_path: Path) -> None:
    if way == "put":
        code, words = copy(way, [tree, tree / "run"], tmp_path / "copy")
        assert code != 0 and "not a directory" in words
    else:
        with pytest.raises(ControlError, match="not a directory"):
            copy(way, [tree, tree / "run"], tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_names_that_a_shell_could_misread(tmp_path: Path) -> None:
    source = tmp_path / "-x; touch $(echo broken) '\n"
    source.write_text("safe")
    target = tmp_path / "to `date` here"
    assert put([str(source)], str(target)) == (0, "")
    assert target.read_text() == "safe"
    assert list_names(tmp_path) == sorted([source.name, target.name])


def build_archive(*members: tuple[str, str, str]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind, value in members:
            member = tarfile.TarInfo(name)
            member.mode = 0o4777
            if kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, value
            elif kind == "hard":
                member.type, member.linkname = tarfile.LNKTYPE, value
            elif kind == "device":
                member.type, member.devmajor, member.devminor = tarfile.CHRTYPE, 1, 3
            member.size = len(value) if kind == "file" else 0
            archive.addfile(member, io.BytesIO(value.encode()))
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    "members",
    [
        [("../escaped", "file", "x")],
        [("sent", "link", "/"), ("sent/tmp/escaped-by-link", "file", "x")],
        [("sent", "link", ".."), ("sent/escaped", "file", "x")],
        [("sent", "hard", "../../escaped-target")],
        [("sent", "hard", "/etc/hostname")],
        [("sent", "link", "../../escaped-target"), ("sent", "file", "x")],
        [("./a/../sent", "link", ".."), ("sent/./escaped", "file", "x")],
    ],
    ids=["dots", "absolute-link", "link-up", "hard-link", "absolute-hard-link", "over-a-link", "other-spelling"],
)
def test_a_guest_that_lies_writes_nowhere_else(tmp_path: Path, members: list[tuple[str, str, str]]) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "escaped-target").write_text("secret")
    with pytest.raises(ControlError):
        unpack(build_archive(*members), inside, ["sent"])
    assert list_names(inside) == []
    assert list_names(tmp_path) == ["escaped-target", "inside"]
    assert not Path("/tmp/escaped-by-link").exists()


def test_what_was_not_asked_for_is_not_kept(tmp_path: Path) -> None:
    unpack(build_archive(("other", "file", "x"), ("sent", "file", "right")), tmp_path, ["sent"])
    assert list_names(tmp_path) == ["sent"] and (tmp_path / "sent").stat().st_mode & 0o7777 == 0o777


def test_no_link_of_ours_is_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "sent").symlink_to(elsewhere)
    archive = build_archive(("sent/passwd", "file", "x"))
    with pytest.raises(ControlError):
        unpack(archive, inside, ["sent"])
    assert list_names(elsewhere) == []


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    whole = build_archive(("sent", "file", "x" * 100_000)).getvalue()
    with pytest.raises(ControlError, match="unpacked"):
        unpack(io.BytesIO(whole[:50_000]), tmp_path, ["sent"])
    assert list_names(tmp_path) == []


def test_a_guest_that_takes_nothing_ends_the_copy(tree: Path) -> None:
    code, words = run_piped(["sh", "-c", "echo full >&2; exit 3"], "stdin", lambda pipe: pack([str(tree)], pipe))
    assert (code, words) == (3, "full\n")


def test_interrupted_in_the_middle(tree: Path, tmp_path: Path) -> None:
    """What the shell in the guest has unpacked so far is gone with it."""
    (tree / "large").write_bytes(bytes(2_000_000))
    whole = io.BytesIO()
    pack([str(tree)], whole)
    target = tmp_path / "copy"
    child = subprocess.Popen(
        ["sh", "-c", build_put([str(tree)], str(target))], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    child.communicate(whole.getvalue()[:1_000_000], timeout=30)
    assert child.returncode != 0
    see_nothing_left(tmp_path)
    assert not target.exists()
