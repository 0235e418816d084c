"""What this host has and needs: QEMU and its version, programs, Python, memory, disk, distribution."""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

import pytest

from control import host
from control.errors import HostError
from control.host import Surroundings
from control.process.run import run


def write_program(path: Path, body: str = "") -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


# QEMU.


def test_the_real_qemu_is_found_and_tells_its_version() -> None:
    found = shutil.which(host.QEMU_NAME)
    if found is None:
        pytest.skip("QEMU is not installed: make deps-install-essential")
    assert host.find_qemu(host.look_around({"PATH": os.environ["PATH"]})) == Path(found)


async def test_the_real_version_is_new_enough() -> None:
    found = shutil.which(host.QEMU_NAME)
    if found is None:
        pytest.skip("QEMU is not installed: make deps-install-essential")
    assert await host.probe_qemu_version(Path(found), run) >= host.QEMU_MINIMUM


def test_no_qemu_names_the_way_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not installed") as caught:
        host.find_qemu(Surroundings(str(tmp_path)))
    assert "make deps-install-essential" in caught.value.hint


@pytest.mark.parametrize("kind", ["missing", "directory", "not executable"])
def test_a_named_qemu_that_cannot_start_is_named(tmp_path: Path, kind: str) -> None:
    wanted = tmp_path / "my qemu"
    if kind == "directory":
        wanted.mkdir()
    elif kind == "not executable":
        wanted.write_text("text")
    with pytest.raises(HostError, match=r"QEMU=.*my qemu is not a program"):
        host.find_qemu(Surroundings(os.environ["PATH"], qemu=str(wanted)))


def test_a_named_qemu_wins_over_the_search_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / host.QEMU_NAME)
    named = write_program(tmp_path / "other")
    assert host.find_qemu(Surroundings(str(tmp_path / "bin"), qemu=str(named))) == named
    assert host.find_qemu(Surroundings(str(tmp_path / "bin"))) == tmp_path / "bin" / host.QEMU_NAME


def test_a_relative_qemu_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "q")
    monkeypatch.chdir(tmp_path)
    assert host.find_qemu(Surroundings("", qemu="./q")) == tmp_path / "q"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.26)\nCopyright", (6, 2, 0)),
        ("QEMU emulator version 10.1\n", (10, 1, 0)),
        ("qemu", None),
        ("", None),
    ],
)
def test_version_texts(text: str, version: tuple[int, int, int] | None) -> None:
    assert host.parse_qemu_version(text) == version


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'QEMU emulator version 5.2.0 (Debian)'", "is QEMU 5.2.0; 6.2 or newer is needed"),
        ("echo 'busybox v1'", "does not say that it is QEMU .it says 'busybox v1'"),
        ("exit 3", "it says 'nothing'"),
        ("echo 'libfoo.so.1: cannot open shared object file' >&2; exit 127", "libfoo.so.1"),
    ],
)
async def test_a_qemu_we_cannot_drive_is_refused(tmp_path: Path, body: str, message: str) -> None:
    qemu = write_program(tmp_path / "q", body)
    with pytest.raises(HostError, match=message) as caught:
        await host.probe_qemu_version(qemu, run)
    assert caught.value.hint


# Programs, files and Python.


def test_what_is_missing_is_named_with_its_reason(tmp_path: Path) -> None:
    lacks = {lack.package: lack for lack in host.find_lacks("essential", Surroundings(str(tmp_path)))}
    expected = {requirement.package for requirement in host.REQUIREMENTS if requirement.group == "essential"}
    assert set(lacks) == expected
    assert lacks["mtools"].looked_for == "mcopy"
    assert all(lack.why for lack in lacks.values())


def test_one_missing_program_of_a_package_is_enough(tmp_path: Path) -> None:
    for name in ("mcopy", "mformat"):
        write_program(tmp_path / name)
    lacks = host.find_lacks("essential", Surroundings(str(tmp_path)))
    assert [lack.looked_for for lack in lacks if lack.package == "mtools"] == ["mmd"]


def test_a_named_qemu_needs_no_package(tmp_path: Path) -> None:
    lacks = host.find_lacks("essential", Surroundings(str(tmp_path), qemu="/opt/qemu"))
    assert "qemu-system-x86" not in {lack.package for lack in lacks}


def test_a_directory_or_a_plain_file_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "lz4").mkdir()
    (tmp_path / "zstd").write_text("")
    assert host.find_program("lz4", str(tmp_path)) is None
    assert host.find_program("zstd", str(tmp_path)) is None


def test_tests_need_what_only_their_distribution_has(tmp_path: Path) -> None:
    root = f"{tmp_path}/"
    (tmp_path / "etc").mkdir()
    names = {}
    for release in ("ID=debian\nVERSION_ID=12", "ID=ubuntu\nVERSION_ID=24.04"):
        (tmp_path / "etc" / "os-release").write_text(release)
        names[release] = {lack.package for lack in host.find_lacks("test", Surroundings(str(tmp_path), root))}
    debian, ubuntu = names.values()
    assert debian - ubuntu == {"debian-installer-12-netboot-amd64"}
    assert "ovmf" in ubuntu


def test_either_ovmf_file_will_do(tmp_path: Path) -> None:
    (tmp_path / "usr/share/OVMF").mkdir(parents=True)
    (tmp_path / "usr/share/OVMF/OVMF_CODE.fd").write_bytes(b"")
    packages = {lack.package for lack in host.find_lacks("test", Surroundings(str(tmp_path), f"{tmp_path}/"))}
    assert "ovmf" not in packages


def make_python(prefix: Path, version: str, *modules: str) -> Path:
    for module in modules:
        directory = prefix / "lib" / f"python{version}" / module
        directory.mkdir(parents=True)
        (directory / "__init__.py").write_text("")
    (prefix / "bin").mkdir(parents=True, exist_ok=True)
    return write_program(prefix / "bin" / f"python{version}")


def test_this_python_can_make_the_environment() -> None:
    assert host.find_python(Surroundings("")) == sys.executable


def test_an_old_python_uses_a_newer_one_beside_it(tmp_path: Path) -> None:
    write_program(tmp_path / "python3.11")  # a version manager's stand-in
    usable = make_python(tmp_path / "usr", "3.11", "venv", "ensurepip")
    make_python(tmp_path / "usr", "3.12", "venv")
    where = Surroundings(f"{tmp_path}:{usable.parent}", python="/usr/bin/python3.9", python_version=(3, 9))
    assert host.find_python(where) == str(usable)


def test_an_old_python_alone_needs_a_newer_one(tmp_path: Path) -> None:
    where = Surroundings(str(tmp_path), python="/usr/bin/python3.9", python_version=(3, 9))
    assert host.find_lacks("essential", where)[0].package == "python3.11-venv"


def test_debians_python_without_ensurepip_needs_its_package(tmp_path: Path) -> None:
    python = make_python(tmp_path, "3.12", "venv")
    where = Surroundings(str(tmp_path), python=str(python), python_version=(3, 12))
    assert host.find_lacks("essential", where)[0].package == "python3-venv"


# Memory, disk, distribution.


def test_memory_available_counts_the_control_groups_limit(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  8000 kB\nMemAvailable:    4000 kB\n")
    assert host.find_memory_available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert host.find_memory_available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000\n")
    assert host.find_memory_available_bytes(meminfo, tmp_path) == 900
    (tmp_path / "memory.current").write_text("2000\n")
    assert host.find_memory_available_bytes(meminfo, tmp_path) == 0


def test_memory_nobody_tells_is_none(tmp_path: Path) -> None:
    assert host.find_memory_available_bytes(tmp_path / "none", tmp_path) is None
    (tmp_path / "meminfo").write_text("nothing here\n")
    assert host.find_memory_available_bytes(tmp_path / "meminfo", tmp_path) is None


def test_the_real_machine_answers() -> None:
    memory = host.find_memory_available_bytes()
    assert memory is not None
    assert memory > 0
    assert host.count_cpus() >= 1


def test_disk_space_is_that_of_the_place_where_it_would_be_made(tmp_path: Path) -> None:
    free = host.find_disk_free_bytes(tmp_path / "not" / "yet" / "there")
    assert free is not None
    assert free > 0


def test_a_directory_is_writable_when_it_can_be_made(tmp_path: Path) -> None:
    assert host.is_writable(tmp_path / "not" / "yet")
    (tmp_path / "file").write_text("")
    assert not host.is_writable(tmp_path / "file")
    assert not host.is_writable(tmp_path / "file" / "below")


def test_os_release_is_read_and_its_absence_too(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_bytes(b'# ID=no\nID=ubuntu\nVERSION_ID="24.04"\nID_LIKE=\'debian\'\nPRETTY_NAME="U\xff"\nbroken\n')
    assert host.read_distribution(file) == ("ubuntu", "24.04", "U\ufffd", "debian")
    assert host.read_distribution(tmp_path / "none") == ("", "", "", "")


def test_what_runs_before_set_up_parses_as_python_3_9_and_needs_nothing_installed() -> None:
    """`make doctor` and the first `make start` run under whatever Python the machine has."""
    root = Path(host.__file__).parent
    names = ["host.py", "errors.py", "units.py", "streams.py", "paths.py", "log.py"]
    names += ["launch/deps.py", "launch/doctor.py", "accel/kvm.py", "accel/rom.py"]
    for name in names:
        tree = ast.parse((root / name).read_text(encoding="utf-8"), feature_version=(3, 9))
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules.append(node.module)
            for module in modules:
                top = module.partition(".")[0]
                assert top == "control" or top in sys.stdlib_module_names, f"{name}: import {module}"
