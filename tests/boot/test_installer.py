"""The Debian installer, as the distribution ships it: a guest that is not ours reaches its first question."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from control.session import open_session
from tests.boot.launching import Launch, open_launch, wait_until_gone
from tests.qemu.fleets import finish, open_desk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")
"""Debian package debian-installer-12-netboot-amd64."""

ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")

FIRST_QUESTION = r"Choose the language to be used for the installation process"
"""localechooser's first template; it comes after 19 to 24 seconds under software emulation on an idle machine."""


@pytest.fixture
def installer(need: Callable[[str], None]) -> Path:
    need("installer")
    return INSTALLER


def see_first_question(launch: Launch, workdir: Path) -> None:
    launch.finish(0, within_s=280)
    shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", bytes(launch.stdout))
    assert FIRST_QUESTION.encode() in shown
    assert b"Traceback" not in launch.stderr
    wait_until_gone(workdir, 2.0)


@pytest.mark.parametrize("launcher", ["simple_vm", "enhanced_vm"])
def test_started_directly(launcher: str, installer: Path, workdir: Path) -> None:
    options = ("--kernel", str(installer / "linux"), "--initrd", str(installer / "initrd.gz"))
    with open_launch(launcher, *options, "--until", FIRST_QUESTION, "--timeout", "240", cwd=workdir) as launch:
        see_first_question(launch, workdir)


def test_started_from_an_iso(installer: Path, need: Callable[[str], None], workdir: Path) -> None:
    need("isolinux")
    iso = make_iso(installer, workdir)
    options = ("--iso", str(iso), "--until", FIRST_QUESTION, "--timeout", "240")
    with open_launch("simple_vm", *options, cwd=workdir) as launch:
        see_first_question(launch, workdir)


def make_iso(installer: Path, workdir: Path) -> Path:
    """Wrap the installer's kernel and initrd in an ISO that starts them by itself, with their console on ttyS0."""
    tree = workdir / "tree"
    (tree / "isolinux").mkdir(parents=True)
    for source in (ISOLINUX, LDLINUX):
        shutil.copy(source, tree / "isolinux")
    shutil.copy(installer / "linux", tree / "linux")
    shutil.copy(installer / "initrd.gz", tree / "initrd.gz")
    (tree / "isolinux" / "isolinux.cfg").write_text(
        "serial 0 115200\nprompt 0\ntimeout 1\ndefault install\n"
        "label install\n  kernel /linux\n  append initrd=/initrd.gz console=ttyS0,115200n8\n"
    )
    iso = workdir / "installer.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(iso), "-J", "-R", "-b", "isolinux/isolinux.bin"]
    options = ["-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", str(tree)]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=60)
    return iso


SHELL_SCRIPT = """
timeout 200
expect "Prompt: "
line "<"
expect "10: Execute a shell"
expect "Prompt: "
line 10
expect "Press enter to continue"
line
expect "# "
run "uname -s | grep -x Linux"
run "test -e /none" exit 1
print "at a shell"
"""


def test_a_script_leads_to_a_shell_of_the_installer(installer: Path, workdir: Path) -> None:
    """At ttyS0 of an image we did not build: patterns, answers, and commands with their exit codes."""
    with open_desk(workdir) as desk:
        desk.write(f"""
[vm.installer]
kernel = "{installer}/linux"
initrd = "{installer}/initrd.gz"
append = "console=ttyS0 DEBIAN_FRONTEND=text"
memory = "1G"
cpus = 1
accel = "tcg"
net = "none"
agent = false
""")
        (workdir / "script").write_text(SHELL_SCRIPT)
        assert desk.run("start", "installer").exit_code == 0
        process = desk.begin("--json", "expect", "installer", "--from", "start", "script")
        done = finish(process, within_s=280)
        assert done.exit_code == 0, done.stderr
        assert done.document["printed"] == ["at a shell"]
        with open_session("installer", config=workdir, timeout=60) as session:
            # The installer runs GNU screen on its serial console: what comes is a drawing, line ends are its own.
            assert session.run("cd /usr; pwd").output.strip() == "/usr"
            assert session.run("pwd; false").exit_code == 1
        desk.run("kill", "installer")
        desk.wait_until_gone()
