"""Kernels of the user's: which they are, where their modules are, and the guest that boots with both."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.image.kernels import find_modules, read_release
from control.paths import IMAGE
from control.vm.provision import read_manifest
from iso import kernelmodules
from tests.qemu.fleets import Desk, open_desk

RELEASE = "6.7.0-mine+"


def write_kernel(path: Path, version: str) -> Path:
    """A bzImage that says what it is, and is nothing else."""
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    image[0x300 : 0x300 + len(version)] = version.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    return path


@pytest.mark.boot
@pytest.mark.parametrize("name", ["bzImage", "vmlinux"])
def test_a_kernel_says_which_it_is(name: str) -> None:
    assert read_release(IMAGE / name) == read_manifest()["kernel_version"]


@pytest.mark.parametrize(
    ("version", "release"),
    [
        (f"{RELEASE} (me@here) #1 SMP", RELEASE), ("../../etc (me@here)", ""), ("", ""),
        ("6.1/../.. x", ""), ("6." + "1" * 200, ""),
    ],
)  # fmt: skip
def test_a_kernel_that_says_something_else(tmp_path: Path, version: str, release: str) -> None:
    assert read_release(write_kernel(tmp_path / "vmlinuz", version)) == release


def test_a_file_without_a_version(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(1000))
    assert read_release(tmp_path / "vmlinux") == ""


def test_where_modules_are(tmp_path: Path) -> None:
    kernel = write_kernel(tmp_path / "pack/boot/vmlinuz", RELEASE)
    assert find_modules(kernel, RELEASE) is None
    beside = tmp_path / "pack/lib/modules" / RELEASE
    beside.mkdir(parents=True)
    assert find_modules(kernel, RELEASE) == beside
    inside = write_kernel(beside / "vmlinuz", RELEASE)
    assert find_modules(inside, RELEASE) == beside
    built = write_kernel(tmp_path / "linux/arch/x86/boot/bzImage", RELEASE)
    told = tmp_path / "linux/include/config/kernel.release"
    told.parent.mkdir(parents=True)
    told.write_text("6.6.0\n")  # of the make before
    assert find_modules(built, RELEASE) is None
    told.write_text(RELEASE + "\n")
    assert find_modules(built, RELEASE) == tmp_path / "linux"


@pytest.mark.parametrize(
    "line", ["kernel/drivers/a/some-thing.ko", "drivers/a/some-thing.ko", "drivers/a/some-thing.o"]
)
def test_modules_of_a_build(tmp_path: Path, line: str) -> None:
    module = tmp_path / "drivers/a/some-thing.ko"
    module.parent.mkdir(parents=True)
    module.write_bytes(b"module")
    (tmp_path / "modules.order").write_text(f"{line}\ndrivers/not/built.ko\n")
    assert kernelmodules.list_built(tmp_path) == {"some_thing": module}


@pytest.fixture(scope="module")
def other_kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's kernel for clouds, unpacked: its virtio drivers are modules, and it has no 9p."""
    where = Path(tmp_path_factory.mktemp("kernel"))
    name = read_manifest()["kernel_version"].replace("-amd64", "-cloud-amd64")
    subprocess.run(["apt-get", "download", "-qq", f"linux-image-{name}"], cwd=where, check=True, capture_output=True)
    (package,) = where.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, where], check=True)
    return where / "boot" / f"vmlinuz-{name}"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with open_desk(tmp_path) as desk:
        yield desk
        desk.wait_until_gone()


def list_initrds(desk: Desk) -> list[Path]:
    return list((desk.directory / ".cache/unhinged/kernels").glob("*/initrd"))


@pytest.mark.slow
@pytest.mark.boot
def test_a_kernel_with_its_modules_beside_it(desk: Desk, other_kernel: Path) -> None:
    release = read_release(other_kernel)
    assert release.endswith("-cloud-amd64")
    look = "uname -r; grep -q virtio_blk /proc/modules || modprobe virtio_blk; grep -c ^virtio_blk /proc/modules"
    done = desk.run("run", "--image", str(other_kernel), "--", "sh", "-c", look)
    assert done.stdout == f"{release}\n1\n", done.stderr
    (initrd,) = list_initrds(desk)
    made_at = initrd.stat().st_mtime_ns
    done = desk.run("run", "--image", str(other_kernel), "--", "uname", "-r")
    assert (done.stdout, done.stderr) == (f"{release}\n", "") and initrd.stat().st_mtime_ns == made_at
    done = desk.run("run", "--image", str(other_kernel), "--mount", f"{desk.directory}:ro", "--", "true")
    assert "its kernel needs 9p and virtio; --sync gives it a copy" in done.stderr


@pytest.mark.slow
@pytest.mark.boot
def test_the_sources_that_a_kernel_was_built_in(desk: Desk, other_kernel: Path) -> None:
    release = read_release(other_kernel)
    installed = other_kernel.parents[1] / "lib/modules" / release
    sources = desk.directory / "linux"
    shutil.copytree(installed / "kernel", sources)
    for name, text in (("include/config/kernel.release", release), ("modules.builtin", "")):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    lines = (installed / "modules.order").read_text().replace("kernel/", "").replace(".ko", ".o")
    (sources / "modules.order").write_text(lines)
    (sources / "arch/x86/boot").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(other_kernel, sources / "arch/x86/boot/bzImage")
    assert desk.run("run", "--image", str(sources), "--", "uname", "-r").stdout == f"{release}\n"
    # A module that is built again makes another machine.
    (module,) = sources.rglob("virtio_blk.ko")
    module.write_bytes(module.read_bytes() + b"built again")
    done = desk.run("run", "--image", str(sources), "--", "sh", "-c", "cat $(modinfo -n virtio_blk) | tail -c 11")
    assert done.stdout == "built again" and "making a template" in done.stderr
