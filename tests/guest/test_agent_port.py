"""The agent over the real virtio-serial port, in the built-in guest: coming, going, the share, the screen, the end."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.agentprocess import DATA, encode_frame
from tests.guest.agentvm import BULK_PORT, DEADLINE_S, PORT, AgentVM

pytestmark = pytest.mark.boot


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.01)


@pytest.mark.slow
def test_hosts_that_come_and_go(workdir: Path) -> None:
    """A new host is answered whatever the host before it left: nothing, half a request, an answer nobody read."""
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        for turn in range(60):
            if turn % 3 == 0:
                vm.send(b'{"jsonrpc":"2.0","id":1,"method":"exec_command","params":{"argv":["touch","/')
            if turn % 3 == 1:
                vm.send(
                    b'{"jsonrpc":"2.0","id":1,"method":"exec_command","params":{"argv":["cat","/proc/kallsyms"]}}\n'
                )
            vm.disconnect()
            vm.wait_for(vm.connect())
        nonce = secrets.token_hex(8)
        assert vm.run(f"echo {nonce}") == nonce + "\n"
        vm.qmp("stop")
        vm.qmp("cont")
        assert vm.call("ping") == {}


def test_a_port_that_comes_late_and_goes_again(workdir: Path) -> None:
    with AgentVM(workdir, port=False) as vm:
        vm.qmp("cont")
        wait_until(lambda: "agent ready" in vm.read_console(), "agent ready on the console")
        hello = vm.connect()
        vm.qmp("device_add", id="port1", **PORT)
        pid = vm.wait_for(hello)["result"]["pid"]
        assert [note["params"]["data"]["message"] for note in vm.notes][:1] == ["agent ready"]
        vm.qmp("device_del", id="port1")
        wait_until(lambda: "the port was lost" in vm.read_console(), "the loss of the port")
        vm.disconnect()
        hello = vm.connect("agent-again")
        vm.qmp("device_add", id="port2", **{**PORT, "chardev": "agent-again"})
        assert vm.wait_for(hello)["result"]["pid"] == pid


def test_nobody_connected_costs_no_processor_time(workdir: Path) -> None:
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        pid = vm.wait_for(hello)["result"]["pid"]
        times = f"cut -d' ' -f14,15 /proc/{pid}/stat"
        before = sum(map(int, vm.run(times).split()))
        vm.disconnect()
        time.sleep(3)  # what is measured is what happens while nothing happens
        vm.wait_for(vm.connect())
        assert sum(map(int, vm.run(times).split())) - before < 100  # of 300 hundredths of a second


def test_the_shared_directory(workdir: Path) -> None:
    share = workdir / "share"
    (share / "inbox").mkdir(parents=True)
    device = f"local,id=share,path={share},security_model=mapped-xattr"
    extra = ["-fsdev", device, "-device", "virtio-9p-pci,fsdev=share,mount_tag=host"]

    def put(name: str, text: str) -> None:
        (share / "inbox" / ".part").write_text(text)
        (share / "inbox" / ".part").rename(share / "inbox" / name)

    def get(name: str) -> Any:
        wait_until((share / "outbox" / name).exists, f"outbox/{name}")
        return json.loads((share / "outbox" / name).read_text())

    with AgentVM(workdir, extra=extra) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        # The guest mounts it by itself, behind the agent; the agent then leaves its first message there.
        assert get("agent-ready.json")["data"]["message"] == "agent ready"
        envelope = {
            "timestamp": "2026-01-01T00:00:00Z",
            "direction": "host-to-vm",
            "type": "command",
            "id": "from-share",
        }
        envelope["data"] = {"message": "diagnostics", "details": {}}  # type: ignore[assignment]
        put("one.json", json.dumps(envelope, indent=1))
        answer = get("one.json")
        assert answer["in_reply_to"] == "from-share" and "share" in answer["data"]["details"]["carriers"]
        put("two.json", "{nonsense")
        vm.call("share_changed")
        assert get("two.json")["data"]["details"]["code"] == "bad-message"
        (share / "inbox" / "link.json").symlink_to("/etc/passwd")
        vm.call("share_changed")
        assert vm.call("ping") == {}
        assert not (share / "outbox" / "link.json").exists()
        assert not list((share / "outbox").glob(".*")), "an unfinished file was left in the outbox"


def test_what_is_shown_is_seen(workdir: Path) -> None:
    """The picture arrives on the screen that QEMU itself shows."""

    def look() -> tuple[int, int, bytes]:
        vm.qmp("screendump", filename=str(workdir / "screen.ppm"))
        kind, size, _, pixels = (workdir / "screen.ppm").read_bytes().split(b"\n", 3)
        assert kind == b"P6"
        width, height = map(int, size.split())
        return width, height, pixels

    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        vm.run("modprobe bochs")
        wait_until(lambda: vm.call("ping") == {} and any("display up" in str(note) for note in vm.notes), "display up")
        assert vm.command("graphics", "set mode", width=640, height=480)["data"]["message"] == "set mode done"
        rows = [bytes(value for x in range(64) for value in (x * 4, y * 8, secrets.randbelow(256))) for y in range(32)]
        ppm = b"P6 64 32 255 " + b"".join(rows)
        shown = vm.command("graphics", "show picture", format="ppm", data=base64.b64encode(ppm).decode())
        assert shown["data"]["message"] == "show picture done", shown
        width, height, pixels = look()
        assert (width, height) == (640, 480)
        for y, row in enumerate(rows):
            at = ((224 + y) * 640 + 288) * 3
            assert pixels[at : at + len(row)] == row
        assert vm.command("graphics", "show text", text="W" * 10)["data"]["message"] == "show text done"
        pixels = look()[2]
        lit = [at // 3 for at in range(0, len(pixels), 3) if pixels[at : at + 3] == b"\xff\xff\xff"]
        assert lit and max(at // 640 for at in lit) < 16 and max(at % 640 for at in lit) < 80
        refused = vm.command("graphics", "set mode", width=641, height=480)
        assert refused["type"] == "error" and "640x480" in refused["data"]["message"]


def test_shutdown_ends_the_machine(workdir: Path) -> None:
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        assert vm.call("shutdown") == {}
        assert vm.process.wait(DEADLINE_S) == 0


def test_streams_over_the_second_port(workdir: Path) -> None:
    """Both ways at once; a host that goes in the middle of a frame, on either port; a port that goes and comes back."""
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        assert vm.hello()["transport"] == "virtio-serial"
        for turn in range(6):
            data = secrets.token_bytes(1_000_000)
            given, out = vm.open_stream(), vm.open_stream()
            vm.call("exec_start", argv=["cat"], stdin=given.number, stdout=out.number)
            vm.send_data(given, data[:262144], end=False)
            if turn % 2:
                vm.send_data(given, data[262144:])
                assert vm.read_stream(out) == data
            else:  # the rest is never sent, and a frame is left half sent
                vm.send_bulk(encode_frame(DATA, given.number, data[:1000])[:500])
            if turn % 3 == 2:
                vm.disconnect()
                vm.wait_for(vm.connect())
            vm.hello()
        assert vm.call("job_list") == {"jobs": []}
        vm.send_bulk(b"garbage that is no frame")
        assert "magic" in vm.wait_for_notification("bulk_broken")["reason"]
        vm.qmp("device_del", id="bulk0")
        wait_until(
            lambda: vm.run("cat /sys/class/virtio-ports/*/name 2> /dev/null; :").count("bulk") == 0,
            "the loss of the port",
        )
        assert "streams" not in vm.hello()["capabilities"]
        assert vm.error("exec_start", argv=["true"], stdout=1)["code"] == -32009
        vm.qmp("device_add", id="bulk1", **{**BULK_PORT, "chardev": "bulk-again"})
        wait_until(lambda: "streams" in vm.call("get_agent_info")["capabilities"], "the port")
        vm.hello("bulk-again")
        out = vm.open_stream()
        vm.call("exec_start", argv=["cat", "/proc/uptime"], stdout=out.number)
        assert vm.read_stream(out).count(b".") == 2


def test_a_host_that_has_gone_ends_its_session(workdir: Path) -> None:
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        vm.hello()
        vm.call("exec_start", argv=["sh", "-c", "trap 'touch /tmp/hung-up; exit' HUP; while :; do sleep 0.1; done"])
        vm.disconnect()
        time.sleep(2)  # nothing tells a host that is away what the guest does
        vm.wait_for(vm.connect())
        assert vm.call("get_agent_info")["session"] is None
        assert vm.run("ls /tmp/hung-up") == "/tmp/hung-up\n"


@pytest.mark.slow
def test_vsock_inside_the_guest(workdir: Path) -> None:
    """Over its loopback, because QEMU needs /dev/vhost-vsock for more: who is let in, and who takes whose place."""
    script = (Path(__file__).parent / "vsock_inside.py").read_text()
    with AgentVM(workdir) as vm:
        hello = vm.connect()
        vm.qmp("cont")
        vm.wait_for(hello)
        if vm.call("exec_command", argv=["modprobe", "vsock_loopback"])["exit_code"]:
            pytest.skip("the guest's kernel modules lack vsock_loopback: add it to iso/modules.toml")
        result = vm.call("exec_command", argv=["python3", "-I", "-S", "-c", script], timeout_s=DEADLINE_S)
        assert result["stdout"].splitlines()[-1:] == ["well"], result
