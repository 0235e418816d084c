"""Networks of VMs, by what real guests send over them: a LAN of one file, forwards, none, devices of the host."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_ERROR
from tests.qemu.fleets import WITHIN_S, Desk, find_free_port, open_desk

COMMON = 'image = "builtin"\nmemory = "256M"\ncpus = 1\naccel = "tcg"\n'
LISTEN = "nc -l -p 4000 > /run/heard < /dev/null &"


def start(desk: Desk) -> None:
    done = desk.run("start", "--all", "--wait", "agent")
    assert done.exit_code == 0, done.stderr


def run(desk: Desk, name: str, script: str, exit_code: int = 0) -> str:
    done = desk.run("exec", name, "--", "sh", "-c", script)
    assert done.exit_code == exit_code, (script, done)
    return done.stdout


def set_address(desk: Desk, name: str, address: str, card: str = "eth0") -> None:
    """Give a card its address, once the guest has given up asking for one: nobody answers DHCP there."""
    run(
        desk,
        name,
        "until [ -e /run/booted ]; do usleep 100000; done; /etc/init.d/network stop; "
        f"ip link set {card} up && ip addr add {address}/24 dev {card}",
    )


def say(desk: Desk, name: str, address: str, text: str) -> None:
    run(desk, name, f"for n in 1 2 3 4 5; do echo {text} | nc -w 5 {address} 4000 && exit 0; sleep 1; done; exit 1")


def wait_to_hear(desk: Desk, name: str, text: str) -> None:
    run(desk, name, f"for n in $(seq 100); do grep -q {text} /run/heard && exit 0; usleep 100000; done; exit 1")


def read_banner(port: int) -> bytes:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            if banner := connection.recv(100):
                return banner
        time.sleep(0.2)
    return b""


def test_a_lan_a_forward_and_no_network(workdir: Path) -> None:
    """Four guests at once, one of them of another file with a LAN of the same name."""
    nonce, port = secrets.token_hex(8), find_free_port()
    (workdir / "a").mkdir()
    (workdir / "b").mkdir()
    with open_desk(workdir / "a") as desk, open_desk(workdir / "b") as other:
        desk.write(
            f'[vm.left]\n{COMMON}net = ["lan:office", "user"]\n[vm.right]\n{COMMON}net = "lan:office"\n'
            f'[vm.alone]\n{COMMON}net = "none"\n'
        )
        other.write(f'[vm.stranger]\n{COMMON}net = "lan:office"\n')
        starting = desk.begin("start", "--all", "--wait", "agent")
        start(other)
        _, said = starting.communicate(timeout=WITHIN_S)
        assert starting.returncode == 0, said

        set_address(desk, "left", "10.77.0.1")
        set_address(desk, "right", "10.77.0.2")
        set_address(other, "stranger", "10.77.0.3")
        run(desk, "right", LISTEN)
        say(desk, "left", "10.77.0.2", nonce)
        wait_to_hear(desk, "right", nonce)
        assert "100% packet loss" in run(other, "stranger", "ping -c 2 -W 2 10.77.0.2", exit_code=1)
        assert "100% packet loss" in run(desk, "left", "ping -c 2 -W 2 10.77.0.3", exit_code=1)
        assert run(desk, "alone", "ls /sys/class/net").split() == ["lo"]

        assert desk.ask("forward", "forward", "left", "add", f"{port}:22")["forwards"]
        # Its first card is that of the LAN: the one with the way out is the second.
        set_address(desk, "left", "10.0.2.15", "eth1")
        assert read_banner(port).startswith(b"SSH-2.0-")
        desk.ask("forward", "forward", "left", "remove", f"{port}:22")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        for each in (desk, other):
            assert each.run("stop", "--all").exit_code == 0
            each.wait_until_gone()


# -- devices of the host -----------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, ...]]:
    """Words before a command that run it where a tap and a bridge are; this host has none of them."""
    if os.geteuid() != 0:
        pytest.skip("only root can make network devices")
    made = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no network of its own can be had: {made.stderr.decode().strip()}")
    holder = subprocess.Popen(["unshare", "--mount", "--net", "sleep", "600"])
    prefix = ("nsenter", f"--target={holder.pid}", "--mount", "--net")
    try:
        deadline = time.monotonic() + WITHIN_S
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for words in (
            "ip link set lo up",
            "ip tuntap add dev uhtap0 mode tap",
            "ip addr add 10.78.0.1/24 dev uhtap0",
            "ip link set uhtap0 up",
            "ip link add uhbr0 type bridge",
            "ip addr add 10.79.0.1/24 dev uhbr0",
            "ip link set uhbr0 up",
        ):
            subprocess.run([*prefix, *words.split()], check=True, timeout=30)
        yield prefix
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.slow
def test_a_tap_and_a_bridge_of_the_host(elsewhere: tuple[str, ...], workdir: Path) -> None:
    allow = "mount -t tmpfs tmpfs /run && mkdir /run/up /run/work && "
    allow += "mount -t overlay -o lowerdir=/etc,upperdir=/run/up,workdir=/run/work overlay /etc && "
    allow += "mkdir -p /etc/qemu && echo allow uhbr0 > /etc/qemu/bridge.conf"
    subprocess.run([*elsewhere, "sh", "-c", allow], check=True, timeout=30)
    assert not Path("/etc/qemu/bridge.conf").exists(), "only there"
    nonce = secrets.token_hex(8)
    with open_desk(workdir, (*elsewhere, f"--wd={workdir}")) as desk:
        desk.write(
            f'[vm.one]\n{COMMON}net = "tap:uhtap0"\n[vm.two]\n{COMMON}net = "bridge:uhbr0"\n'
            f'[vm.three]\n{COMMON}net = "tap:uhtap7"\n[vm.four]\n{COMMON}net = "bridge:uhbr7"\n'
        )
        done = desk.run("start", "--wait", "agent", "one", "two")
        assert done.exit_code == 0, done.stderr
        for name, network in (("one", "10.78.0"), ("two", "10.79.0")):
            set_address(desk, name, f"{network}.2")
            run(desk, name, LISTEN)
            speak = f"echo {nonce} | timeout 10 python3 -c 'import socket, sys; "
            speak += f'socket.create_connection(("{network}.2", 4000), 8).sendall(sys.stdin.buffer.read())\''
            subprocess.run([*elsewhere, "sh", "-c", speak], check=True, timeout=30)
            wait_to_hear(desk, name, nonce)
        for name, device in (("three", "uhtap7"), ("four", "uhbr7")):
            done = desk.run("start", name)
            assert done.exit_code == EXIT_ERROR, done
            assert f"[vm.{name}] this host has no network interface {device}" in done.stderr
            assert "hint: make it: sudo ip " in done.stderr
        assert desk.run("stop", "one", "two").exit_code == 0
        desk.wait_until_gone()
