"""A real boot is recorded: it is replayed byte for byte, no secret is in it, whichever supervisor is killed."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.qemu.fleets import COMMAND, WITHIN_S, Desk, end_at_once, open_desk

CONFIGURATION = """
[vm.web]
image = "builtin"
memory = "256M"
cpus = 1
accel = "tcg"
"""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write(CONFIGURATION)
        done = desk.run("start", "--wait", "agent", "web")
        assert done.exit_code == 0, done.stderr
        yield desk
        desk.run("stop", "web")
        desk.wait_until_gone()


def replay(desk: Desk, *words: str) -> bytes:
    argv = [*COMMAND, "replay", "web", "--speed", "0", *words]
    return subprocess.run(argv, cwd=desk.directory, stdout=subprocess.PIPE, timeout=WITHIN_S, check=True).stdout


def read_times(desk: Desk) -> list[Any]:
    return [json.loads(line) for line in desk.files("web").serial_times.read_text().splitlines()[1:]]


def wait_for(desk: Desk, kind: str, text: str) -> None:
    """Wait until an entry is recorded: what is typed is decided on after two seconds at most."""
    deadline = time.monotonic() + WITHIN_S
    while not any(entry[1] == kind and text in str(entry[2]) for entry in read_times(desk)):
        assert time.monotonic() < deadline, read_times(desk)[-10:]
        time.sleep(0.1)


def test_a_boot_is_recorded(desk: Desk) -> None:
    log = desk.files("web").serial_log
    shown, secret = secrets.token_hex(6), secrets.token_hex(6)
    person = pexpect.spawn(COMMAND[0], [*COMMAND[1:], "console", "web"], cwd=str(desk.directory), timeout=WITHIN_S)
    try:
        person.expect("login: ")
        person.send("root\r")
        person.expect("[#$] ")
        person.send(f"echo {shown}\r")
        person.expect(f"\n{shown}")
        person.expect("[#$] ")
        person.send("stty -echo; echo re''ady; read -r line; stty echo\r")
        person.expect("ready")
        person.send(f"{secret}\r")
        wait_for(desk, "i", "*" * len(secret))
        end_at_once(desk.status("web")["supervisor_pid"])
        person.send("\x1d")
        person.expect("unhinged> ")
        person.send("detach\r")
        person.expect(pexpect.EOF)
    finally:
        person.close(force=True)
    assert desk.ask("exec", "exec", "web", "--", "sh", "-c", f"echo {shown} > /dev/ttyS0")["exit_code"] == 0
    done = desk.run("stop", "web")
    assert done.exit_code == 0, done.stderr
    desk.wait_until_gone()

    entries = read_times(desk)
    assert [at for at, _, _ in entries] == sorted(at for at, _, _ in entries)
    labels = [value for _, kind, value in entries if kind == "m"]
    order = [labels.index(label) for label in ("firmware", "kernel", "message: booting", "agent")]
    assert order == sorted(order)
    typed = "".join(value for _, kind, value in entries if kind == "i")
    assert f"echo {shown}\r" in typed
    assert secret not in desk.files("web").serial_times.read_text()
    offsets = [value for _, kind, value in entries if kind == "o"]
    assert offsets == sorted(offsets) and offsets[-1] == log.stat().st_size

    whole = log.read_bytes()
    assert replay(desk) == whole
    assert b"Power down" in whole, "what comes while the guest goes is recorded as well"
    # It is marked where the host has heard the kernel's name: that may be in the middle of its line.
    since = replay(desk, "--from", "kernel")
    name = whole.index(b"Linux version ")
    assert whole.endswith(since) and whole.rindex(b"[", 0, name) <= len(whole) - len(since) <= name + 14

    done = desk.run("cast", "web")
    header, *events = map(json.loads, done.stdout.splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 80, 24)
    assert all(len(event) == 3 and event[1] in "oimr" and isinstance(event[2], str) for event in events)
    assert "".join(text for _, kind, text in events if kind == "o") == whole.decode("utf-8", "replace")
    assert len({at for at, kind, _ in events if kind == "o"}) > 10, "it came over time"
    assert desk.ask("cast", "cast", "web", "web.cast")["size"] == len(done.stdout)

    assert desk.run("start", "--paused", "web").exit_code == 0
    assert [entry for entry in read_times(desk) if entry[1] == "o"] == [], "another run, another recording"
