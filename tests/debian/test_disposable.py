"""Machines that are thrown away, of the Debian guest: for one command, and for tests on both guests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.test_plugin import run_pytest, write_suite
from tests.debian.debianvm import DISK
from tests.qemu.fleets import Desk, finish, open_desk

WITHIN_S = 300.0

SUITE = """
import pytest

pytestmark = pytest.mark.vm(net="restricted")  # without a network no SSH server comes back in a clone

def test_service(vm):
    is_systemd = vm.execute("test -d /run/systemd/system").exit_code == 0
    vm.wait_for_unit("ssh.service" if is_systemd else "dropbear")
    vm.wait_for_open_port(22)
    assert vm.succeed("hostname").strip() == vm.name

@pytest.mark.vm(allow="unit")
def test_a_unit_that_fails_while_it_is_waited_for(vm):
    vm.write_file("/run/systemd/system/broken.service", "[Service]\\nExecStart=/bin/sh -c 'echo its words; exit 3'\\n")
    vm.succeed("systemctl daemon-reload", "systemctl start --no-block broken")
    with pytest.raises(AssertionError, match="broken has failed in vm(?s:.*)its words"):
        vm.wait_for_unit("broken")

def test_what_it_writes(vm):
    vm.succeed("echo mine > /etc/mine; sync")
    vm.crash()
    vm.start()
    assert vm.succeed("cat /etc/mine") == "mine\\n"
"""


@pytest.fixture
def desk(directory: Path) -> Iterator[Desk]:
    if not DISK.exists():
        pytest.skip("the Debian image is not built: make image-debian")
    with open_desk(directory) as desk:
        yield desk
        desk.wait_until_gone()


def test_commands_and_tests_in_debian(desk: Desk) -> None:
    before = DISK.stat()
    done = finish(desk.begin("run", "--image", "debian", "--", "cat", "/etc/os-release"), within_s=WITHIN_S)
    assert done.exit_code == 0 and "ID=debian" in done.stdout and "template of debian" in done.stderr
    done = desk.run("run", "--image", "debian", "--", "sh", "-c", "echo x > /root/x; systemctl is-system-running")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "running\n", "")
    assert desk.run("run", "--image", "debian", "--", "test", "-e", "/root/x").exit_code == 1
    run = run_pytest(desk, write_suite(desk, "both", SUITE), "--vm-matrix", "image=builtin,debian", "-k", "service")
    assert (run.exit_code, run.count("passed")) == (0, 2), run.text
    run = run_pytest(desk, write_suite(desk, "disk", SUITE), "--vm-matrix", "image=debian", "-k", "not service")
    assert (run.exit_code, run.count("passed")) == (0, 2), run.text
    assert DISK.stat().st_mtime_ns == before.st_mtime_ns
