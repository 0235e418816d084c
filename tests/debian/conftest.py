"""A Debian guest for every test that asks for one; all of them are slow."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.paths import BUILD, ROOT
from tests.debian.debianvm import DISK, DebianVM


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("boot")
            item.add_marker("slow")
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def directory() -> Iterator[Path]:
    """A private directory with a short path, for the sockets of one guest."""
    path = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def debian(directory: Path) -> Iterator[DebianVM]:
    """A Debian guest whose agent has answered."""
    if not DISK.exists():
        pytest.skip("the Debian image is not built: make image-debian")
    with DebianVM(directory) as vm:
        vm.boot()
        yield vm


@pytest.fixture
def cloud_image() -> Path:
    """A Debian with cloud-init and without our agent, as somebody else's cloud image; built when first asked for."""
    images = BUILD / "cache" / "images"
    argv = [
        sys.executable,
        str(ROOT / "iso/debian/build.py"),
        "disk",
        "--recipe",
        "debian-cloud",
        "--output",
        str(images),
        "--cache",
        str(BUILD / "cache"),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=800, check=False)
    if done.returncode != 0:
        pytest.skip(f"an image with cloud-init cannot be built here: {done.stderr.splitlines()[-1]}")
    return images / "debian-cloud.qcow2"
