"""A file with three VMs in a fresh directory, the built-in guest, a Debian image and an ISO: all of it by name."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.paths import IMAGE
from tests.boot.guests import DEBIAN
from tests.boot.test_fleet import make_tree, see_same
from tests.qemu.fleets import Desk, finish, open_desk

pytestmark = [pytest.mark.boot, pytest.mark.slow, pytest.mark.timeout(900)]

CONFIGURATION = """
[vm.builtin]
memory = "256M"
cpus = 1
accel = "tcg"
[vm.builtin.ssh]

[vm.debian]
image = "{debian}"
memory = "512M"
accel = "tcg"
[vm.debian.ssh]

[vm.iso]
iso = "{iso}"
memory = "512M"
cpus = 1
accel = "tcg"
"""
NAMES = ("builtin", "debian", "iso")
UP_S = 600


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write(CONFIGURATION.format(debian=DEBIAN, iso=IMAGE / "unhinged.iso"))
        yield desk


def run(desk: Desk, *words: str, exit_code: int = 0) -> str:
    done = finish(desk.begin(*words), within_s=UP_S)
    assert done.exit_code == exit_code, done
    return done.stdout


def test_three_vms_of_one_file(desk: Desk) -> None:
    image = DEBIAN.stat()
    run(desk, "start", "--all", "--wait", "agent", "--wait-timeout", str(UP_S))
    listed = desk.ask("list", "list")["vms"]
    assert [(vm["name"], vm["state"]) for vm in listed] == [(name, "RUNNING") for name in NAMES]
    assert all(vm["agent_ready"] for vm in desk.ask("status", "status", "--all")["vms"])

    for name in NAMES:
        nonce = secrets.token_hex(8)
        told = desk.ask("exec", "exec", name, "--", "sh", "-c", f"echo {nonce}; exit 4")
        assert (told["stdout"], told["exit_code"]) == (f"{nonce}\n", 4)

    make_tree(desk.directory / "tree")
    for name, ways in (("builtin", ("agent", "ssh")), ("debian", ("agent", "ssh")), ("iso", ("agent",))):
        if "ssh" in ways:
            run(desk, "wait", name, "--for", "ssh", "--timeout", str(UP_S))
            assert "four\n" in run(desk, "ssh", name, "--", "echo four; exit 4", exit_code=4)
        for way in ways:
            run(desk, "put", "--via", way, name, "tree", f"/root/{way}")
            for back in ways:
                copy = desk.directory / f"{name}-{way}-{back}"
                run(desk, "get", "--via", back, name, f"/root/{way}", str(copy))
                see_same(desk.directory / "tree", copy)

    following = desk.begin("logs", "-f", "builtin")
    picture = desk.directory / "screen.png"
    assert desk.ask("screenshot", "screenshot", "debian", str(picture))["bytes"] == picture.stat().st_size
    assert picture.read_bytes().startswith(b"\x89PNG")
    run(desk, "pause", "--all")
    assert {vm["state"] for vm in desk.ask("list", "list")["vms"]} == {"PAUSED"}
    run(desk, "resume", "--all")
    nonce = secrets.token_hex(8)
    run(desk, "exec", "builtin", "--", "sh", "-c", f"echo {nonce} > /dev/ttyS0")
    run(desk, "stop", "--all", "--timeout", "120")
    assert nonce in finish(following).stdout
    desk.wait_until_gone()
    for name in NAMES:
        assert b"ower down" in desk.files(name).serial_log.read_bytes(), f"{name} was asked to go, and went"
    now = DEBIAN.stat()
    assert (now.st_size, now.st_mtime_ns) == (image.st_size, image.st_mtime_ns), "an image is not written to"
