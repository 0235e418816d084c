"""`python3 -m control.launch.deps` on machines made of a few programs in a directory, and on this one.

Each run is a process of its own whose search path holds nothing but the programs of the test, so that no real apt-get
can be reached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from control import host

ROOT = Path(host.__file__).resolve().parent.parent
ESSENTIAL = [requirement for requirement in host.REQUIREMENTS if requirement.group == "essential"]
PROGRAMS = [alternatives[0] for requirement in ESSENTIAL for alternatives in requirement.proofs]

DEPS = """
import sys
from pathlib import Path
from control.host import Surroundings
from control.launch import deps
deps.IMAGE_MANIFEST = Path("/nonexistent")
sys.exit(deps.main(sys.argv[3:], Surroundings(sys.argv[1], sys.argv[2])))
"""

INSTALLS = """
# Plays apt-get: writes down what it is asked, and "installs" by making the programs.
echo "$*" >> {calls}
case "$*" in
*" install "*) for name in {programs}; do echo '#!/bin/sh' > {directory}/$name; chmod 755 {directory}/$name; done ;;
esac
"""


class Machine:
    """A directory of programs, a root directory, and the record of what apt-get was asked."""

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.root = directory / "root"
        self.calls_file = directory / "calls"
        self.python = sys.executable
        self.user: int | None = None
        for made in (self.programs, self.root / "etc", self.root / "var/lib/apt/lists"):
            made.mkdir(parents=True)
        for name in ("env", "sh", "chmod", "cat", "sleep"):
            found = shutil.which(name)
            assert found is not None
            (self.programs / name).symlink_to(found)
        (self.root / "var/lib/apt/lists/a_mirror_Packages.lz4").write_bytes(b"")

    def add(self, name: str, body: str = "") -> None:
        self.programs.joinpath(name).write_text(f"#!/bin/sh\n{body}\n")
        self.programs.joinpath(name).chmod(0o755)

    def add_apt_get(self, body: str = INSTALLS) -> None:
        text = body.replace("{calls}", str(self.calls_file)).replace("{directory}", str(self.programs))
        self.add("apt-get", text.replace("{programs}", " ".join(PROGRAMS)))

    def calls(self) -> list[str]:
        """The commands apt-get was given, without the options that all of them have."""
        if not self.calls_file.exists():
            return []
        return [line.partition("https::Timeout=60 ")[2] for line in self.calls_file.read_text().splitlines()]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-c", DEPS, str(self.programs), f"{self.root}/", *arguments],
            env={"PATH": str(self.programs), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            input="y\n",  # what a user typed ahead; apt-get must not take it for an answer
            capture_output=True,
            text=True,
            timeout=60,
            user=self.user,
            check=False,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def user_machine(public_path: Path) -> Machine:
    """A machine on which the command is run by an ordinary user."""
    machine = Machine(public_path)
    if os.getuid() != 0:
        return machine
    if not Path("/usr/bin/python3").exists() or not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("needs the system's Python to run as another user: apt-get install python3-venv")
    machine.python = "/usr/bin/python3"
    machine.user = 65534
    machine.programs.chmod(0o777)
    public_path.chmod(0o777)
    return machine


as_root = pytest.mark.skipif(os.getuid() != 0, reason="root installs without sudo: run the tests as root")


@as_root
def test_missing_packages_are_named_with_reasons_and_installed(machine: Machine) -> None:
    machine.add_apt_get()
    done = machine.run("essential")
    assert done.returncode == 0, done.stderr
    packages = " ".join(requirement.package for requirement in ESSENTIAL)
    assert machine.calls() == [f"install --yes --no-install-recommends {packages}"]
    for requirement in ESSENTIAL:
        assert requirement.why in done.stderr
    assert f"running: apt-get install --yes --no-install-recommends {packages}" in done.stderr
    assert done.stderr.endswith("deps: done\n")
    assert done.stdout == ""


@as_root
def test_only_what_is_missing_is_installed(machine: Machine) -> None:
    machine.add_apt_get()
    for name in PROGRAMS:
        if name != "lz4":
            machine.add(name)
    assert machine.run("essential").returncode == 0
    assert machine.calls() == ["install --yes --no-install-recommends lz4"]


def test_nothing_to_do_is_silent(machine: Machine) -> None:
    machine.add_apt_get()
    for name in PROGRAMS:
        machine.add(name)
    done = machine.run("essential")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls() == []


def test_check_installs_nothing(machine: Machine) -> None:
    machine.add_apt_get()
    done = machine.run("essential", "--check")
    assert done.returncode == 1
    assert machine.calls() == []
    assert "apt-get install --yes --no-install-recommends qemu-system-x86" in done.stderr


def test_another_distribution_gets_the_list(machine: Machine) -> None:
    (machine.root / "etc/os-release").write_text('ID=fedora\nPRETTY_NAME="Fedora Linux 40"\n')
    done = machine.run("essential")
    assert done.returncode == 1
    assert "Fedora Linux 40 has no apt-get" in done.stderr
    for requirement in ESSENTIAL:
        assert f"{requirement.proofs[0][0]}  (Debian's package {requirement.package})" in done.stderr
    assert "Traceback" not in done.stderr


@as_root
def test_empty_lists_are_updated_first(machine: Machine) -> None:
    machine.add_apt_get()
    (machine.root / "var/lib/apt/lists/a_mirror_Packages.lz4").unlink()
    assert machine.run("essential").returncode == 0
    assert [call.split()[0] for call in machine.calls()] == ["update", "install"]


@as_root
def test_empty_lists_alone_are_updated_because_the_image_needs_them(machine: Machine) -> None:
    machine.add_apt_get()
    for name in PROGRAMS:
        machine.add(name)
    (machine.root / "var/lib/apt/lists/a_mirror_Packages.lz4").unlink()
    done = machine.run("essential")
    assert done.returncode == 0
    assert machine.calls() == ["update"]
    assert "apt has no package lists here" in done.stderr


@as_root
def test_stale_lists_are_updated_and_the_installation_tried_again(machine: Machine) -> None:
    machine.add_apt_get(
        """
        case "$*" in *" update") echo fresh > {directory}/fresh ;; esac
        case "$*" in *" install "*) if [ ! -e {directory}/fresh ]; then
          echo "$*" >> {calls}; echo "E: Unable to locate package lz4" >&2; exit 100; fi ;; esac
        """
        + INSTALLS
    )
    done = machine.run("essential")
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in machine.calls()] == ["install", "update", "install"]


@as_root
def test_a_failed_installation_shows_apts_words_and_the_command(machine: Machine) -> None:
    machine.add_apt_get('echo "E: You do not have enough free space" >&2; exit 100')
    done = machine.run("essential")
    assert done.returncode == 1
    assert "E: You do not have enough free space" in done.stderr
    assert "apt-get update && apt-get install --yes --no-install-recommends qemu-system-x86" in done.stderr


@as_root
def test_an_installation_that_brings_nothing_is_not_called_a_success(machine: Machine) -> None:
    machine.add_apt_get("exit 0")
    done = machine.run("essential")
    assert done.returncode == 1
    assert "lz4 was installed, but lz4 still is not there" in done.stderr


@as_root
def test_lists_held_by_another_apt_are_waited_for(machine: Machine) -> None:
    (machine.root / "var/lib/apt/lists/a_mirror_Packages.lz4").unlink()
    machine.add_apt_get(
        """
        case "$*" in *" update") if [ ! -e {directory}/tried ]; then
          echo > {directory}/tried
          echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt)" >&2; exit 100; fi ;; esac
        """
        + INSTALLS
    )
    done = machine.run("essential")
    assert done.returncode == 0, done.stderr
    assert "another program is using apt's lists; waiting for it" in done.stderr


@as_root
def test_apt_is_told_to_ask_nothing_and_to_wait_for_its_lock(machine: Machine) -> None:
    machine.add_apt_get('echo "$DEBIAN_FRONTEND $*" >&2; read answer || echo "stdin is empty" >&2; exit 1')
    done = machine.run("essential")
    assert "noninteractive -q -o DPkg::Lock::Timeout=600" in done.stderr
    assert "stdin is empty" in done.stderr


def test_an_ordinary_user_goes_through_sudo_that_may_not_ask(user_machine: Machine) -> None:
    user_machine.add_apt_get()
    user_machine.add("sudo", 'echo "sudo $1 $2" >&2; shift; exec "$@"')
    done = user_machine.run("essential")
    assert done.returncode == 0, done.stderr
    assert "sudo -n env" in done.stderr
    assert "running: sudo apt-get install" in done.stderr


def test_a_sudo_that_refuses_leaves_the_exact_command(user_machine: Machine) -> None:
    user_machine.add_apt_get()
    user_machine.add("sudo", 'echo "sudo: a password is required" >&2; exit 1')
    done = user_machine.run("essential")
    assert done.returncode == 1
    assert "sudo: a password is required" in done.stderr
    assert "sudo apt-get update && sudo apt-get install --yes --no-install-recommends qemu-system-x86" in done.stderr
    assert user_machine.calls() == []


def test_no_sudo_leaves_the_command_for_root(user_machine: Machine) -> None:
    user_machine.add_apt_get()
    done = user_machine.run("essential")
    assert done.returncode == 1
    assert "As root, run:\n  apt-get install --yes" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["all"], ["essential", "test"], ["--check"], ["essential", "--force"]])
def test_a_wrong_command_line_is_a_usage_error(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_the_python_for_the_environment_is_printed(machine: Machine) -> None:
    assert machine.run("python").stdout == f"{sys.executable}\n"


@as_root
def test_a_closed_stderr_does_not_stop_the_installation(machine: Machine) -> None:
    machine.add_apt_get()
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-c", DEPS, str(machine.programs), f"{machine.root}/", "essential"],
            env={"PATH": str(machine.programs), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert [call.split()[0] for call in machine.calls()] == ["install"]
    assert done.returncode == 0


def test_with_nothing_to_do_nothing_heavy_is_imported() -> None:
    """Every `make start` asks, so the modules that take long to import must wait until there is work."""
    code = (
        "import os, sys; from control.launch import deps; from control.host import Surroundings\n"
        "deps.install('essential', Surroundings(os.environ['PATH']), check_only=True)\n"
        "heavy = {'argparse', 'asyncio', 'dataclasses', 'json', 'logging', 'shutil', 'subprocess', 'tempfile'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "\n"
