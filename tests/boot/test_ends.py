"""Every way a run can end has its own exit code, a cause in words, and leaves nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.paths import IMAGE
from iso import newc
from tests.boot.launching import (
    BOOT_S,
    Launch,
    find_processes_below,
    open_guest_shell,
    open_launch,
    run_launcher,
    wait_until_gone,
)

LIMIT = ("--timeout", "90")
NO_TIMER_CHECK = "no_timer_check"
"""Where emulation is starved of time, a kernel's test of its timer fails, and it panics about that instead."""


def see_error(launch: Launch, *words: str) -> None:
    """What every error looks like: one sentence, and a way out; no traceback."""
    text = launch.stderr.decode()
    assert text.count("error: ") == 1, text
    assert "\n  try: " in text, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


# -- the run's own limits ----------------------------------------------------------------------------------------------


def test_until_that_is_never_seen_times_out_and_shows_the_last_lines(workdir: Path) -> None:
    launch = run_launcher("simple_vm", "--until", "never to be seen", "--timeout", "7", cwd=workdir, exit_code=124)
    see_error(launch, "waited 7 s for the console to show 'never to be seen'", "\n  | ", "TIMEOUT=")
    wait_until_gone(workdir, 2.0)


def test_a_guest_that_shuts_down_ends_the_run_well(workdir: Path) -> None:
    with open_launch("simple_vm", *LIMIT, cwd=workdir) as launch, open_guest_shell(launch) as shell:
        shell.send(b"poweroff\n")
        launch.finish(0)
    assert b"unhinged: the guest shut down" in launch.stderr
    assert json.loads(launch.files.state.read_bytes())["state"] == "STOPPED"


@pytest.mark.slow
def test_a_guest_that_shuts_down_before_until_is_an_error(workdir: Path) -> None:
    with (
        open_launch("enhanced_vm", "--until", "never to be seen", *LIMIT, cwd=workdir) as launch,
        open_guest_shell(launch) as shell,
    ):
        shell.send(b"poweroff\n")
        launch.finish(1)
    assert b"the guest shut down before the console showed 'never to be seen'" in launch.stderr
    assert b"Power down" in launch.stderr, "the last lines are shown"


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        pytest.param("simple_vm", signal.SIGINT, marks=pytest.mark.slow),
        ("enhanced_vm", signal.SIGTERM),
        ("unhinged", signal.SIGINT),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_ends_the_vm_too(launcher: str, number: signal.Signals, workdir: Path) -> None:
    with open_launch(launcher, *LIMIT, cwd=workdir) as launch:
        launch.wait_until(
            lambda: launch.files.serial_log.exists() and launch.files.serial_log.stat().st_size > 0, "text"
        )
        launch.signal(number)
        launch.finish(130)
    wait_until_gone(workdir, 2.0)
    assert not any(path.exists() for path in launch.files.fleeting)


# -- sudden deaths -----------------------------------------------------------------------------------------------------


def test_a_killed_launcher_leaves_no_qemu_and_no_obstacle(workdir: Path) -> None:
    with open_launch("simple_vm", *LIMIT, cwd=workdir) as launch:
        launch.wait_for(rb"\n")
        assert launch.qemu_pid in find_processes_below(workdir)
        launch.signal(signal.SIGKILL)
        launch.wait()
        wait_until_gone(workdir)
    again = run_launcher("enhanced_vm", "--name", "main", "--until", "agent ready", *LIMIT, cwd=workdir)
    assert again.files.directory == launch.files.directory


@pytest.mark.slow
def test_a_killed_qemu_is_said_to_have_died(workdir: Path) -> None:
    with open_launch("enhanced_vm", *LIMIT, cwd=workdir) as launch:
        launch.wait_for(rb"booting")
        os.kill(launch.qemu_pid, signal.SIGKILL)
        launch.finish(4)
    see_error(launch, "QEMU was killed by SIGKILL")
    assert json.loads(launch.files.state.read_bytes())["state"] == "FAILED"


@pytest.mark.parametrize("launcher", [pytest.param("simple_vm", marks=pytest.mark.slow), "enhanced_vm"])
def test_a_panic_of_the_running_guest(launcher: str, workdir: Path) -> None:
    with open_launch(launcher, *LIMIT, cwd=workdir) as launch:
        launch.wait_for(rb"boot finished")
        with open_guest_shell(launch) as shell:
            shell.send(b"echo c > /proc/sysrq-trigger\n")
            launch.finish(3)
    see_error(launch, "the guest's kernel panicked", "sysrq triggered crash")
    wait_until_gone(workdir, 2.0)


# -- boots that fail ---------------------------------------------------------------------------------------------------


def test_no_root_file_system(workdir: Path) -> None:
    kernel = str(IMAGE / "vmlinux")
    launch = run_launcher(
        "simple_vm", "--kernel", kernel, "--append", f"panic=0 {NO_TIMER_CHECK}", *LIMIT, cwd=workdir, exit_code=3
    )
    see_error(launch, "the kernel found no root file system", "Unable to mount root fs", "INITRD=")
    wait_until_gone(workdir, 2.0)


@pytest.mark.slow
def test_no_root_with_a_kernel_that_starts_over(workdir: Path) -> None:
    options = ("--kernel", str(IMAGE / "bzImage"), "--append", f"panic=-1 {NO_TIMER_CHECK}")
    launch = run_launcher("enhanced_vm", *options, *LIMIT, cwd=workdir, exit_code=3)
    see_error(launch, "the kernel found no root file system", "Unable to mount root fs")


def test_a_blank_disk(workdir: Path) -> None:
    with (workdir / "blank, disk.img").open("wb") as file:
        file.truncate(16 * 1024 * 1024)
    launch = run_launcher("simple_vm", "--disk", "blank, disk.img", *LIMIT, cwd=workdir, exit_code=5)
    see_error(launch, "the firmware found nothing to boot from", "No bootable device")


INITRAMFS_SHELL = """\
echo 'Begin: Waiting for root file system ... done.'
echo 'Gave up waiting for root file system device.  Common problems:'
echo ' - Boot args (cat /proc/cmdline)'
echo '   - Check rootdelay= (did the system wait long enough?)'
echo ' - Missing modules (cat /proc/modules; ls /dev)'
echo 'ALERT!  UUID=1b4e28ba-2fa1-11d2-883f-0016d3cca427 does not exist.  Dropping to a shell!'
PS1='(initramfs) ' exec /bin/sh -i
"""
"""Source: initramfs-tools 0.142, scripts/local (local_device_setup) and scripts/functions (panic)."""

EMERGENCY_MODE = """\
echo 'You are in emergency mode. After logging in, type "journalctl -xb" to view'
echo 'system logs, "systemctl reboot" to reboot, "systemctl default" or "exit"'
echo 'to boot into default mode.'
printf 'Give root password for maintenance\\n(or press Control-D to continue): '
read password
"""
"""Source: systemd 252, src/shared/... emergency.service (systemd-sulogin-shell); util-linux 2.38, sulogin.c."""

LOCKED_ROOT = """\
echo 'You are in emergency mode. After logging in, type "journalctl -xb" to view'
echo 'system logs, "systemctl reboot" to reboot, "systemctl default" or "exit"'
echo 'to boot into default mode.'
echo
echo 'Cannot open access to console, the root account is locked.'
echo 'See sulogin(8) man page for more details.'
echo
echo 'Press Enter to continue.'
read enter
"""
"""Source: util-linux 2.38, sulogin.c, on a system whose root has no password, as Ubuntu installs it."""


@pytest.mark.parametrize(
    ("script", "sentence", "seen"),
    [
        (INITRAMFS_SHELL, "the guest's initramfs gave up and opened a shell", "1b4e28ba"),
        (EMERGENCY_MODE, "the guest's system came up in emergency mode", "Give root password"),
        (LOCKED_ROOT, "the guest's system came up in emergency mode", "the root account is locked"),
    ],
    ids=["initramfs", "emergency", "locked"],
)
def test_a_guest_that_stops_and_asks(script: str, sentence: str, seen: str, workdir: Path) -> None:
    launch = run_launcher("simple_vm", *own_init(workdir, script), *LIMIT, cwd=workdir, exit_code=5)
    see_error(launch, sentence, seen)


def own_init(workdir: Path, script: str) -> tuple[str, ...]:
    """Options that start the built-in kernel and programs with an init of ours."""
    lines = (
        "#!/bin/sh",
        "mount -t devtmpfs dev /dev",
        "mount -t proc proc /proc",
        "exec < /dev/ttyS0 > /dev/ttyS0 2>&1",
    )
    init = "\n".join((*lines, script))
    # Ours comes first and has another name: the kernel reads a plain archive before a packed one, but nothing
    # behind one packed by lz4 (Linux, lib/decompress_unlz4.c, takes all that is left).
    archive = newc.pack({"own-init": newc.file(init.encode(), 0o755)})
    (workdir / "initrd").write_bytes(archive + bytes(-len(archive) % 512) + (IMAGE / "initrd").read_bytes())
    append = f"quiet panic=-1 rdinit=/own-init {NO_TIMER_CHECK}"
    return ("--kernel", str(IMAGE / "vmlinux"), "--initrd", str(workdir / "initrd"), "--append", append)


@pytest.mark.slow  # the watch gives a silent guest 60 seconds under software emulation
@pytest.mark.timeout(200)
def test_a_console_that_is_somewhere_else(workdir: Path) -> None:
    # Without an initrd it panics, and tells the screen alone; entered through PVH a kernel knows of no screen.
    options = ("--kernel", str(IMAGE / "bzImage"), "--append", f"console=tty0 panic=0 {NO_TIMER_CHECK}")
    with open_launch("simple_vm", *options, "--timeout", "150", cwd=workdir) as launch:
        launch.finish(5, within_s=170)
    see_error(launch, "nothing came over the serial console", "console=ttyS0", "screen: ", "Unable to mount root fs")


# -- several VMs, and a disk that is taken -----------------------------------------------------------------------------


def test_two_vms_at_once_and_a_disk_that_is_in_use(workdir: Path) -> None:
    disk = str(workdir / "disk.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    with open_launch("simple_vm", "--boot", "direct", "--disk", disk, *LIMIT, cwd=workdir) as first:
        first.wait_for(rb"\n")
        locked = run_launcher(
            "simple_vm", "--boot", "direct", "--disk", disk, *LIMIT, cwd=workdir, name="main-2", exit_code=4
        )
        see_error(locked, "a disk image is in use by another VM", "stop that VM")
        taken = run_launcher("simple_vm", "--name", "main", *LIMIT, cwd=workdir, exit_code=1, ends=False)
        see_error(taken, "the VM 'main' is already running")
        second = run_launcher("enhanced_vm", "--until", "agent ready", *LIMIT, cwd=workdir, name="main-2")
        assert b"unhinged: main is running already; this VM is called main-2" in second.stderr
        assert json.loads(first.files.state.read_bytes())["state"] == "RUNNING", "the first one is not disturbed"
        first.signal(signal.SIGTERM)
        first.finish(130)
    wait_until_gone(workdir, 2.0)


# -- places that cannot be written -------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    directory.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting a small file system needs root: run the tests as root")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_working_directory_that_is_read_only(workdir: Path) -> None:
    with mounted(workdir / "read-only", "ro") as cwd:
        launch = run_launcher("simple_vm", *LIMIT, cwd=cwd, exit_code=1)
    see_error(launch, ".unhinged cannot be made: Read-only file system")


@pytest.mark.parametrize("size", ["64k", "212k", pytest.param("228k", marks=pytest.mark.slow)])
def test_a_full_disk(size: str, workdir: Path) -> None:
    """Too small for the data disk, for the records beside it, and for the logs of the running VM."""
    with mounted(workdir / "small", f"size={size}") as cwd:
        with open_launch("enhanced_vm", "--until", "boot finished", *LIMIT, cwd=cwd) as launch:
            code = launch.wait(2 * BOOT_S)
        wait_until_gone(cwd, 2.0)
    if code != 0:  # so much fits that the run went well
        assert code in (1, 4), launch.show()
        see_error(launch)
        assert re.search(rb"No space left|full|room", launch.stderr), launch.show()
    else:
        assert size == "228k", launch.show()
    assert b"Traceback" not in launch.stderr
