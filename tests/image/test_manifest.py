"""When an image counts as up to date, and what its manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iso import layer, manifest, newc
from iso.packages import Package, merged_path, read_lock, write_lock

PACKAGES = {"busybox": Package("busybox", "1:1.35-4", "amd64", "ab" * 32)}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    directory = tmp_path / "iso"
    (directory / "deep").mkdir(parents=True)
    (directory / "build.py").write_text("print()\n")
    (directory / "deep" / "data").write_bytes(b"x")
    return directory


def test_the_hash_follows_every_input(sources: Path) -> None:
    before = manifest.hash_inputs([sources], PACKAGES, {"distribution": "debian-12"})
    assert manifest.hash_inputs([sources], PACKAGES, {"distribution": "debian-12"}) == before
    seen = {before}
    newer = {"busybox": Package("busybox", "1:1.35-5", "amd64", "ab" * 32)}
    seen.add(manifest.hash_inputs([sources], newer, {"distribution": "debian-12"}))
    seen.add(manifest.hash_inputs([sources], PACKAGES, {"distribution": "ubuntu-24.04"}))
    (sources / "deep" / "data").write_bytes(b"y")
    seen.add(manifest.hash_inputs([sources], PACKAGES, {"distribution": "debian-12"}))
    (sources / "deep" / "data").rename(sources / "deep" / "other")
    seen.add(manifest.hash_inputs([sources], PACKAGES, {"distribution": "debian-12"}))
    (sources / "deep" / "other").chmod(0o755)
    seen.add(manifest.hash_inputs([sources], PACKAGES, {"distribution": "debian-12"}))
    assert len(seen) == 6


def test_bytecode_and_where_the_checkout_lies_do_not_matter(sources: Path, tmp_path: Path) -> None:
    before = manifest.hash_inputs([sources], PACKAGES, {})
    (sources / "__pycache__").mkdir()
    (sources / "__pycache__" / "build.pyc").write_bytes(b"1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = sources.rename(elsewhere / "iso")
    assert manifest.hash_inputs([moved], PACKAGES, {}) == before


def describe(files: dict[str, bytes]) -> dict[str, object]:
    return manifest.describe(
        input_hash="ab", title="Debian 12", kernel="6.1", python="python3.11", packages=PACKAGES, files=files
    )


def test_an_image_is_there_only_when_all_of_it_is(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None
    (tmp_path / "initrd").write_bytes(b"12345")
    (tmp_path / manifest.NAME).write_text(manifest.as_text(describe({"initrd": b"12345"})))
    found = manifest.read(tmp_path)
    assert found is not None
    assert found["files"]["initrd"]["bytes"] == 5
    (tmp_path / "initrd").write_bytes(b"1234")
    assert manifest.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": 1}', '{"files": {"a": {}}}'])
def test_a_broken_manifest_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").touch()
    (tmp_path / manifest.NAME).write_text(text)
    assert manifest.read(tmp_path) is None


def test_the_console_of_the_kernel_is_the_serial_line() -> None:
    consoles = [word for word in manifest.KERNEL_COMMAND_LINE.split() if word.startswith("console=")]
    assert consoles[-1] == "console=ttyS0,115200"


def test_the_recorded_packages_come_back(tmp_path: Path) -> None:
    lock = tmp_path / "cache" / "packages.json"
    assert read_lock(lock) is None
    write_lock(lock, PACKAGES)
    assert read_lock(lock) == PACKAGES
    assert PACKAGES["busybox"].file_name == "busybox_1%3a1.35-4_amd64.deb"
    assert [path.name for path in lock.parent.iterdir()] == ["packages.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"name": "a"}}'])
def test_a_broken_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    assert read_lock(tmp_path / "lock") is None


def test_a_layer_comes_back_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    tree = {"bin/a": newc.file(b"data", 0o755), "lib": newc.symlink("usr/lib"), "empty": newc.file(b"")}
    layer.save(tree, tmp_path / "base.tar")
    assert layer.load(tmp_path / "base.tar") == tree
    whole = (tmp_path / "base.tar").read_bytes()
    (tmp_path / "base.tar").write_bytes(whole[:700])
    assert layer.load(tmp_path / "base.tar") is None
    assert layer.load(tmp_path / "missing.tar") is None


def test_paths_are_written_as_on_a_merged_system() -> None:
    assert merged_path("bin/kmod") == "usr/bin/kmod"
    assert merged_path("lib64/ld.so") == "usr/lib64/ld.so"
    assert merged_path("usr/bin/kmod") == "usr/bin/kmod"
    assert merged_path("etc/bin/x") == "etc/bin/x"


def test_the_manifest_is_json_that_ends_with_a_line_feed() -> None:
    text = manifest.as_text(describe({"initrd": b""}))
    assert json.loads(text)["format"] == 1
    assert text.endswith("\n")
