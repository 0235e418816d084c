"""A template of the Debian guest: its clones, systemd and OpenSSH among them, are machines of their own."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian.debianvm import DISK
from tests.qemu.fleets import Desk, finish, open_desk

WITHIN_S = 300.0
CONFIGURATION = """
[vm.one]
disk = [{ path = "one.qcow2" }]
memory = "512M"
cpus = 2
accel = "tcg"
[vm.one.ssh]
port = "auto"
user = "root"
"""


@pytest.fixture
def desk(directory: Path) -> Iterator[Desk]:
    if not DISK.exists():
        pytest.skip("the Debian image is not built: make image-debian")
    with open_desk(directory) as desk:
        disk = desk.directory / "one.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", DISK, "-F", "qcow2", disk], check=True)
        desk.write(CONFIGURATION)
        started = finish(
            desk.begin("start", "--wait", "ssh", "--wait-timeout", str(WITHIN_S), "one"), within_s=WITHIN_S
        )
        assert started.exit_code == 0, started.stderr
        yield desk
        desk.run("discard", "--of", "one")
        desk.run("kill", "one")
        desk.wait_until_gone()


def scan_key(desk: Desk, name: str) -> str:
    """The host key that the SSH server of a machine shows."""
    ports = json.loads(desk.files(name).state.read_bytes())["ports"]
    done = subprocess.run(
        ["ssh-keyscan", "-t", "ed25519", "-p", str(ports["tcp:22"]), "127.0.0.1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"ssh-ed25519 (\S+)", done.stdout)
    assert found is not None, done
    return found[1]


def test_clones_of_debian_have_keys_ids_and_services_of_their_own(desk: Desk) -> None:
    made = finish(desk.begin("template", "one"), within_s=WITHIN_S)
    assert made.exit_code == 0, made.stderr
    forked = finish(desk.begin("--json", "fork", "one", "--count", "2"), within_s=WITHIN_S).document
    names = [vm["name"] for vm in forked["vms"]]
    assert forked["exit_code"] == 0, forked
    for name in names:
        waited = finish(desk.begin("wait", name, "--for", "ssh", "--timeout", "120"), within_s=WITHIN_S)
        assert waited.exit_code == 0, waited.stderr
    assert len({scan_key(desk, name) for name in ("one", *names)}) == 3
    script = "cat /etc/machine-id; hostname; systemctl is-active ssh; systemctl is-system-running"
    told = [desk.run("exec", name, "-n", "--", "sh", "-c", script).stdout.splitlines() for name in ("one", *names)]
    assert len({lines[0] for lines in told}) == 3
    assert [lines[1] for lines in told[1:]] == names
    assert [lines[2:] for lines in told[1:]] == [["active", told[0][3]]] * 2
    for name in names:
        done = finish(desk.begin("ssh", name, "--via", "ssh", "--", "hostname"), within_s=WITHIN_S)
        assert done.stdout == f"{name}\n", done
