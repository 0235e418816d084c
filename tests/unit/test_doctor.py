"""`make doctor` on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from control import host
from control.accel.kvm import KvmHost
from control.host import Surroundings
from control.launch import doctor
from control.launch.doctor import Check, Place
from control.units import GIB, MIB

ROOT = Path(host.__file__).resolve().parent.parent


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def write_program(path: Path, body: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A checkout without environment and image."""
    checkout = tmp_path / "checkout"
    (checkout / "iso" / "distributions").mkdir(parents=True)
    (checkout / "iso" / "distributions" / "debian-12.toml").write_text("")
    (checkout / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return Place(checkout, checkout)


@pytest.fixture
def where(tmp_path: Path) -> Surroundings:
    """A Debian 12 with nothing but apt-get."""
    write_program(tmp_path / "bin" / "apt-get")
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/os-release").write_text('ID=debian\nVERSION_ID=12\nPRETTY_NAME="Debian 12"\n')
    return Surroundings(str(tmp_path / "bin"), f"{tmp_path}/root/")


def no_kvm(tmp_path: Path) -> KvmHost:
    return KvmHost(tmp_path / "kvm", tmp_path / "cpuinfo", architecture="x86_64")


def test_this_machine_is_examined_and_every_lack_has_a_cure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "control.launch.doctor", "--json"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert done.returncode == (0 if answer["can_start"] else 1)
    for check in answer["checks"]:
        assert check["status"] in ("ok", "warn", "lack"), check
        assert check["found"], check
        assert bool(check["cure"]) is (check["status"] != "ok"), check
    names = [check["name"] for check in answer["checks"]]
    assert len(set(names)) == len(names)
    assert {"Python", "environment", "apt", "QEMU", "memory", "build/", ".unhinged/", "guest image"} <= set(names)


def test_it_runs_without_anything_installed_beside_python() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c"),
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from control.launch import doctor; sys.exit(doctor.main([]))",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1].startswith("make start can")


def test_a_reader_that_leaves_is_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "control.launch.doctor"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=90,
            check=False,
        )
    finally:
        os.close(write_end)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


def test_a_wrong_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--yaml"]) == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user needs sudo for apt-get: run the tests as root")
async def test_a_fresh_debian_can_start_because_make_start_installs_what_is_missing(
    tmp_path: Path, where: Surroundings, place: Place
) -> None:
    checks = await doctor.examine(where, place, no_kvm(tmp_path))
    assert {check.status for check in checks if check.name not in ("memory", "build/", ".unhinged/")} == {"ok", "warn"}
    found = by_name(checks)
    assert found["QEMU"].cure.startswith("make deps-install-essential")
    assert found["mtools"].found == "mcopy is missing; it fills the ISO's UEFI partition"
    assert found["environment"].cure.startswith("make setup-python")
    assert found["guest image"].status == "warn"


async def test_another_distribution_without_the_programs_cannot_start(
    tmp_path: Path, where: Surroundings, place: Place
) -> None:
    (tmp_path / "bin" / "apt-get").unlink()
    (tmp_path / "root/etc/os-release").write_text('ID=fedora\nVERSION_ID=40\nPRETTY_NAME="Fedora Linux 40"\n')
    found = by_name(await doctor.examine(where, place, no_kvm(tmp_path)))
    assert found["apt"].found == "Fedora Linux 40 has no apt-get"
    assert found["QEMU"].status == found["mtools"].status == "lack"
    assert found["guest image"].status == "lack"
    assert "only on debian-12" in found["guest image"].found


async def test_an_old_qemu_is_a_lack(tmp_path: Path, where: Surroundings, place: Place) -> None:
    write_program(tmp_path / "bin" / host.QEMU_NAME, "echo QEMU emulator version 5.2.0")
    found = by_name(await doctor.examine(where, place, no_kvm(tmp_path)))
    assert found["QEMU"].status == "lack"
    assert "is QEMU 5.2.0; 6.2 or newer is needed" in found["QEMU"].found


async def test_a_qemu_with_few_devices_is_told(tmp_path: Path, where: Surroundings, place: Place) -> None:
    body = """
    case "$*" in
    --version) echo QEMU emulator version 8.2.0 ;;
    *device*) printf 'name "virtio-serial-pci", bus PCI\\nname "%s", bus PCI\\n' "$(cat {other})" ;;
    esac
    """.replace("{other}", str(tmp_path / "other"))
    write_program(tmp_path / "bin" / host.QEMU_NAME, f"PATH=/usr/bin:/bin\n{body}")
    (tmp_path / "other").write_text("virtio-blk-pci")
    found = by_name(await doctor.examine(where, place, no_kvm(tmp_path)))
    assert found["9p share"].status == "warn"
    (tmp_path / "other").write_text("virtio-9p-pci")
    found = by_name(await doctor.examine(where, place, no_kvm(tmp_path)))
    assert found["devices"].status == "lack"
    assert "no virtio-blk-pci" in found["devices"].found


async def test_a_missing_kvm_is_a_warning_with_its_cure(tmp_path: Path, where: Surroundings, place: Place) -> None:
    write_program(tmp_path / "bin" / host.QEMU_NAME, "echo QEMU emulator version 8.2.0")
    (tmp_path / "cpuinfo").write_text("flags : svm\n")
    found = by_name(await doctor.examine(where, place, no_kvm(tmp_path)))
    assert found["KVM"].status == "warn"
    assert found["KVM"].found == f"there is no {tmp_path / 'kvm'}"
    assert "modprobe kvm_amd; without it guests run under TCG" in found["KVM"].cure


async def test_a_broken_environment_is_told_with_pythons_words(place: Place) -> None:
    write_program(place.venv_python, "echo \"ModuleNotFoundError: No module named 'qemu'\" >&2; exit 1")
    check = await doctor.check_venv(place)
    assert check.status == "warn"
    assert "No module named 'qemu'" in check.found
    assert "make distclean" in check.cure


async def test_a_working_environment_is_asked_for_every_dependency(place: Place) -> None:
    write_program(place.venv_python, f'echo "$2" > {place.checkout}/asked')
    assert (await doctor.check_venv(place)).status == "ok"
    assert (place.checkout / "asked").read_text().splitlines()[0] == "import qemu.qmp"
    assert "import jsonschema_rs" in (place.checkout / "asked").read_text()


def test_dependencies_are_read_from_the_project_file(tmp_path: Path) -> None:
    assert "qemu.qmp" in doctor.read_dependencies(ROOT / "pyproject.toml")
    assert doctor.read_dependencies(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("free_bytes", "status"),
    [(2 * GIB, "ok"), (900 * MIB, "warn"), (410 * MIB, "warn"), (405 * MIB, "lack"), (300 * MIB, "lack"), (0, "lack")],
)
def test_memory_is_held_against_the_default_guest(free_bytes: int, status: str) -> None:
    check = doctor.judge_memory(free_bytes)
    assert check.status == status
    assert ("MEMORY=" in check.cure) is (status == "warn")


def test_a_place_that_cannot_be_written_is_a_lack(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor.check_directory("build/", tmp_path / "file" / "build", 1)
    assert check.status == "lack"
    assert "cannot be written" in check.found


def test_a_place_without_room_is_a_lack(tmp_path: Path) -> None:
    check = doctor.check_directory("build/", tmp_path / "build", 1 << 60)
    assert check.status == "lack"
    assert "needed" in check.found


def test_a_built_image_is_seen(where: Surroundings, place: Place) -> None:
    place.image.mkdir(parents=True)
    for name in ("image.json", "vmlinux", "initrd"):
        (place.image / name).write_text("")
    assert doctor.check_image(where, place).status == "warn"
    (place.image / "unhinged.iso").write_text("")
    assert doctor.check_image(where, place).status == "ok"


async def test_the_plain_runner_reports_deadline_exit_code_and_missing_program(tmp_path: Path) -> None:
    slow = write_program(tmp_path / "slow", "echo begun; exec sleep 60")
    done = await doctor.run_plainly([str(slow)], timeout_s=1.0)
    assert (done.timed_out, done.stdout) == (True, b"begun\n")
    assert (await doctor.run_plainly([str(write_program(tmp_path / "three", "exit 3"))])).return_code == 3
    missing = await doctor.run_plainly([str(tmp_path / "none")])
    assert missing.return_code == 127
    assert b"No such file" in missing.stderr
