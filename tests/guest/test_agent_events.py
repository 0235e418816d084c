"""What the guest tells of itself: the parts that read what the kernel, systemd and login write down."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from guest.agent import kernellog, logins, systemd
from guest.agent.loop import Loop


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("3,1,2,-;Out of memory: Killed process 12 (tail) total-vm:1kB, anon-rss:2kB", (12, "tail", False)),
        ("3,1,2,-;Memory cgroup out of memory: Killed process 3 (a) (b)) total-vm:1kB", (3, "a) (b)", True)),
        ("3,1,2,-;Out of memory: Killed process x (tail) total-vm:1kB", None),
        # A program wrote this: its facility is not the kernel's.
        ("12,1,2,-;Out of memory: Killed process 12 (tail) total-vm:1kB", None),
        ("6,1,2,-;audit: Out of memory: Killed process 12 (tail) total-vm:1kB", None),
        ("", None),
        (";;;", None),
    ],
)
def test_the_kernels_log(record: str, expected: object) -> None:
    assert kernellog.parse(record) == expected


def build_login(kind: int, user: bytes, line: bytes = b"pts/0", host: bytes = b"") -> bytes:
    """Source: utmp(5)."""
    return struct.pack("hi32s4s32s256s", kind, 1, line, b"", user, host).ljust(384, b"\0")


def test_the_log_of_logins(tmp_path: Path) -> None:
    path = tmp_path / "wtmp"
    path.write_bytes(build_login(7, b"old"))
    log = logins.Wtmp(str(path))
    assert log.read_new() == []
    with path.open("ab") as file:
        file.write(build_login(7, b"root", host=b"10.0.0.1") + build_login(8, b"gone") + build_login(7, b"half")[:100])
    assert log.read_new() == [("root", "pts/0", "10.0.0.1")]
    assert log.read_new() == []
    with path.open("ab") as file:
        file.write(build_login(7, b"half")[100:])
    assert log.read_new() == [("half", "pts/0", "")]
    path.write_bytes(build_login(7, b"anew"))  # rotated
    assert log.read_new() == [("anew", "pts/0", "")]
    path.unlink()
    assert log.read_new() == []


def build_string(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode() + b"\0"


def pad(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)


def build_signal(path: str, member: str, body: bytes) -> bytes:
    """Source: D-Bus Specification, Message Format."""
    fields = b""
    for code, kind, value in ((1, "o", path), (2, "s", "an.interface"), (3, "s", member)):
        fields = pad(fields, 8) + bytes([code, 1]) + kind.encode() + b"\0" + build_string(value)
    fields = pad(fields, 8) + bytes([8, 1]) + b"g\0" + b"\x03uos\0"
    return pad(b"l\x04\0\1" + struct.pack("<III", len(body), 1, len(fields)) + fields, 8) + body


def build_change(unit: str, state: str) -> bytes:
    body = build_string("org.freedesktop.systemd1.Unit")
    entry = pad(build_string("ActiveState") + b"\x01s\0", 4)
    begin = pad(pad(body, 4) + bytes(4), 8)
    value = pad(begin + build_string("ActiveState") + b"\x01s\0", 4) + build_string(state)
    array = struct.pack("<I", len(value) - len(begin))
    assert entry
    return build_signal(
        f"/org/freedesktop/systemd1/unit/{unit}",
        "PropertiesChanged",
        pad(body, 4) + array + value[len(pad(body, 4)) + 4 :],
    )


def build_job(unit: str) -> bytes:
    body = pad(struct.pack("<I", 5) + build_string("/org/freedesktop/systemd1/job/5"), 4) + build_string(unit)
    return build_signal("/org/freedesktop/systemd1", "JobNew", body)


@pytest.fixture
def manager(workdir: Path) -> Callable[[list[bytes]], list[str]]:
    """Plays systemd: sends these pieces and gives what was told of them."""

    def play(pieces: list[bytes]) -> list[str]:
        path = workdir / "private"
        path.unlink(missing_ok=True)
        told: list[str] = []
        loop = Loop()
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            heard = systemd.Systemd(loop, told.append, lambda action: told.append(f"shutdown {action}"), str(path))
            with listener.accept()[0] as ours:
                ours.settimeout(10)
                greeting = ours.recv(4096)
                assert (
                    greeting.startswith(b"\0AUTH EXTERNAL ")
                    and b"BEGIN\r\nl\x01" in greeting
                    and b"Subscribe" in greeting
                )
                call = greeting.partition(b"BEGIN\r\n")[2]
                assert systemd.measure(call) == len(call) and systemd.parse(call)[0][3] == "Subscribe"
                for piece in pieces:
                    ours.sendall(piece)
                    loop.later(0.02, loop.stop)
                    loop._stopped = False
                    loop.run()
            loop.later(0.1, loop.stop)
            loop._stopped = False
            loop.run()
            assert heard._fd < 0, "it did not notice that its peer has gone"
        loop._epoll.close()
        path.unlink()
        return told

    return play


def test_systemd_tells_what_failed_and_that_it_goes_down(manager: Callable[[list[bytes]], list[str]]) -> None:
    messages = [
        build_change("a_2eservice", "failed"), build_change("a_2eservice", "failed"),
        build_change("b_2eservice", "active"),
        build_change("a_2eservice", "inactive"), build_change("a_2eservice", "failed"),
        build_signal("/org/freedesktop/systemd1", "UnitNew", b""), build_job("ssh.service"), build_job("reboot.target"),
    ]  # fmt: skip
    expected = ["a.service", "a.service", "shutdown reboot"]
    whole = b"OK 0123456789abcdef0123456789abcdef\r\n" + b"".join(messages)
    assert manager([whole]) == expected
    assert manager([whole[at : at + 33] for at in range(0, len(whole), 33)]) == expected


@pytest.mark.parametrize("nonsense", [b"REJECTED\r\n", b"x" * 600, b"OK x\r\n" + b"\xff" * 64])
def test_a_manager_that_speaks_something_else_is_left(
    manager: Callable[[list[bytes]], list[str]], nonsense: bytes
) -> None:
    assert manager([nonsense]) == []
