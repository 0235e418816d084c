"""Keys and the pointer, as they arrive in a real guest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.one_vm import open_one_vm
from tests.qemu.fleets import WITHIN_S, Desk, wait_for

EVENT = 24
"""Bytes of an input event on a 64-bit host (linux/input.h)."""

EV_KEY, EV_ABS, BTN_LEFT, ABS_X, ABS_Y = 1, 3, 0x110, 0, 1


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_one_vm(Path(tmp_path_factory.mktemp("hands"))) as desk:
        yield desk


def shell(desk: Desk, script: str) -> str:
    done = desk.run("exec", "one", "-n", "--", "sh", "-c", script)
    assert done.exit_code == 0, done
    return done.stdout


def wait_until_said(desk: Desk, path: str, wanted: str) -> str:
    deadline = time.monotonic() + WITHIN_S
    while wanted not in (said := shell(desk, f"cat {path} 2>/dev/null; true")):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
    return said


def test_each_character_arrives_as_it_was_typed(desk: Desk) -> None:
    """All of ASCII that is on keys, at the guest's own keyboard, through its kernel's key map."""
    everything = "".join(map(chr, range(32, 127)))
    shell(desk, "setsid sh -c 'head -n 1 </dev/tty3 >/tmp/typed' >/dev/null 2>&1 & chvt 3; sleep 0.5")
    assert desk.ask("type", "type", "one", everything, "--enter")["characters"] == 96
    assert wait_until_said(desk, "/tmp/typed", "~").rstrip("\n") == everything


def test_keys_together_switch_the_terminal(desk: Desk) -> None:
    # Linux switches by keys only to a terminal that somebody has opened (drivers/tty/vt/vt.c, set_console).
    shell(desk, "setsid sleep 1000 </dev/tty4 >/dev/null 2>&1 & chvt 1")
    desk.ask("key", "key", "one", "ctrl-alt-f4")
    deadline = time.monotonic() + WITHIN_S
    while "tty4" not in (active := shell(desk, "cat /sys/class/tty/tty0/active")):
        assert time.monotonic() < deadline, active
    shell(desk, "chvt 1")


def test_the_pointer_goes_where_it_is_put_and_clicks(desk: Desk) -> None:
    [device] = wait_for(lambda: shell(desk, "grep -l Tablet /sys/class/input/event*/device/name | cut -d/ -f5").split())
    shell(desk, f"setsid sh -c 'exec cat /dev/input/{device} >/tmp/events' >/dev/null 2>&1 & sleep 0.5")
    found = desk.ask("mouse", "mouse", "one", "640", "400", "--click")
    assert found["click"] == "left"
    deadline = time.monotonic() + WITHIN_S
    wanted = {(EV_ABS, ABS_X), (EV_ABS, ABS_Y), (EV_KEY, BTN_LEFT)}
    seen: dict[tuple[int, int], int] = {}
    while not wanted <= set(seen):
        assert time.monotonic() < deadline, seen
        data = bytes(int(word, 8) for word in shell(desk, "od -An -v -t o1 /tmp/events").split())
        for at in range(0, len(data) - EVENT + 1, EVENT):
            kind, code = (int.from_bytes(data[at + 16 + 2 * index : at + 18 + 2 * index], "little") for index in (0, 1))
            seen.setdefault((kind, code), int.from_bytes(data[at + 20 : at + 24], "little"))
    assert seen[EV_KEY, BTN_LEFT] == 1
    assert abs(seen[EV_ABS, ABS_X] / 0x7FFF - 640 / 1280) < 0.01


@pytest.mark.slow
def test_a_picture_is_read_where_there_is_tesseract(desk: Desk) -> None:
    """The guest's console is a picture; without tesseract the error names the package."""
    done = desk.run("wait-text", "one", "login", "--timeout", "60")
    if done.exit_code == 0:
        assert "log in as root" in done.stdout
    else:
        assert "apt-get install tesseract-ocr" in done.stderr
