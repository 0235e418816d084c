"""Builds the exact command line of a machine (floor 2): of its QEMU, or of its holder. `control.vm` starts it, tests
hold it against the real binary.

Each function returns option/value rows for one part of the machine. Values are either JSON, where QEMU takes it
(`-blockdev`, `-device`, `-netdev`, `-object`), or keyword lists in which a comma is doubled.

Source: QEMU's own `-help` and manual (system/invocation), version 7.2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from control.paths import ROOT, InstanceFiles
from control.spec.held import ProcessSpec, SerialSpec
from control.spec.network import Forward, Network
from control.spec.plain import AnySpec
from control.spec.vm_spec import (
    CPU_MODELS,
    SANDBOX,
    DirectBoot,
    Disk,
    DiskBoot,
    Display,
    Frozen,
    IsoBoot,
    RawSpec,
    Share,
    Spec,
    VMSpec,
)
from control.units import MIB

AGENT_PORT = "org.unhinged.agent.0"
"""The virtio-serial port the agent listens on; the guest finds it by this name in /sys/class/virtio-ports."""

BULK_PORT = "org.unhinged.bulk.0"
"""The port beside it, which carries the agent's streams (docs/protocol.md)."""

PORTS_MAX = 8
"""Ports of the controller: ours, and some for devices of the user's own. QEMU's 31 are 64 queues, for each of which an
event is set up whenever the guest goes on (20 ms for a clone)."""

SPICE_HEADS = 4
"""Monitors that a SPICE viewer can open."""

SPICE_USB_DEVICES = 3
"""USB devices of the viewer that can be in the guest at once."""

_HOLDERS = ROOT / "control" / "process"

Rows = list[tuple[str, ...]]


def build_argv(spec: AnySpec, files: InstanceFiles) -> tuple[str, ...]:
    """Return the command line that starts `spec`, with its sockets and logs at `files`; a VM is paused (`-S`)."""
    if isinstance(spec, ProcessSpec):
        return (sys.executable, "-I", "-S", str(_HOLDERS / "pty_holder.py"), str(files.pid))
    if isinstance(spec, SerialSpec):
        return (sys.executable, "-I", str(_HOLDERS / "serial_holder.py"), str(files.pid))
    if isinstance(spec, RawSpec):
        return _build_raw_argv(spec, files)
    rows: Rows = [
        ("-name", f"guest={_escape(spec.name)}"),
        *_machine(spec, files),
        *_life_signs(files),
        # First among the PCI devices, so that the guest has its channels before it looks at the rest.
        *_consoles(spec, files),
        *_agent(spec, files),
        ("-device", _json(driver="virtio-rng-pci")),
        *_boot(spec),
        *_disks(spec),
        *_networks(spec),
        *_display(spec.display, spec.agent or spec.hvc0, files),
        *(_clipboard(spec.agent or spec.hvc0) if spec.clipboard else []),
        *(_share(spec.share) if spec.share else []),
    ]
    return (spec.qemu, *(word for row in rows for word in row), *spec.extra_args)


def _build_raw_argv(spec: RawSpec, files: InstanceFiles) -> tuple[str, ...]:
    """The user's words first, what is added behind them: the last of two values holds where QEMU takes only one."""
    rows: Rows = []
    if not {"-name", "--name"} & set(spec.words):
        rows.append(("-name", f"guest={_escape(spec.name)}"))
    if spec.machine is not None:
        rows.append(("-machine", spec.machine))
    if spec.accelerator is not None:
        rows.append(("-accel", spec.accelerator))
    if spec.memory_bytes is not None:
        rows.append(("-m", f"{spec.memory_bytes // MIB}M"))
    if spec.cpus is not None:
        rows.append(("-smp", str(spec.cpus)))
    if spec.sandbox:
        rows.append(("-sandbox", SANDBOX))
    rows += [*_life_signs(files), *_serial(files)]
    if spec.agent:
        rows += [_ports(), *_agent(spec, files)]
    rows += _networks(spec)
    if spec.display is not None:
        rows += _display(spec.display, spec.agent, files)
    if spec.share is not None:
        rows += _share(spec.share)
    return (spec.qemu, *spec.words, *(word for row in rows for word in row))


def _machine(spec: VMSpec, files: InstanceFiles) -> Rows:
    machine = [f"{spec.machine}"]
    if not isinstance(spec.boot, DirectBoot):
        # Without a screen of its own SeaBIOS then mirrors its text, and that of boot loaders, to the serial console:
        # "No bootable device" would be seen by nobody otherwise.
        machine.append("graphics=off")
    rows: Rows = []
    if spec.frozen is not None:
        machine.append("memory-backend=pc.ram")
        rows += _memory(spec.frozen, spec.memory_bytes)
    if spec.firmware == "uefi":
        machine += ["pflash0=firmware", "pflash1=firmware-variables"]
        rows += [
            ("-blockdev", _raw_file("firmware", spec.ovmf, read_only=True)),
            ("-blockdev", _raw_file("firmware-variables", files.firmware_variables, read_only=False)),
        ]
    return [
        ("-machine", ",".join(machine)),
        ("-accel", spec.accelerator),
        ("-cpu", CPU_MODELS[spec.accelerator]),
        ("-m", f"{spec.memory_bytes // MIB}M"),
        ("-smp", str(spec.cpus)),
        ("-nodefaults",),
        ("-no-user-config",),
        *([("-sandbox", SANDBOX)] if spec.sandbox else []),
        *rows,
        ("-device", "pvpanic"),
        # A guest that panics is kept as it is until its last words have been read.
        ("-action", "panic=pause"),
    ]


def _memory(frozen: Frozen, size_bytes: int) -> Rows:
    """Memory that is a file, under the name that memory has in the state of a machine that has none of its own.

    Source: QEMU sources, hw/core/machine.c, create_default_memdev.
    """
    memory = {
        "qom-type": "memory-backend-file",
        "id": "pc.ram",
        "x-use-canonical-path-for-ramblock-id": False,
        "mem-path": str(frozen.memory),
        "size": size_bytes,
        "share": frozen.is_shared,
    }
    rows: Rows = [("-object", json.dumps(memory))]
    if frozen.state is not None:
        rows.append(("-incoming", "defer"))
    return rows


def _life_signs(files: InstanceFiles) -> Rows:
    return [
        ("-S",),
        ("-pidfile", str(files.pid)),
        ("-chardev", _socket("qmp", files.qmp_socket)),
        ("-mon", "chardev=qmp,mode=control"),
        ("-chardev", _socket("monitor", files.monitor_socket)),
        ("-mon", "chardev=monitor,mode=readline"),
    ]


def _consoles(spec: VMSpec, files: InstanceFiles) -> Rows:
    rows = _serial(files)
    if spec.hvc0 or spec.agent:
        rows.append(_ports())
    if spec.hvc0:
        rows += [
            ("-chardev", _console("hvc0", files.hvc0_log)),
            ("-device", _json(driver="virtconsole", bus="ports.0", chardev="hvc0")),
        ]
    return rows


def _serial(files: InstanceFiles) -> Rows:
    return [
        ("-chardev", _console("serial", files.serial_log)),
        ("-serial", "chardev:serial"),
    ]


def _ports() -> tuple[str, ...]:
    return ("-device", _json(driver="virtio-serial-pci", id="ports", max_ports=PORTS_MAX))


def _agent(spec: Spec, files: InstanceFiles) -> Rows:
    if not spec.agent:
        return []
    return [
        ("-chardev", _socket("agent", files.agent_socket)),
        ("-device", _json(driver="virtserialport", id="agent", bus="ports.0", chardev="agent", name=AGENT_PORT)),
        ("-chardev", _socket("bulk", files.bulk_socket)),
        ("-device", _json(driver="virtserialport", id="bulk", bus="ports.0", chardev="bulk", name=BULK_PORT)),
    ]


def _boot(spec: VMSpec) -> Rows:
    match spec.boot:
        case DirectBoot(kernel, initrd, command_line):
            rows: Rows = [("-kernel", str(kernel))]
            if initrd is not None:
                rows.append(("-initrd", str(initrd)))
            if command_line:
                rows.append(("-append", command_line))
            return rows
        case IsoBoot(iso):
            return [
                ("-blockdev", _raw_file("cd", iso, read_only=True)),
                ("-device", _json(driver="ide-cd", drive="cd", bootindex=0, **_ide_place(spec, 0))),
            ]
        case DiskBoot():
            return []


def _disks(spec: VMSpec) -> Rows:
    rows: Rows = []
    for index, disk in enumerate(spec.disks):
        node = f"disk{index}"
        rows += [("-blockdev", _disk_node(node, disk)), ("-device", _disk_device(node, index, disk, spec))]
    return rows


def _disk_node(node: str, disk: Disk) -> str:
    return json.dumps(
        {
            "driver": disk.format,
            "node-name": node,
            "read-only": disk.read_only,
            "file": {"driver": "file", "filename": str(disk.path), "read-only": disk.read_only},
        }
    )


def _disk_device(node: str, index: int, disk: Disk, spec: VMSpec) -> str:
    device: dict[str, str | int] = {
        "driver": "virtio-blk-pci" if disk.interface == "virtio" else "ide-hd",
        "drive": node,
    }
    if disk.interface == "ide":
        before = [other for other in spec.disks[:index] if other.interface == "ide"]
        device |= _ide_place(spec, len(before) + isinstance(spec.boot, IsoBoot))
    if isinstance(spec.boot, DiskBoot):
        device["bootindex"] = index
    if disk.serial:
        device["serial"] = disk.serial
    return json.dumps(device)


def _ide_place(spec: VMSpec, number: int) -> dict[str, str | int]:
    """Where the IDE device `number` is plugged in: QEMU fills only one bus by itself.

    Source: QEMU sources, hw/ide/piix.c (`pc`: two buses of two units), hw/ide/ich.c (`q35`: six of one).
    """
    if spec.machine == "pc":
        return {"bus": f"ide.{number // 2}", "unit": number % 2}
    return {"bus": f"ide.{number}", "unit": 0}


def _networks(spec: Spec) -> Rows:
    rows: Rows = []
    for index, network in enumerate(network for network in spec.networks if network.kind != "none"):
        # No boot ROM: nothing here boots from the network, and loading it costs firmware time.
        # No announcement: a guest that goes on from a state has not moved in its network, and has other things to do.
        # (By the device: where `announce-rounds` is 0, QEMU 7.2 crashes when the guest is reset next.)
        device: dict[str, str | int] = {
            "driver": "virtio-net-pci", "netdev": f"net{index}", "romfile": "", "guest_announce": False,
        }  # fmt: skip
        if not network.forwards:
            # On a network with others QEMU's own address, the same for each VM, would not do.
            device["mac"] = _pick_mac(spec, index)
        rows += [_netdev(f"net{index}", network, spec), ("-device", _json(**device))]
    return rows


def _netdev(identifier: str, network: Network, spec: Spec) -> tuple[str, ...]:
    """How QEMU reaches `network` (manual, `-netdev`)."""
    about: dict[str, Any] = {"id": identifier}
    match network.kind:
        case "lan":
            # Multicast on the loopback interface needs no rights and has no VM that must be there first.
            about |= {"type": "socket", "mcast": _pick_group(spec.realm, network.name), "localaddr": "127.0.0.1"}
        case "tap":
            about |= {"type": "tap", "ifname": network.name, "script": "no", "downscript": "no"}
        case "bridge":
            about |= {"type": "bridge", "br": network.name}
        case _:
            about |= {"type": "user", "restrict": network.kind == "restricted"}
            if spec.forwards:
                about["hostfwd"] = [{"str": _forward(forward)} for forward in spec.forwards]
    return ("-netdev", json.dumps(about))


def _forward(forward: Forward) -> str:
    return f"{forward.protocol}:{forward.address}:{forward.host}-:{forward.guest}"


def _pick_group(realm: str, lan: str) -> str:
    """A multicast address and port for a LAN, the same for all who name it, and hardly anybody else's.

    Source: RFC 2365, section 6.2: 239.192.0.0/14 is for an organisation's own use.
    """
    digest = _digest(f"{realm}\0{lan}")
    return f"239.{192 + digest[0] % 4}.{digest[1]}.{digest[2]}:{20000 + int.from_bytes(digest[3:5]) % 10000}"


def _pick_mac(spec: Spec, index: int) -> str:
    """An address for a card that stays the same from start to start; 52:54:00 is QEMU's own prefix."""
    return "52:54:00:" + _digest(f"{spec.realm}\0{spec.name}\0{index}")[:3].hex(":")


def _digest(text: str) -> bytes:
    import hashlib  # few VMs have such a card, and it is slow to load

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _display(display: Display, has_ports: bool, files: InstanceFiles) -> Rows:
    rows: Rows = [("-display", "none")]
    if display in ("vnc", "spice"):
        # Said as `vnc=`: a path with a = in it would else be taken for an option of that name.
        # Whoever is let in may look, however many are there: each browser tab is a client of its own.
        rows.append(("-vnc", f"vnc=unix:{_escape(str(files.vnc_socket))},share=force-shared"))
    if display == "spice":
        return [*rows, *_spice(has_ports, files)]
    if display != "none":
        rows.append(("-device", "VGA"))
    if display == "vnc":
        # A pointer that is where the viewer's is; until the guest has a driver for it the PS/2 mouse is used.
        rows.append(("-device", _json(driver="virtio-tablet-pci")))
    return rows


def _spice(has_ports: bool, files: InstanceFiles) -> Rows:
    """What a SPICE viewer can do needs a device each (QEMU manual, "-spice"; spice-space.org, "SPICE User Manual")."""
    rows: Rows = [
        ("-spice", f"unix=on,addr={_escape(str(files.spice_socket))},disable-ticketing=on"),
        ("-device", _json(driver="qxl-vga", max_outputs=SPICE_HEADS, vgamem_mb=64)),
        ("-audiodev", _json(driver="spice", id="sound")),
        ("-device", _json(driver="intel-hda")),
        ("-device", _json(driver="hda-duplex", audiodev="sound")),
        *_vdagent("spicevmc,id=vdagent,name=vdagent", has_ports),
        ("-device", _json(driver="qemu-xhci", id="usb")),
        ("-device", _json(driver="usb-tablet", bus="usb.0")),
    ]
    for number in range(SPICE_USB_DEVICES):
        rows.append(("-chardev", f"spicevmc,id=redirected{number},name=usbredir"))
        rows.append(("-device", _json(driver="usb-redir", bus="usb.0", chardev=f"redirected{number}")))
    return rows


def _clipboard(has_ports: bool) -> Rows:
    """QEMU itself takes the part of a SPICE client, and shares the guest's clipboard with its VNC server.

    Source: QEMU manual, "-chardev qemu-vdagent".
    """
    return _vdagent("qemu-vdagent,id=vdagent,name=vdagent,clipboard=on,mouse=off", has_ports)


def _vdagent(chardev: str, has_ports: bool) -> Rows:
    """The port at which a guest's spice-vdagent looks for its other side."""
    port = {"bus": "ports.0", "chardev": "vdagent", "name": "com.redhat.spice.0"}
    return [
        *([] if has_ports else [_ports()]),
        ("-chardev", chardev),
        ("-device", _json(driver="virtserialport", **port)),
    ]


def _share(share: Share) -> Rows:
    fsdev = f"local,id=share,path={_escape(str(share.path))},security_model={share.security_model}"
    fsdev += ",readonly=on" if share.read_only else ""
    return [
        ("-fsdev", fsdev),
        ("-device", _json(driver="virtio-9p-pci", fsdev="share", mount_tag=share.tag)),
    ]


def _socket(identifier: str, path: Path) -> str:
    return f"socket,id={identifier},path={_escape(str(path))},server=on,wait=off"


def _console(identifier: str, log: Path) -> str:
    """A console that is a file, LOG, and is typed on through a FIFO, LOG.in; see `control.vm.birth`.

    QEMU opens both for reading and writing (chardev/char-pipe.c): so it never finds the FIFO at its end, though nobody
    may hold it open. And a file never refuses what is written, so nothing is tried twice.
    """
    return f"pipe,id={identifier},path={_escape(str(log))}"


def _raw_file(node: str, path: Path | None, *, read_only: bool) -> str:
    return json.dumps(
        {
            "driver": "raw",
            "node-name": node,
            "read-only": read_only,
            "file": {"driver": "file", "filename": str(path), "read-only": read_only},
        }
    )


def _json(**fields: str | int | bool) -> str:
    return json.dumps(fields)


def _escape(value: str) -> str:
    """Double the commas, as QEMU's keyword lists want it (manual, "invocation")."""
    return value.replace(",", ",,")
