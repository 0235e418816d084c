"""Every command line we build is accepted by the real QEMU, and means there what the specification says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from control.argv import build_argv
from control.errors import ConfigError, LaunchError
from control.monitor import Monitor
from control.paths import open_instance_files
from control.spec.network import Forward, Network
from control.spec.vm_spec import DirectBoot, Disk, DiskBoot, IsoBoot, RawSpec, Share, Spec, VMSpec
from control.units import MIB
from control.vm.vm import open_vm
from tests.qemu.ear import Ear

OVMF_CODE, OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
WEIRD = ["plain", "with blank", "comma,s,,", "quote'\"s", "naïve-日本", "back\\slash", "a=b:c", "$HOME;`x`", "json:{}"]
BASE = VMSpec(name="one", boot=DirectBoot(Path("/")), accelerator="tcg", memory_bytes=64 * MIB, cpus=1)


def make_kernel(folder: Path) -> Path:
    """A kernel as small as QEMU takes one: the header of the Linux boot protocol, version 2.10."""
    image = bytearray(4096)
    image[0x1F1] = 1  # setup_sects
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = (0x020A).to_bytes(2, "little")
    image[0x211] = 1  # loaded high
    image[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")  # initrd_addr_max
    path = folder / "kernel"
    path.write_bytes(image)
    return path


def make_disk(path: Path, form: str = "qcow2") -> Path:
    plain = path.with_name("made")  # qemu-img would take some of our names for a protocol
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(plain), "1M"], cwd="/", check=True)
    return plain.rename(path)


async def look(spec: Spec, runtime: Path) -> dict[str, Any]:
    """Start `spec` in the real QEMU, paused, and return what its monitor says of it."""
    files = open_instance_files(runtime, spec.name)
    if isinstance(spec, VMSpec) and spec.firmware == "uefi":
        shutil.copyfile(OVMF_VARIABLES, files.firmware_variables)
    async with open_vm(spec, files, Ear()) as vm:
        monitor: Monitor = vm.monitor
        assert await monitor.query_runstate() == "prelaunch"
        return {
            "name": (await monitor.execute("query-name")).get("name"),
            "chardevs": {item["label"] for item in await monitor.execute("query-chardev")},
            "files": [
                node["image"]["filename"]
                for node in (item["inserted"] for item in await monitor.execute("query-block") if item.get("inserted"))
            ],
            "pci": await monitor.human("info pci"),
            "machine": await monitor.human("info qom-tree"),
            "cpus": len(await monitor.execute("query-cpus-fast")),
            "memory": (await monitor.execute("query-memory-size-summary"))["base-memory"],
        }


def boots(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    def iso() -> dict[str, Any]:
        (folder / "x.iso").write_bytes(b"\0" * 65536)
        return {"boot": IsoBoot(folder / "x.iso")}

    def direct() -> dict[str, Any]:
        (folder / "initrd").write_bytes(b"\0" * 1024)
        return {"boot": DirectBoot(make_kernel(folder), folder / "initrd", "console=ttyS0 a,b 'c d'")}

    def disk() -> dict[str, Any]:
        return {"boot": DiskBoot(), "disks": (Disk(make_disk(folder / "d"), "qcow2"),)}

    return {"iso": iso, "direct": direct, "disk": disk}


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("boot", ["iso", "direct", "disk"])
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
async def test_machines_and_boots(
    workdir: Path, runtime: Path, machine: Any, boot: str, firmware: Any, need: Callable[[str], None]
) -> None:
    if firmware == "uefi":
        need("ovmf")
    ovmf = OVMF_CODE if firmware == "uefi" else None
    spec = replace(BASE, machine=machine, firmware=firmware, ovmf=ovmf, **boots(workdir)[boot]())
    seen = await look(spec, runtime)
    assert seen["name"] == "one"
    assert seen["chardevs"] >= {"qmp", "monitor", "serial", "hvc0", "agent"}
    assert (seen["cpus"], seen["memory"]) == (1, 64 * MIB)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"agent": False}, {"agent"}),
        ({"hvc0": False}, {"hvc0"}),
        ({"agent": False, "hvc0": False}, {"agent", "hvc0"}),
        ({"networks": (Network("none"),)}, set()),
        ({"display": "none"}, set()),
        ({"display": "none", "machine": "q35"}, set()),
        ({"cpus": 4, "memory_bytes": 128 * MIB}, set()),
        ({"extra_args": ("-device", "virtio-balloon-pci")}, set()),
    ],
)
async def test_parts_that_can_be_left_out(
    workdir: Path, runtime: Path, changes: dict[str, Any], absent: set[str]
) -> None:
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)), **changes)
    seen = await look(spec, runtime)
    assert seen["chardevs"] & {"agent", "hvc0"} == {"agent", "hvc0"} - absent
    assert ("Ethernet controller" in seen["pci"]) == (spec.networks == (Network("user"),))
    assert ("VGA controller" in seen["pci"]) == (spec.display != "none")
    assert (seen["cpus"], seen["memory"]) == (spec.cpus, spec.memory_bytes)


@pytest.mark.parametrize("has_agent", [True, False])
async def test_what_a_spice_viewer_needs_is_there(workdir: Path, runtime: Path, has_agent: bool) -> None:
    boot = DirectBoot(make_kernel(workdir))
    seen = await look(replace(BASE, boot=boot, display="spice", agent=has_agent, hvc0=has_agent), runtime)
    assert seen["chardevs"] >= {"vdagent", "redirected0", "redirected1", "redirected2"}
    assert "VGA controller" in seen["pci"] and "USB controller" in seen["pci"] and "Audio controller" in seen["pci"]


@pytest.mark.parametrize("model", ["mapped-xattr", "mapped-file", "none"])
async def test_shares(workdir: Path, runtime: Path, model: Any) -> None:
    (workdir / "shared").mkdir()
    share = Share(workdir / "shared", security_model=model)
    seen = await look(replace(BASE, boot=DirectBoot(make_kernel(workdir)), share=share), runtime)
    assert "virtio-9p-pci" in seen["machine"]


@pytest.mark.parametrize("name", WEIRD)
async def test_weird_paths_reach_qemu_whole(workdir: Path, name: str) -> None:
    """The same odd name for everything a path is given for: kernel, disks, ISO, share, sockets and logs."""
    folder = workdir / name
    folder.mkdir()
    (folder / "shared").mkdir()
    (folder / "initrd").write_bytes(b"\0" * 1024)
    disks = (Disk(make_disk(folder / name), "qcow2", serial="unhinged-data"),
             Disk(make_disk(folder / "raw", "raw"), "raw", interface="ide", read_only=False))  # fmt: skip
    direct = DirectBoot(make_kernel(folder), folder / "initrd", name)
    spec = replace(BASE, boot=direct, disks=disks, share=Share(folder / "shared"))
    seen = await look(spec, folder / ".unhinged")
    assert seen["files"] == [str(folder / name), str(folder / "raw")]
    serial = folder / ".unhinged" / "vm.one" / "serial"
    assert serial.exists()
    (folder / "x.iso").write_bytes(b"\0" * 65536)
    seen = await look(replace(spec, boot=IsoBoot(folder / "x.iso")), folder / ".unhinged")
    assert str(folder / "x.iso") in seen["files"]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("interface", ["virtio", "ide"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_many_disks(workdir: Path, runtime: Path, machine: Any, interface: Any, count: int) -> None:
    disks = tuple(
        Disk(
            make_disk(workdir / f"d{n}"), "qcow2", interface, serial=f"s{n}", read_only=n > 0 and interface == "virtio"
        )
        for n in range(count)
    )
    seen = await look(replace(BASE, boot=DiskBoot(), disks=disks, machine=machine), runtime)
    assert seen["files"] == [str(disk.path) for disk in disks]


async def test_ide_disks_beside_a_cd(workdir: Path, runtime: Path) -> None:
    (workdir / "x.iso").write_bytes(b"\0" * 65536)
    machine: Literal["pc", "q35"]
    for machine in ("pc", "q35"):
        disks = tuple(Disk(make_disk(workdir / f"{machine}{n}"), "qcow2", "ide") for n in range(3))
        spec = replace(BASE, boot=IsoBoot(workdir / "x.iso"), disks=disks, machine=machine)
        assert len((await look(spec, runtime))["files"]) == 4


async def test_a_long_instance_directory(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(workdir))
    deep = workdir / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)))
    await look(spec, deep / ".unhinged")
    directory = deep / ".unhinged" / "vm.one"
    assert json.loads((directory / "argv.json").read_text()) == list(
        build_argv(spec, open_instance_files(deep / ".unhinged", "one"))
    )
    assert {path.name for path in directory.iterdir()} >= {"serial", "hvc0", "state.json", "qemu.log"}


async def test_a_wrong_extra_argument_ends_in_qemus_own_words(workdir: Path, runtime: Path) -> None:
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)), extra_args=("-frobnicate",))
    with pytest.raises(LaunchError) as caught:
        await look(spec, runtime)
    assert caught.value.exit_code == 4
    assert caught.value.return_code == 1
    assert any("-frobnicate" in line for line in caught.value.evidence)
    assert caught.value.argv[-1] == "-frobnicate"
    assert "ARGS" in caught.value.hint


@pytest.mark.parametrize("kind", ["user", "restricted"])
async def test_forwards_lead_through_the_user_network(workdir: Path, runtime: Path, kind: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = open_instance_files(runtime, "one")
    forwards = (Forward(port, 22), Forward(port, 53, protocol="udp"))
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)), networks=(Network(kind),), forwards=forwards)
    async with open_vm(spec, files, Ear()) as vm:
        seen = await vm.monitor.human("info usernet")
    assert re.search(rf"TCP\[HOST_FORWARD\].*127\.0\.0\.1\s+{port}\s.*\s22\b", seen), seen
    assert re.search(rf"UDP\[HOST_FORWARD\].*127\.0\.0\.1\s+{port}\s.*\s53\b", seen), seen


async def test_a_card_for_each_network(workdir: Path, runtime: Path) -> None:
    networks = (Network("user"), Network("lan", "inside"), Network("lan", "outside"))
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)), networks=networks, realm="/a")
    seen = await look(spec, runtime)
    assert seen["pci"].count("Ethernet controller") == 3


async def test_machines_of_one_lan_hear_each_other(workdir: Path, runtime: Path) -> None:
    """No guest is needed: the monitors say that both are in one group, each with a card of its own."""
    spec = replace(BASE, boot=DirectBoot(make_kernel(workdir)), networks=(Network("lan", "l"),), realm=str(workdir))
    seen = []
    for name in ("one", "two"):
        async with open_vm(replace(spec, name=name), open_instance_files(runtime, name), Ear()) as vm:
            seen.append(await vm.monitor.human("info network"))
    groups = [re.search(r"mcast=(239\.\S+)", text) for text in seen]
    cards = [re.search(r"macaddr=(52:54:00\S+)", text) for text in seen]
    assert groups[0] is not None and groups[1] is not None and groups[0][1] == groups[1][1], seen
    assert cards[0] is not None and cards[1] is not None and cards[0][1] != cards[1][1], seen


def test_a_lan_is_its_configurations_own(workdir: Path) -> None:
    files = open_instance_files(workdir / "r", "one")
    spec = replace(BASE, networks=(Network("lan", "l"),))
    words = {build_argv(replace(spec, realm=realm), files) for realm in ("/a", "/b")}
    assert len(words) == 2


def test_a_tap_is_taken_as_it_is_and_a_bridge_by_its_helper(workdir: Path) -> None:
    files = open_instance_files(workdir / "r", "one")
    words = build_argv(replace(BASE, networks=(Network("tap", "tap7"),)), files)
    assert {"type": "tap", "id": "net0", "ifname": "tap7", "script": "no", "downscript": "no"} in [
        json.loads(word) for word in words if word.startswith("{")
    ]
    words = build_argv(replace(BASE, networks=(Network("bridge", "br0"),), sandbox=False), files)
    assert {"type": "bridge", "id": "net0", "br": "br0"} in [json.loads(word) for word in words if word.startswith("{")]
    assert "-sandbox" not in words
    with pytest.raises(ConfigError, match="sandbox"):
        replace(BASE, networks=(Network("bridge", "br0"),))


def test_a_forward_without_a_user_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="forwarded"):
        replace(BASE, networks=(Network("lan", "l"),), forwards=(Forward(1024, 22),))
    with pytest.raises(ConfigError, match="picked"):
        replace(BASE, forwards=(Forward("auto", 22),))


async def test_a_raw_command_line_is_kept_and_made_drivable(workdir: Path, runtime: Path) -> None:
    make_disk(workdir / "d")
    words = ("-nodefaults", "-machine", "q35,accel=tcg", "-m", "64", "-drive", "id=boot,file=d,format=qcow2,if=virtio")
    seen = await look(RawSpec("one", words, workdir), runtime)
    assert seen["chardevs"] == {"qmp", "monitor", "serial"}
    assert seen["files"] == ["d"]
    assert (seen["name"], seen["memory"]) == ("one", 64 * MIB)
    assert "Ethernet" not in seen["pci"]


async def test_what_is_declared_beside_a_raw_command_line_is_added(workdir: Path, runtime: Path) -> None:
    (workdir / "shared").mkdir()
    spec = RawSpec(
        "one", ("-nodefaults",), workdir, accelerator="tcg", memory_bytes=80 * MIB, cpus=2, machine="q35",
        networks=(Network("user"),), share=Share(workdir / "shared"), agent=True, display="std", sandbox=True,
    )  # fmt: skip
    seen = await look(spec, runtime)
    assert seen["chardevs"] == {"qmp", "monitor", "serial", "agent", "bulk"}
    assert (seen["memory"], seen["cpus"]) == (80 * MIB, 2)
    assert "Ethernet controller" in seen["pci"] and "VGA controller" in seen["pci"]
    assert "virtio-9p-pci" in seen["machine"]


@pytest.mark.parametrize("words", [("-nographic",), ("-display", "none", "-vga", "none"), ("-name", "other"), ("-S",)])
async def test_raw_words_that_touch_what_is_added(workdir: Path, runtime: Path, words: tuple[str, ...]) -> None:
    seen = await look(RawSpec("one", (*words, "-machine", "pc,accel=tcg", "-m", "64"), workdir), runtime)
    assert seen["name"] == ("other" if "-name" in words else "one")
