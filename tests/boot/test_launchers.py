"""The three launchers start the built-in guest, whatever their stdin and stdout are, and leave nothing running."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.launching import (
    BOOT_S,
    END_S,
    LAUNCHERS,
    MAKE,
    ONE_CPU,
    ROOT,
    Launch,
    launcher_argv,
    open_launch,
    run_launcher,
    see_same_console,
    wait_until_gone,
)

UNTIL_READY = ("--until", "agent ready", "--timeout", "90")


def see_clean_end(launch: Launch, workdir: Path) -> None:
    """What every ended run has in common: nothing runs, no socket is left, the record says so, the disk is kept."""
    wait_until_gone(workdir, 2.0)
    files = launch.files
    assert not any(path.exists() for path in files.fleeting)
    assert json.loads(files.state.read_bytes())["state"] == "STOPPED"
    assert files.data_disk.stat().st_size > 0
    assert files.serial_log.stat().st_size > 0


@pytest.mark.parametrize(
    ("launcher", "boot"),
    [
        *((launcher, "direct") for launcher in LAUNCHERS),
        # They share what boots an ISO, and `make start-enhanced` does so below.
        *(pytest.param(launcher, "iso", marks=pytest.mark.slow) for launcher in LAUNCHERS),
    ],
)
def test_each_launcher_boots_the_guest_until_its_agent_is_ready(launcher: str, boot: str, workdir: Path) -> None:
    launch = run_launcher(launcher, "--boot", boot, *UNTIL_READY, cwd=workdir)
    assert b"agent ready" in launch.stdout
    see_clean_end(launch, workdir)
    if launcher == "simple_vm":
        see_same_console(launch.stdout, launch.files.serial_log)
    else:
        assert b"[vm status] agent ready" in launch.stdout, "messages are shown readably"
        assert b'"direction"' not in launch.stdout
    if launcher == "unhinged":
        for phase in (b"setup", b"firmware", b"kernel", b"init", b"agent"):
            assert b"unhinged: " + phase in launch.stderr


@contextlib.contextmanager
def open_pipe_that_never_ends() -> Iterator[int]:
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def open_pty() -> Iterator[tuple[int, bytearray]]:
    """A terminal, and all that is written to it: somebody must read, or its writer waits."""
    ours, theirs = pty.openpty()
    seen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # EIO, once nobody holds the other side
            while data := os.read(ours, 65536):
                seen.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield theirs, seen
    finally:
        os.close(theirs)
        reader.join(10)
        os.close(ours)


@contextlib.contextmanager
def open_stdin(kind: str) -> Iterator[int | None]:
    """A stdin of the kind; None stands for a closed one."""
    if kind == "pipe":
        with open_pipe_that_never_ends() as descriptor:
            yield descriptor
    elif kind == "pty":
        with open_pty() as (descriptor, _):
            yield descriptor
    else:
        yield None if kind == "closed" else subprocess.DEVNULL


# With /dev/null and a pipe, which the test above uses: every kind of stdin and stdout with both sorts of launcher. The
# third is the second one with a set-up before it.
KINDS = [
    ("simple_vm", "pipe", "file"),
    pytest.param("simple_vm", "closed", "pty", marks=pytest.mark.slow),
    pytest.param("simple_vm", "pty", "closed", marks=pytest.mark.slow),
    pytest.param("enhanced_vm", "pipe", "pty", marks=pytest.mark.slow),
    pytest.param("enhanced_vm", "closed", "closed", marks=pytest.mark.slow),
    ("enhanced_vm", "pty", "file"),
    pytest.param("unhinged", "closed", "pty", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("launcher", "stdin", "stdout"), KINDS)
def test_stdin_and_stdout_may_be_anything(launcher: str, stdin: str, stdout: str, workdir: Path) -> None:
    argv = launcher_argv(launcher, *ONE_CPU, *UNTIL_READY)
    # Popen cannot start a child with a closed stdin or stdout; the shell can.
    closings = (" <&-" if stdin == "closed" else "") + (" >&-" if stdout == "closed" else "")
    argv = ["sh", "-c", f'exec "$@"{closings}', "sh", *argv]
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(open_stdin(stdin))
        shown = bytearray()
        if stdout == "pty":
            target, shown = stack.enter_context(open_pty())
        elif stdout == "file":
            target = os.open(workdir / "console", os.O_CREAT | os.O_WRONLY)
            stack.callback(os.close, target)
        else:
            target = subprocess.PIPE if stdout == "pipe" else subprocess.DEVNULL
        launch = stack.enter_context(
            open_launch(
                launcher, cwd=workdir, argv=argv, stdin=subprocess.DEVNULL if source is None else source, stdout=target
            )
        )
        launch.finish()
        see_clean_end(launch, workdir)
    if stdout == "file":
        shown = bytearray((workdir / "console").read_bytes())
    if stdout == "pipe":
        shown = launch.stdout
    if stdout not in ("closed", "null"):
        assert b"agent ready" in shown
    if launcher == "simple_vm" and stdout == "file":
        see_same_console(shown, launch.files.serial_log)


def test_a_reader_that_goes_away_ends_the_vm(workdir: Path) -> None:
    """`make start-simple | head -1`."""
    with open_launch("simple_vm", "--timeout", "90", cwd=workdir) as launch:
        launch.wait_for(rb"\n")
        assert launch.process.stdout is not None
        launch._selector.unregister(launch.process.stdout)
        launch.process.stdout.close()
        assert launch.wait(BOOT_S + END_S) == 1
        assert b"has gone" in launch.stderr and b"Traceback" not in launch.stderr
    wait_until_gone(workdir, 2.0)


@pytest.mark.parametrize(
    ("target", "boot"), [("start-simple", ""), ("start-enhanced", "iso"), ("start", "")], ids=lambda value: value or "-"
)
def test_make_boots_the_guest(target: str, boot: str, checkout_instance: str, workdir: Path) -> None:
    values = ("UNTIL=agent ready", "TIMEOUT=60", f"NAME={checkout_instance}", f"BOOT={boot}", "ACCEL=tcg")
    with open_launch("make", cwd=workdir, argv=[*MAKE, target, *values]) as launch:
        launch.finish(within_s=100)
    assert b"agent ready" in launch.stdout
    if target == "start-simple":
        see_same_console(launch.stdout, ROOT / ".unhinged" / f"vm.{checkout_instance}" / "serial")


def test_make_passes_the_exit_code_of_a_wrong_value_on(checkout_instance: str, workdir: Path) -> None:
    values = ("MEMORY=plenty", f"NAME={checkout_instance}", "ACCEL=tcg")
    with open_launch("make", cwd=workdir, argv=[*MAKE, "start-simple", *values]) as launch:
        assert launch.wait() == 2  # make ends with 2 whatever its command ended with
    assert b"MEMORY='plenty' is not a size" in launch.stderr
    assert b"Traceback" not in launch.stderr
