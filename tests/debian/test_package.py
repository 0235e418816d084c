"""The .deb on a real Debian: the agent under its unit, upgraded by itself and by a person, removed, purged."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest.agent import VERSION
from tests.debian.debianvm import DISK, DebianVM

REPOSITORY = Path(__file__).resolve().parents[2]
NEXT_VERSION = "99.1"
UNIT = "unhinged-agent.service"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with the package in this version and in a later one; the guest sees it as /mnt/host."""
    for version in (VERSION, NEXT_VERSION):
        argv = [sys.executable, str(REPOSITORY / "iso/agent/build.py"), "deb", "--output", str(tmp_path)]
        subprocess.run([*argv, "--version", version], check=True, capture_output=True, timeout=60)
    return tmp_path


@pytest.fixture
def debian(directory: Path, packages: Path) -> Iterator[DebianVM]:
    if not DISK.exists():
        pytest.skip("the Debian image is not built: make image-debian")
    share = [
        *("-fsdev", f"local,id=share,path={packages},security_model=none,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=host"),
    ]
    with DebianVM(directory, extra=share) as vm:
        vm.boot()
        yield vm


def show(vm: DebianVM, name: str) -> str:
    return vm.run(f"systemctl show --property={name} --value {UNIT}").strip()


def test_the_package_lives_through_all_of_its_life(debian: DebianVM) -> None:
    vm = debian
    info = vm.call("get_agent_info")
    assert info["version"] == VERSION
    # Up under its unit, by udev alone: nothing enables it.
    assert show(vm, "MainPID") == str(info["pid"])
    assert show(vm, "UnitFileState") == "static"
    assert vm.run("stat -Lc '%U %a' /dev/virtio-ports/org.unhinged.agent.0 /dev/virtio-ports/org.unhinged.bulk.0") == (
        "root 600\nroot 600\n"
    )
    assert "__pycache__" in vm.run("ls /usr/lib/unhinged-agent/agent")
    print(vm.run(f"systemd-analyze security --no-pager {UNIT} | tail -n 1"))

    # The agent may be there before the share is.
    vm.run("udevadm settle && systemctl start mnt-host.mount")
    # The agent runs the tool that replaces the agent. The tool comes to its end, and its answer arrives.
    vm.run("echo '{\"heartbeat_s\": 7}' > /etc/unhinged-agent/config.json")
    said = vm.run(f"dpkg --force-confold --install /mnt/host/unhinged-agent_{NEXT_VERSION}_all.deb")
    assert NEXT_VERSION in said
    vm.wait_for_version(NEXT_VERSION)
    assert show(vm, "MainPID") != str(info["pid"])
    assert vm.run("cat /etc/unhinged-agent/config.json") == '{"heartbeat_s": 7}\n'
    assert vm.run("dpkg --audit") == ""

    # From here on a person does it, on the console: the agent goes.
    console = vm.log_in()
    code, said = console.run("dpkg --remove unhinged-agent")
    assert code == 0, said
    code, state = console.run(
        f"systemctl is-active {UNIT}; systemctl is-failed {UNIT}; pgrep -f unhinged-agent/start.py"
    )
    assert (code, state.split()) == (1, ["inactive", "inactive"]), state
    code, left = console.run(
        "ls -d /usr/lib/unhinged-agent /usr/sbin/unhinged-agent /usr/lib/udev/rules.d/60-unhinged-agent.rules"
    )
    assert code == 2, left
    assert console.run("cat /etc/unhinged-agent/config.json") == (0, '{"heartbeat_s": 7}')

    code, said = console.run(f"dpkg --install /mnt/host/unhinged-agent_{VERSION}_all.deb")
    assert code == 0, said
    vm.wait_for_version(VERSION)

    code, said = console.run("dpkg --purge unhinged-agent")
    assert code == 0, said
    code, left = console.run("ls -d /etc/unhinged-agent /var/log/unhinged-agent /usr/lib/unhinged-agent")
    assert code == 2, left
    assert console.run("dpkg --audit; systemctl --failed --no-legend") == (0, "")


def test_the_strict_profile_answers_and_cannot_do_harm(debian: DebianVM) -> None:
    vm = debian
    console = vm.log_in()
    loose = read_exposure(console.run(f"systemd-analyze security --no-pager {UNIT}")[1])
    code, said = console.run(
        f"cd /usr/share/unhinged-agent && install -D -m 644 strict.conf /etc/systemd/system/{UNIT}.d/strict.conf"
        " && install -m 644 strict.json /etc/unhinged-agent/config.json"
        " && mkdir -p /srv/unhinged && systemctl daemon-reload && systemctl restart unhinged-agent"
    )
    assert code == 0, said
    assert console.run(f"systemctl is-active {UNIT}") == (0, "active")
    info = vm.call("get_agent_info")
    strict = read_exposure(console.run(f"systemd-analyze security --no-pager {UNIT}")[1])
    print(f"systemd-analyze security: {loose} as shipped, {strict} with strict.conf")
    assert strict < 2.5 < loose

    assert vm.call("get_system_info")["hostname"] == "debian"
    assert "lo" in {interface["name"] for interface in vm.call("get_network_info")["interfaces"]}
    for text in ("old", "new"):  # the filter refuses every change of an owner, also one that changes nothing
        vm.call("file_write", path="/srv/unhinged/file", text=text)
    assert vm.call("file_read", path="/srv/unhinged/file")["text"] == "new"
    assert vm.call("service_list")["total"] > 20
    for method, params in (
        ("exec_command", {"argv": ["true"]}),
        ("shutdown", {}),
        ("file_read", {"path": "/etc/shadow"}),
    ):
        assert vm.error(method, **params)["code"] == -32003, method
    code, capabilities = console.run(f"grep CapEff /proc/{info['pid']}/status")
    assert re.search(r"0000000000000000", capabilities), (code, capabilities)


def read_exposure(text: str) -> float:
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert match is not None, text[-500:]
    return float(match[1])
