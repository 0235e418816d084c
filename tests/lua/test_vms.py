"""Many Lua interpreters: by name, asynchronous, networked, in clusters."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.errors import ConfigError, ControlError, WaitTimeout
from control.lua import LuaCancelled, LuaNotFoundError, LuaProcessError, LuaResult, LuaVMs, NetworkingError
from control.lua import vms as module
from control.paths import ROOT

WITHIN_S = 30.0
FOREVER = "while true do end"


@pytest.fixture
def vms() -> Iterator[LuaVMs]:
    with LuaVMs() as vms:
        yield vms


def wait_for(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def value_of(result: LuaResult | ControlError) -> object:
    assert isinstance(result, LuaResult), result
    return result.value


def test_they_have_names(vms: LuaVMs) -> None:
    vms.create_vm("a")
    vms.create_vm("b")
    assert vms.list_vms() == ("a", "b")
    assert vms.execute_vm_sync("a", "x = 1 return x").value == 1
    assert vms.execute_vm_sync("b", "x").value is None
    assert vms.get_vm("a").name == "a"
    for name in ("a", "", "../x", "x" * 64):
        with pytest.raises(ConfigError):
            vms.create_vm(name)
    assert vms.remove_vm("a")
    assert not vms.remove_vm("a")
    for call in (vms.get_vm, vms.get_vm_status, vms.cancel_vm, vms.wait_for_vm, vms.attach_to_vm):
        with pytest.raises(ConfigError, match="there is no interpreter a"):
            call("a")
    stats = vms.get_stats()
    assert (stats["created"], stats["alive"], stats["executions"]) == (2, 1, 1)


def test_work_goes_on_behind(vms: LuaVMs) -> None:
    for name in ("a", "b"):
        vms.create_vm(name)
        assert vms.get_vm_status(name) == "idle"
    with pytest.raises(ConfigError, match="given nothing"):
        vms.wait_for_vm("a")
    first = vms.execute_vm_async("a", "n = (n or 0) + 1 return n")
    second = vms.execute_vm_async("a", "n = n * 10 return n")
    assert (first.result(WITHIN_S).value, second.result(WITHIN_S).value) == (1, 10)
    assert vms.get_vm_status("a") == "done"
    vms.execute_vm_async("a", FOREVER, timeout=1000)
    waiting = vms.execute_vm_async("a", "never = true")
    assert vms.get_vm_status("a") == "running"
    assert vms.execute_vm_sync("b", "return 1").value == 1
    with pytest.raises(WaitTimeout):
        vms.wait_for_vm("a", timeout=0.05)
    assert vms.cancel_vm("a")
    assert waiting.cancelled()
    with pytest.raises(LuaCancelled):
        vms.wait_for_vm("a")
    wait_for(lambda: vms.get_vm_status("a") == "cancelled")
    assert not vms.cancel_vm("a")
    assert vms.execute_vm_sync("a", "return n, never").values == (10, None)
    vms.execute_vm_async("a", "error('no')")
    with pytest.raises(LuaProcessError, match="no"):
        vms.wait_for_vm("a")
    assert vms.get_vm_status("a") == "failed"
    with vms.attach_to_vm("a") as session:
        assert vms.get_vm_status("a") == "attached"
        session.sendline("n")
        session.expect_exact("10\r\n")
    with pytest.raises(LuaProcessError):
        vms.execute_vm_sync("b", "os.exit(1)")
    assert vms.get_vm_status("b") == "ended"


def test_the_crash_of_one_is_nothing_to_the_others(vms: LuaVMs) -> None:
    for name in ("crash", "loop", "fine"):
        vms.create_vm(name)
    vms.execute_vm_async("loop", FOREVER, timeout=1000)
    with pytest.raises(LuaProcessError, match="SIGSEGV"):
        vms.execute_vm_sync("crash", "io.popen('kill -SEGV $PPID'):read('a') return 1")
    assert vms.execute_vm_sync("fine", "return 'fine'").value == "fine"
    vms.remove_vm("loop")
    assert vms.list_vms() == ("crash", "fine")


def test_nothing_is_left(vms: LuaVMs) -> None:
    pids = [vms.create_vm(f"vm-{number}").pid for number in range(5)]
    vms.execute_vm_async("vm-0", FOREVER, timeout=1000)
    vms.attach_to_vm("vm-1")
    directory = vms._directory
    vms.shutdown_all()
    vms.shutdown_all()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not directory.exists()


def test_a_hundred_are_alive_at_once(vms: LuaVMs) -> None:
    cluster = vms.create_vm_cluster("many", 100)
    cluster.scatter("own = ... return own", [(number,) for number in range(100)])
    assert [value_of(answer) for answer in cluster.gather().values()] == list(range(100))
    assert [value_of(answer) for answer in vms.broadcast_to_cluster("many", "own * 2").values()] == [
        2 * number for number in range(100)
    ]
    assert vms.get_stats()["alive"] == 100


PRIMES = """
local from, to = ...
local count = 0
for number = from, to do
  local is_prime = number > 1
  for divisor = 2, math.floor(number ^ 0.5) do
    if number % divisor == 0 then is_prime = false break end
  end
  if is_prime then count = count + 1 end
end
return count
"""


def test_a_cluster_computes_with_one_killed_in_the_middle(vms: LuaVMs) -> None:
    """The primes below 200000, a tenth on each; the share of the one that dies goes to another."""
    cluster = vms.create_vm_cluster("team", 10)
    shares = [(number * 20000, number * 20000 + 19999) for number in range(10)]
    vms.execute_vm_async("team-4", FOREVER, timeout=1000)  # so that it is in the middle of something
    cluster.scatter(PRIMES, shares)
    os.kill(vms.get_vm("team-4").pid, signal.SIGKILL)
    answers = cluster.gather()
    dead = {name: answer for name, answer in answers.items() if not isinstance(answer, LuaResult)}
    assert list(dead) == ["team-4"]
    assert "ended by SIGKILL" in str(dead["team-4"])
    again = vms.execute_vm_sync("team-5", PRIMES, *shares[3])
    total = sum(answer.value for answer in answers.values() if isinstance(answer, LuaResult)) + again.value
    assert total == 17984
    assert vms.cleanup_cluster("team")
    assert not vms.cleanup_cluster("team")
    assert vms.list_vms() == ()


def test_clusters_that_cannot_be(vms: LuaVMs) -> None:
    cluster = vms.create_vm_cluster("team", 2)
    for call in (
        lambda: vms.create_vm_cluster("team", 2),
        lambda: vms.create_vm_cluster("none", 0),
        lambda: vms.broadcast_to_cluster("other", "1"),
        lambda: cluster.scatter("1", [()]),
    ):
        with pytest.raises(ConfigError):
            call()
    vms.create_vm("mixed-2")
    with pytest.raises(ConfigError):
        vms.create_vm_cluster("mixed", 3)
    assert vms.list_vms() == ("team-1", "team-2", "mixed-2")
    cluster.broadcast("while true do end", timeout=1000)
    assert all(isinstance(answer, WaitTimeout) for answer in cluster.gather(timeout=0.1).values())


# -- networked ---------------------------------------------------------------------------------------------------------


def test_a_server_and_its_clients(vms: LuaVMs) -> None:
    port = vms.start_server_vm(
        "server", handler="local message, peer = ... seen = (seen or 0) + 1 return {message, seen}"
    )
    for number in range(1, 4):
        vms.start_client_vm(f"client-{number}", port)
        assert vms.execute_vm_sync(f"client-{number}", "return net.call(...)", {"n": number}).value == [
            {"n": number},
            number,
        ]
    assert vms.execute_vm_sync("server", "seen").value == 3
    for _ in range(200):
        vms.execute_vm_sync("client-1", "net.send('told')")
    wait_for(lambda: vms.execute_vm_sync("server", "seen").value == 203)
    big = "x" * 1_000_000
    assert vms.execute_vm_sync("client-1", "return net.call(...)", big).value[0] == big
    assert vms.get_stats()["networked"] == 4


def test_what_goes_wrong_between_them(vms: LuaVMs, tmp_path: Path) -> None:
    port = vms.start_server_vm("server", handler="error('not today')")
    vms.start_client_vm("client", port)
    with pytest.raises(NetworkingError, match=r"the other side failed: .*not today"):
        vms.execute_vm_sync("client", "net.call(1)")
    with pytest.raises(NetworkingError, match="cannot be had"):
        vms.start_server_vm("second", port=port)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    with pytest.raises(NetworkingError, match="cannot be reached: connection refused"):
        vms.start_client_vm("lost", closed)
    with pytest.raises(LuaProcessError, match="syntax error"):
        vms.start_server_vm("bad", handler="x x")
    begun = tmp_path / "begun"
    vms.execute_vm_async("server", f"io.open({str(begun)!r}, 'w'):close() {FOREVER}", timeout=1000)
    deadline = time.monotonic() + WITHIN_S
    while not begun.exists():  # before that it would answer once more
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(NetworkingError, match="no answer came in time"):
        vms.execute_vm_sync("client", "net.call(1, nil, 0.1)")
    vms.remove_vm("server")
    with pytest.raises(NetworkingError, match=r"is gone|no peer"):
        vms.execute_vm_sync("client", "net.call(1)")


def test_strangers_are_not_let_in(vms: LuaVMs) -> None:
    port = vms.start_server_vm("server")
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as stranger:
        stranger.sendall(b"\x20\0\0\0" + b"0" * 32)
        assert stranger.recv(10) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=WITHIN_S) as stranger:
        stranger.sendall(b"\xff\xff\xff\x7f")
        assert stranger.recv(10) == b""
    with LuaVMs() as others:
        others.start_client_vm("client", port)
        with pytest.raises(NetworkingError):
            others.execute_vm_sync("client", "net.call(1)")
    vms.start_client_vm("client", port)
    assert vms.execute_vm_sync("client", "return net.call(1)").value == 1


def test_all_know_each_other(vms: LuaVMs) -> None:
    vms.create_vm_cluster("ring", 5, networked=True)
    ports = vms.setup_p2p_cluster("ring", handler="local message = ... heard = (heard or 0) + message return heard")
    assert len(set(ports.values())) == 5
    wait_for(
        lambda: all(
            isinstance(answer, LuaResult) and len(answer.value) == 4
            for answer in vms.broadcast_to_cluster("ring", "net.peers()").values()
        )
    )
    assert all(value_of(answer) == 4 for answer in vms.broadcast_to_cluster("ring", "net.broadcast(1)").values())
    wait_for(lambda: all(value_of(answer) == 4 for answer in vms.broadcast_to_cluster("ring", "heard").values()))


def test_two_ask_each_other_at_once(vms: LuaVMs) -> None:
    ask = "local sum = 0 for i = 1, 200 do sum = sum + net.call(i) end return sum"
    port = vms.start_p2p_vm("left")
    vms.start_p2p_vm("right", peers=[("127.0.0.1", port)])
    both = [vms.execute_vm_async(name, ask) for name in ("left", "right")]
    assert [future.result(WITHIN_S).value for future in both] == [20100, 20100]


# -- a host that lacks something ---------------------------------------------------------------------------------------


def test_a_host_without_lua(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LuaNotFoundError, match="has no no-such-lua"):
        LuaVMs("no-such-lua")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LuaNotFoundError) as caught:
        LuaVMs()
    assert caught.value.hint == "make deps-install-lua"


def test_a_host_without_luasocket(monkeypatch: pytest.MonkeyPatch, vms: LuaVMs) -> None:
    monkeypatch.setenv("LUA_PATH", "/nonexistent/?.lua")
    with pytest.raises(NetworkingError) as caught:
        vms.create_vm("alone", networked=True)
    assert caught.value.hint == module.INSTALL
    assert vms.list_vms() == ()


def test_the_make_target_is_there() -> None:
    argv = ["make", "--dry-run", "deps-install-lua"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "control.launch.deps lua" in done.stdout
