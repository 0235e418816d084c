"""The builder as a program: what it says when something is missing, and that the same inputs give the same image.

Real apt, real dpkg; only where they look is changed. Nothing is fetched unless the test is marked slow.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = REPOSITORY / "build" / "cache"

pytestmark = pytest.mark.skipif(
    shutil.which("apt-get") is None, reason="the image is built from Debian or Ubuntu packages: needs apt"
)


def run_build(
    output: Path, cache: Path, *options: str, environment: dict[str, str] | None = None, script: Path | None = None
) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        str(script or REPOSITORY / "iso" / "build.py"),
        "--output",
        str(output),
        "--cache",
        str(cache),
    ]
    return subprocess.run(
        [*argv, *options],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def assert_complains(done: subprocess.CompletedProcess[str], sentence: str, hint: str) -> None:
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *_, said, hinted = done.stderr.splitlines()
    assert sentence in said
    assert hint in hinted
    assert done.stdout == ""


def test_without_apt_lists_it_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    configuration = tmp_path / "apt.conf"
    configuration.write_text(f'Dir::State::lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}";\n')
    done = run_build(
        tmp_path / "out",
        tmp_path / "cache",
        "--distribution",
        "debian-12",
        environment={"APT_CONFIG": str(configuration)},
    )
    # Of a package that is installed here apt knows something without lists, too.
    assert_complains(done, "apt's package lists do not", "apt-get update")
    assert not (tmp_path / "out" / "image.json").exists()


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-cache", "apt-get", "dpkg-deb", "lz4", "zstd", "grub-mkimage", "mcopy", "mformat", "mmd"):
        (tools / name).symlink_to("/bin/true")
    done = run_build(
        tmp_path / "out", tmp_path / "cache", "--distribution", "debian-12", environment={"PATH": str(tools)}
    )
    assert_complains(done, "xorriso is not installed", "apt-get install xorriso")


def test_an_unknown_distribution_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    done = run_build(tmp_path / "out", tmp_path / "cache", "--distribution", "plan-9")
    assert_complains(done, "packages of plan-9", "debian-12, ubuntu-24.04")


def test_a_file_in_the_way_of_the_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_build(tmp_path / "out", tmp_path / "file" / "cache", "--distribution", "debian-12")
    assert_complains(done, f"{tmp_path}/file", "move that file away")


def test_a_network_that_does_not_answer_leaves_no_half_packages(tmp_path: Path) -> None:
    if not any(Path("/var/lib/apt/lists").glob("*Packages*")):
        pytest.skip("apt has no package lists: run 'apt-get update' as root")
    configuration = tmp_path / "apt.conf"
    # Port 9 of this machine: nobody listens there, so the connection is refused at once.
    configuration.write_text(
        'Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n'
    )
    done = run_build(tmp_path / "out", tmp_path / "cache", environment={"APT_CONFIG": str(configuration)})
    assert_complains(done, "no network", "check the network")
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


def cached_packages(tmp_path: Path) -> Path:
    """A cache with the packages of this checkout's image and nothing else."""
    locks = list(CACHE.glob("packages-*.json"))
    if not locks:
        pytest.skip("no packages in build/cache: run 'make image'")
    cache = tmp_path / "cache"
    cache.mkdir()
    for lock in locks:
        shutil.copy(lock, cache)
    shutil.copytree(CACHE / "packages", cache / "packages", copy_function=os.link)
    return cache


@pytest.mark.slow
def test_two_builds_in_different_places_are_alike_and_need_no_network(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    configuration = tmp_path / "apt.conf"
    configuration.write_text(f'Dir::State::lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}";\n')
    environment = {"APT_CONFIG": str(configuration), "TMPDIR": str(tmp_path)}
    cache = cached_packages(tmp_path)
    first = run_build(tmp_path / "first", cache, environment=environment)
    assert first.returncode == 0, first.stderr

    copy = tmp_path / "another place" / "checkout"
    for part in ("iso", "guest"):
        shutil.copytree(REPOSITORY / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for old in cache.glob("base-*"):
        old.unlink()
    second = run_build(tmp_path / "second", cache, environment=environment, script=copy / "iso" / "build.py")
    assert second.returncode == 0, second.stderr

    assert sum_up(tmp_path / "first") == sum_up(tmp_path / "second")


@pytest.mark.slow
def test_what_is_up_to_date_is_left_alone(tmp_path: Path) -> None:
    cache = cached_packages(tmp_path)
    assert run_build(tmp_path / "out", cache).returncode == 0
    before = {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    again = run_build(tmp_path / "out", cache)
    assert (again.returncode, again.stderr) == (0, "")
    assert {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "out" / "initrd").unlink()
    repaired = run_build(tmp_path / "out", cache)
    assert repaired.returncode == 0
    assert (tmp_path / "out" / "initrd").exists()


def sum_up(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
