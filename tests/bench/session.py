"""Consoles as people and scripts have them: attaching, typing, ten viewers of a burst, commands at a shell."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pexpect.socket_pexpect

from control.paths import InstanceFiles, find_instance_files, runtime_directory
from control.session import open_session
from control.vm.attached import Attached, attach
from tests.bench import payload
from tests.bench.console import BURST_BLOCKS, PORT, QUICK_BLOCKS, WRAPPER, build_burst, build_making_argv
from tests.bench.figures import Figure, Samples, Target
from tests.bench.fleet import UP_TIMEOUT_S, Fleet
from tests.bench.memory import read_proportional_mb, read_status_mb
from tests.bench.registry import Settings, benchmark

VIEWERS = 10
KEYS, QUICK_KEYS = 300, 40
COMMANDS, QUICK_COMMANDS = 40, 5
SLEEP_S = 0.1
"""What scripts sleep between typing and reading, so that they find what they look for."""

WITHIN_S = 120.0
MILLISECOND, MEGABYTE = 1000.0, 1e6
ECHO = bytes.fromhex("fabafd03eca80174fbbaf803eceeebf1")
"""Code for the serial port at 0x3f8: waits for a byte, and says it back, for ever."""

ROM = ECHO.ljust(0xFFF0, b"\0") + bytes.fromhex("ea000000f0").ljust(16, b"\0")
"""It instead of a BIOS: a CPU begins in the last 16 bytes."""

ECHOING = """
[vm.echo]
disk = "echo.img"
memory = "64M"
cpus = 1
accel = "{accel}"
agent = false
qemu_args = ["-bios", "{rom}"]
"""


@benchmark("session")
def measure_session(settings: Settings) -> list[Figure]:
    """Attaching, keystrokes, ten viewers of a burst, and commands at a shell, beside bare sockets and pexpect."""
    return [*_measure_keys(settings), *_measure_viewers(settings), *_measure_commands(settings)]


# -- attaching and typing ----------------------------------------------------------------------------------------------


def _measure_keys(settings: Settings) -> list[Figure]:
    settings.say("session: keystrokes")
    keys = QUICK_KEYS if settings.quick else KEYS
    directory = settings.directory / "echo"
    fleet = Fleet(directory, [], settings.accelerator)
    (directory / "rom").write_bytes(ROM)
    (directory / "echo.img").write_bytes(bytes(1 << 20))
    (directory / "unhinged.toml").write_text(ECHOING.format(accel=settings.accelerator, rom=directory / "rom"))
    fleet.run("start", "echo")
    try:
        runtime = runtime_directory(directory)
        files = find_instance_files(runtime, "echo")
        pid = json.loads(files.state.read_bytes())["pid"]
        with attach(runtime, "echo") as attached, _open_bare_echo(files) as (bare, bare_pid):
            ours, theirs = [], []
            for _ in range(settings.runs):
                with _held_up(bare_pid):
                    ours.append(statistics.median(_type_on_ours(attached, keys)))
                with _held_up(pid):
                    theirs.append(statistics.median(_type_on_bare(bare, keys)))
        attaching = [_attach(runtime) for _ in range(max(settings.runs, 10))]
        command = fleet.time(settings.runs, "read", "echo")
    finally:
        fleet.run("kill", "--all")
    return [
        Figure(
            "attach to the first byte of history",
            "ms",
            Samples("attach, in a process that runs", tuple(attaching)),
            None,
            (Target(100.0),),
        ),
        Figure("read NAME", "ms", Samples("whole process", command)),
        Figure(
            f"keystroke to echo, median of each {keys}",
            "ms",
            Samples("seat, supervisor, FIFO, file", tuple(ours)),
            Samples("QEMU's own socket", tuple(theirs)),
            (Target(2.0, basis="difference"),),
            ("the guest is a ROM that says back each byte.",),
        ),
    ]


def _attach(runtime: Path) -> float:
    began = time.perf_counter()
    with attach(runtime, "echo", mode="read", start=0) as attached:
        while not attached.read():
            attached.wait(WITHIN_S)
        return (time.perf_counter() - began) * MILLISECOND


def _type_on_ours(attached: Attached, keys: int) -> list[float]:
    attached.wait_for_turn(WITHIN_S)
    times = []
    for _ in range(keys):
        began = time.perf_counter()
        attached.type(b"x")
        while not attached.read():
            attached.wait(WITHIN_S)
            attached.attend()
        times.append((time.perf_counter() - began) * MILLISECOND)
    return times


def _type_on_bare(connection: socket.socket, keys: int) -> list[float]:
    times = []
    for _ in range(keys):
        began = time.perf_counter()
        connection.sendall(b"x")
        connection.recv(100)
        times.append((time.perf_counter() - began) * MILLISECOND)
    return times


@contextlib.contextmanager
def _open_bare_echo(files: InstanceFiles) -> Iterator[tuple[socket.socket, int]]:
    """The same QEMU with the same ROM, its console a socket."""
    qemu = json.loads(files.argv.read_bytes())[0]
    with tempfile.TemporaryDirectory(prefix="uh-") as directory:
        path = Path(directory) / "serial"
        argv = [qemu, "-nodefaults", "-display", "none", "-m", "64M", "-accel", "tcg", "-bios",
                str(files.directory.parent.parent / "rom"), "-serial", f"unix:{path},server=on,wait=off"]  # fmt: skip
        with _open_qemu(argv) as pid, _connect(path) as connection:
            yield connection, pid


@contextlib.contextmanager
def _held_up(pid: int) -> Iterator[None]:
    """Let a QEMU stand still: its guest, which asks its port again and again, takes a processor."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _open_qemu(argv: Sequence[str]) -> Iterator[int]:
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def _connect(path: Path) -> socket.socket:
    deadline = time.monotonic() + WITHIN_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        connection.settimeout(WITHIN_S)
        return connection


# -- a burst to ten ----------------------------------------------------------------------------------------------------


def _measure_viewers(settings: Settings) -> list[Figure]:
    settings.say(f"session: a burst to {VIEWERS} viewers")
    burst = build_burst("/tmp/plain", QUICK_BLOCKS if settings.quick else BURST_BLOCKS, 0)
    crc = 0
    text = payload.build_text()
    for number in range(burst.blocks):
        crc = zlib.crc32(payload.build_block(number, text, 0), crc)
    directory = settings.directory / "burst"
    fleet = Fleet(directory, ["burst"], settings.accelerator, memory=1024)
    wrapper = directory / "qemu"
    argv = json.loads(fleet.run("--json", "config", "show", "burst").stdout)["argv"]
    wrapper.write_text(WRAPPER.format(python=sys.executable, port=PORT.format("console"), qemu=argv[0]))
    wrapper.chmod(0o700)
    with (directory / "unhinged.toml").open("a") as file:
        file.write(f'[qemu]\nbin = "{wrapper}"\n')
    fleet.run("start", "burst", "--wait", "agent", "--wait-timeout", str(UP_TIMEOUT_S))
    try:
        fleet.run("exec", "burst", "--", *build_making_argv(burst))
        pid = json.loads(fleet.run("--json", "status", "burst").stdout)["supervisor_pid"]
        before = read_status_mb(pid, "VmHWM")
        slowest, rates = [], []
        for _ in range(settings.runs):
            seconds = _view_burst(fleet, burst.guest_path, burst.bytes, crc)
            rates += [burst.bytes / MEGABYTE / each for each in seconds]
            slowest.append(burst.bytes / MEGABYTE / max(seconds))
        peak, shared = read_status_mb(pid, "VmHWM"), read_proportional_mb(pid)
    finally:
        fleet.run("kill", "--all")
    size = f"{burst.bytes / MEGABYTE:.0f} MB"
    return [
        Figure(
            f"burst of {size} to {VIEWERS} viewers at once, the slowest of them",
            "MB/s",
            Samples("attach, each a process", tuple(slowest)),
            None,
            (Target(40.0, "higher"),),
            (
                f"each of {len(rates)} viewers had every byte (CRC-32); their median was"
                f" {statistics.median(rates):.0f} MB/s, from the first byte to the last.",
            ),
        ),
        Figure(
            "their supervisor, after that",
            "MB",
            Samples("Pss", (shared,)),
            None,
            (Target(32.0),),
            (f"its resident memory peaked at {peak:.1f} MB, and at {before:.1f} MB before the bursts.",),
        ),
    ]


def _view_burst(fleet: Fleet, path: str, size: int, crc: int) -> list[float]:
    """Let ten processes see a burst; returns the seconds each took. Raises RuntimeError when one saw another."""
    runtime = runtime_directory(fleet.directory)
    log = find_instance_files(runtime, "burst").serial_log
    start = log.stat().st_size
    find = f"for port in /sys/class/virtio-ports/*; do grep -qx {PORT.format('console')} $port/name && break; done"
    send = f"{find}; dd if={shlex.quote(path)} of=/dev/${{port##*/}} bs=64k"
    with ProcessPoolExecutor(VIEWERS) as pool, tempfile.TemporaryDirectory() as seats:
        watching = [pool.submit(_watch, runtime, start, size, Path(seats, str(each))) for each in range(VIEWERS)]
        deadline = time.monotonic() + WITHIN_S
        while len(list(Path(seats).iterdir())) < VIEWERS:  # one that came late would find all of it there
            if time.monotonic() > deadline:
                raise RuntimeError("a viewer does not sit down")
            time.sleep(0.01)
        fleet.run("exec", "burst", "--", "sh", "-c", send)
        seen = [each.result(WITHIN_S) for each in watching]
    if any(found != crc for found, _ in seen):
        raise RuntimeError("a viewer saw another burst than was sent")
    return [seconds for _, seconds in seen]


def _watch(runtime: Path, start: int, size: int, seat: Path) -> tuple[int, float]:
    with attach(runtime, "burst", mode="read", start=start) as attached:
        seat.touch()
        crc, left, began = 0, size, 0.0
        while left > 0:
            data = attached.read()[:left]
            if not data:
                attached.wait(WITHIN_S)
                attached.attend()
                continue
            began = began or time.perf_counter()
            crc = zlib.crc32(data, crc)
            left -= len(data)
        return crc, time.perf_counter() - began


# -- commands at a shell -----------------------------------------------------------------------------------------------


def _measure_commands(settings: Settings) -> list[Figure]:
    settings.say("session: commands at a shell")
    count = QUICK_COMMANDS if settings.quick else COMMANDS
    fleet = Fleet(settings.directory / "shell", ["one"], settings.accelerator)
    fleet.run("start", "one", "--wait", "agent", "--wait-timeout", str(UP_TIMEOUT_S))
    try:
        with open_session("one", config=fleet.directory, timeout=WITHIN_S) as session:
            session.login("root")
            with _open_bare_shell(fleet) as peer:
                ours, theirs = [], []
                for _ in range(settings.runs):
                    began = time.perf_counter()
                    for _ in range(count):
                        if session.run("true").exit_code != 0:
                            raise RuntimeError("true has failed")
                    ours.append(count / (time.perf_counter() - began))
                    began = time.perf_counter()
                    for _ in range(count):
                        _run_on_bare(peer, "true")
                    theirs.append(count / (time.perf_counter() - began))
    finally:
        fleet.run("kill", "--all")
    return [
        Figure(
            'run("true") at ttyS0',
            "1/s",
            Samples("session.run, with its exit code", tuple(ours)),
            Samples("pexpect on the socket, with sleeps", tuple(theirs)),
            (Target(5.0, "higher", "ratio"),),
            (f"the peer types a line, sleeps {SLEEP_S:g} s and expects the prompt, for the command and for `$?`.",),
        )
    ]


@contextlib.contextmanager
def _open_bare_shell(fleet: Fleet) -> Iterator[pexpect.socket_pexpect.SocketSpawn[Any]]:
    """The same guest, its console a socket, with somebody logged in, as scripts do it."""
    files = find_instance_files(runtime_directory(fleet.directory), "one")
    argv = json.loads(files.argv.read_bytes())
    at = argv.index("-kernel")
    with tempfile.TemporaryDirectory(prefix="uh-") as directory:
        path = Path(directory) / "serial"
        words = [argv[0], "-nodefaults", "-display", "none", "-m", "256M", "-accel", "tcg", *argv[at : at + 6],
                 "-serial", f"unix:{path},server=on,wait=off"]  # fmt: skip
        with _open_qemu(words), _connect(path) as connection:
            child = pexpect.socket_pexpect.SocketSpawn(connection, timeout=WITHIN_S)
            child.expect("login: ")
            child.sendline("root")
            child.expect("# ")
            yield child


def _run_on_bare(child: pexpect.socket_pexpect.SocketSpawn[Any], command: str) -> None:
    for line in (command, "echo code $?"):
        child.sendline(line)
        time.sleep(SLEEP_S)
        child.expect("# ")
    if re.search(rb"code (\d+)\r\n", bytes(child.before or b"")) is None:
        raise RuntimeError(f"there is no exit code in {child.before!r}")
