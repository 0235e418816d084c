"""`unhinged forward` on the real QEMU: what it opens and closes, what it refuses, and what a new supervisor knows."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.errors import EXIT_USAGE
from tests.qemu.fleets import Desk, end_at_once, find_free_port, open_desk


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        yield desk


def opens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def forward(desk: Desk, *words: str) -> Any:
    return desk.ask("forward", "forward", "one", *words)


def test_a_forward_is_added_and_removed(desk: Desk) -> None:
    declared, port = find_free_port(), find_free_port()
    # The card with the forwards is the second: QEMU has to be told its id.
    desk.declare("one", more=f'net = ["lan:quiet", "user"]\nforward = "{declared}:80"\n')
    desk.start("one")
    assert not opens(port)
    added = forward(desk, "add", f"{port}:81")
    assert added["forward"] == f"127.0.0.1:{port}:81/tcp"
    assert added["forwards"] == [f"127.0.0.1:{declared}:80/tcp", added["forward"]]
    assert opens(port)
    picked = forward(desk, "add", "auto:82")["forward"]
    assert opens(int(picked.split(":")[1]))
    assert desk.status("one")["forwards"] == forward(desk, "list")["forwards"] == [*added["forwards"], picked]
    assert desk.run("forward", "one", "list").stdout.split() == [*added["forwards"], picked]
    assert forward(desk, "remove", "auto:82")["forward"] == picked
    assert forward(desk, "remove", f"{port}:81")["forwards"] == added["forwards"][:1]
    assert not opens(port)
    assert forward(desk, "remove", f"{declared}:80")["forwards"] == []
    assert not opens(declared) and desk.status("one")["forwards"] == []
    assert forward(desk, "add", f"{declared}:80")["forwards"] == added["forwards"][:1]


def test_udp_and_an_address(desk: Desk) -> None:
    port = find_free_port()
    desk.declare("one")
    desk.start("one")
    assert forward(desk, "add", f"0.0.0.0:{port}:53/udp")["forward"] == f"0.0.0.0:{port}:53/udp"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))
    forward(desk, "remove", f"0.0.0.0:{port}:53/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", port))


def test_a_new_supervisor_knows_it_and_the_next_run_does_not(desk: Desk) -> None:
    declared, port = find_free_port(), find_free_port()
    desk.declare("one", more=f'forward = "{declared}:80"\n')
    desk.start("one")
    forward(desk, "add", f"{port}:81")
    forward(desk, "remove", f"{declared}:80")
    end_at_once(desk.status("one")["supervisor_pid"])
    assert desk.status("one")["forwards"] == [f"127.0.0.1:{port}:81/tcp"]
    assert forward(desk, "list")["forwards"] == [f"127.0.0.1:{port}:81/tcp"]
    assert forward(desk, "remove", f"{port}:81")["forwards"] == []
    forward(desk, "add", f"{port}:81")
    desk.run("stop", "one")
    assert desk.status("one")["forwards"] == [f"127.0.0.1:{declared}:80/tcp"]
    desk.start("one")
    assert desk.status("one")["forwards"] == [f"127.0.0.1:{declared}:80/tcp"]
    assert not opens(port) and opens(declared)


def test_what_cannot_be_is_one_error(desk: Desk) -> None:
    port = find_free_port()
    desk.declare("one", "none", more='net = "none"\n')
    assert "does not run" in forward(desk, "list")["error"]["message"]
    desk.start("one", "none")
    with socket.create_server(("127.0.0.1", port)):
        error = forward(desk, "add", f"{port}:80")["error"]
        assert error["kind"] == "HostError" and f"port {port}" in error["message"] and "in use" in error["message"]
    forward(desk, "add", f"{port}:80")
    assert "already" in forward(desk, "add", f"{port}:81")["error"]["message"]
    error = forward(desk, "remove", f"{port}:81")["error"]
    assert "no such forward" in error["message"] and f"{port}:80" in error["hint"]
    error = forward(desk, "add", "192.0.2.77:8080:80")["error"]
    assert error["kind"] == "HostError" and "192.0.2.77" in error["message"]
    error = desk.ask("forward", "forward", "none", "add", "auto:80")["error"]
    assert "no user-mode network" in error["message"] and error["hint"]
    for words in (["add", "80"], ["add"], ["list", "80:80"], ["add", "0:80"], ["change", "80:80"]):
        assert forward(desk, *words)["error"]["exit_code"] == EXIT_USAGE
    # What QEMU itself refuses: it was removed behind our back.
    desk.run("monitor", "one", "hostfwd_remove", "net0", f"tcp:127.0.0.1:{port}")
    error = forward(desk, "remove", f"{port}:80")["error"]
    assert error["kind"] == "MonitorError" and "not found" in error["message"]


def test_a_raw_command_line(desk: Desk) -> None:
    port = find_free_port()
    raw = "-nodefaults -machine pc,accel=tcg -m 64 -display none"
    desk.write(
        f"""[vm.one]
cmd = ["{raw} -netdev user,id=mine,hostfwd=tcp::{port}-:22 -device e1000,netdev=mine"]
[vm.two]
cmd = ["{raw} -netdev user,id=a -device e1000,netdev=a -netdev user,id=b -device e1000,netdev=b"]
"""
    )
    desk.start("one", "two")
    assert forward(desk, "list")["forwards"] == [f"0.0.0.0:{port}:22/tcp"]
    assert opens(port)
    assert forward(desk, "remove", f"0.0.0.0:{port}:22")["forwards"] == []
    assert not opens(port)
    error = desk.ask("forward", "forward", "two", "add", "auto:80")["error"]
    assert "a, b" in error["message"] and "hostfwd_add a" in error["hint"]
