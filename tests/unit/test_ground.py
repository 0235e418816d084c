"""Sizes, durations, instance names and directories (floor 0)."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.errors import ConfigError, HostError
from control.paths import (
    UNIX_PATH_MAX_BYTES,
    check_instance_name,
    find_instance_files,
    open_instance_files,
)
from control.units import GIB, KIB, MIB, TIB, format_duration, format_size, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 * MIB),
        ("512", 512 * MIB),
        ("1G", GIB),
        ("1.5GiB", 3 * GIB // 2),
        (" 2 gb ", 2 * GIB),
        ("64k", 64 * KIB),
        ("10T", 10 * TIB),
        ("0", 0),
        ("4096B", 4096),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size_bytes(text, key="MEMORY") == size


@pytest.mark.parametrize("text", ["", "garbage", "-1", "1X", "1G2", "1e9", "G", "1,5G", "٣G", "9" * 400, "9" * 5000])
def test_a_wrong_size_is_a_sentence_with_a_way_out(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size_bytes(text, key="MEMORY")
    assert caught.value.key == "MEMORY"
    assert "MEMORY=512M" in caught.value.hint
    assert len(str(caught.value)) < 200


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size_bytes(text, key="MEMORY") >= 0


def test_sizes_and_durations_as_people_read_them() -> None:
    assert [format_size(size) for size in (0, 512, 1536 * MIB, 2 * TIB)] == ["0 B", "512 B", "1.5 GiB", "2 TiB"]
    assert [format_duration(seconds) for seconds in (0.0421, 2.31, 75, 59.99)] == [
        "42 ms", "2.3 s", "1 min 15 s", "60.0 s",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a", "main", "a.b_c-d", "0", "A" * 63])
def test_names(name: str) -> None:
    assert check_instance_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "ä", "a\n", "a\0", "A" * 64, "../x"])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_instance_name(name)
    assert caught.value.hint


def test_directories_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = open_instance_files(tmp_path / "sub" / ".unhinged", "one")
    finally:
        os.umask(before)
    for directory in (files.directory, files.directory.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert files == find_instance_files(tmp_path / "sub" / ".unhinged", "one")


def test_an_open_directory_is_made_private(tmp_path: Path) -> None:
    runtime = tmp_path / ".unhinged"
    runtime.mkdir(mode=0o777)
    runtime.chmod(0o777)
    open_instance_files(runtime, "one")
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700


@pytest.mark.parametrize("length", [40, 80, 91, 92, 93, 120, 250])
def test_socket_paths_always_fit(workdir: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(workdir))
    deep = workdir
    while (lack := length - len(str(deep))) > 0:
        deep = deep / ("d" * min(lack, 60))
    files = open_instance_files(deep, "one")
    assert files.directory.is_dir()
    assert files.sockets.is_dir()
    assert stat.S_IMODE(files.sockets.stat().st_mode) == 0o700
    assert all(len(os.fsencode(path)) <= UNIX_PATH_MAX_BYTES for path in files.all_sockets)
    assert files == find_instance_files(deep, "one")
    short = files.sockets != files.directory
    assert short == (len(os.fsencode(files.directory / "monitor.socket")) > UNIX_PATH_MAX_BYTES)


def test_long_directories_do_not_share_sockets(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(workdir))
    deep = workdir / ("d" * 120)
    places = {find_instance_files(deep / part, name).sockets for part in ("a", "b") for name in ("one", "two")}
    assert len(places) == 4


def test_the_short_directory_counts_bytes_not_letters(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(workdir))
    files = find_instance_files(workdir / ("ü" * 45), "one")
    assert files.sockets != files.directory


def test_a_runtime_directory_that_is_too_long_itself_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "r" * 90)
    files = find_instance_files(Path("/" + "d" * 120), "one")
    assert all(len(os.fsencode(path)) <= UNIX_PATH_MAX_BYTES for path in files.all_sockets)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory of somebody else: run the tests as root")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    runtime = tmp_path / ".unhinged"
    runtime.mkdir(mode=0o755)
    os.chown(runtime, 65534, 65534)
    with pytest.raises(HostError, match="not a directory of yours"):
        open_instance_files(runtime, "one")
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o755
    assert list(runtime.iterdir()) == []


def test_a_link_in_the_place_of_an_instance_is_refused(tmp_path: Path) -> None:
    runtime, elsewhere = tmp_path / ".unhinged", tmp_path / "elsewhere"
    runtime.mkdir(mode=0o700)
    elsewhere.mkdir(mode=0o755)
    (runtime / "vm.one").symlink_to(elsewhere)
    with pytest.raises(HostError):
        open_instance_files(runtime, "one")
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / ".unhinged").write_text("in the way")
    with pytest.raises(HostError, match=r"\.unhinged") as caught:
        open_instance_files(tmp_path / ".unhinged", "one")
    assert caught.value.hint


def test_a_directory_that_cannot_be_made_is_named() -> None:
    with pytest.raises(HostError, match="cannot be made") as caught:
        open_instance_files(Path("/proc/.unhinged"), "one")
    assert caught.value.hint
