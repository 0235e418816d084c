"""One VM as a configuration declares it (floor 1): the keys, their types, their meaning.

`fleet` reads a whole file with it. The keys are those of `schemas/config.json`; a test holds both against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from control.errors import ConfigError
from control.spec.held import HeldSpec
from control.spec.held_declaration import COMMON_KEYS, PROCESS_KEYS, SERIAL_KEYS, check_kind, read_held
from control.spec.limits import CPU_MAX, CPU_MIN, FILE_MIN_BYTES, MEMORY_MIN_BYTES, NO_LIMITS, Limits
from control.spec.network import (
    LOOPBACK,
    PORT_MAX,
    Forward,
    Network,
    Port,
    check_address,
    overlap,
    parse_forward,
    parse_network,
)
from control.spec.tables import Table
from control.spec.tomlfile import find_nearest, name_type, show_value
from control.spec.vm_spec import CPUS_MAX, MEMORY_MAX_BYTES, Display
from control.units import MIB, format_size, parse_size_bytes

QEMU_KEYS = (
    "limits", "sandbox", "cmd", "qemu_args", "ssh",
    "image", "iso", "disk", "kernel", "initrd", "append", "boot", "firmware", "machine",
    "memory", "cpus", "accel", "net", "forward", "share", "display", "clipboard", "agent",
)  # fmt: skip
KEYS_OF_KIND = {"vm": QEMU_KEYS, "process": PROCESS_KEYS, "serial": SERIAL_KEYS}
VM_KEYS = tuple(dict.fromkeys((*COMMON_KEYS, *QEMU_KEYS, *PROCESS_KEYS, *SERIAL_KEYS)))
DISK_KEYS = ("path", "size", "format", "interface", "serial", "read_only")
FORWARD_KEYS = ("host", "guest", "address", "protocol")
SHARE_KEYS = ("path", "tag")
LIMIT_KEYS = ("cpu", "memory", "file_size")
KINDS = tuple(KEYS_OF_KIND)
RESTARTS = ("no", "on-failure", "always")
BOOTS = ("direct", "iso", "disk")
FIRMWARES = ("bios", "uefi")
MACHINES = ("pc", "q35")
ACCELERATORS = ("auto", "kvm", "tcg")
DISPLAYS = ("vnc", "spice", "std", "none")
BUILTIN = "builtin"

SERIAL_MAX = 20
"""Characters of a disk's serial number (VIRTIO 1.2, VIRTIO_BLK_ID_BYTES)."""

TAG_MAX = 31
"""Bytes of a 9p mount tag that every guest kernel takes (QEMU sources, fsdev/file-op-9p.h: MAX_TAG_LEN is 32)."""

FORWARDING_NETWORKS = ("user", "restricted")
"""A restricted network still takes forwards (QEMU manual, `-netdev user,restrict=`)."""

BOOT_KEYS = ("image", "iso", "disk", "kernel")
"""A VM that has one of them says what it boots."""

INTEGER_LIMIT = 2**63
"""TOML promises no larger numbers (TOML 1.0.0, "Integer"), and Python shows none of more than 4300 digits."""

SshValue = str | int | bool | tuple[str, ...]


@dataclass(frozen=True)
class DiskDeclaration:
    """A disk the VM writes to.

    Attributes:
        size_bytes: It is made with this size when it is not there; None when it must be there.
        format: None: what the file is, or `qcow2` when it is made.
    """

    path: Path
    size_bytes: int | None = None
    format: Literal["qcow2", "raw"] | None = None
    interface: Literal["virtio", "ide"] = "virtio"
    serial: str = ""
    read_only: bool = False


@dataclass(frozen=True)
class ShareDeclaration:
    """A directory of the host that the guest mounts over 9p by its tag."""

    path: Path
    tag: str = "host"


@dataclass(frozen=True)
class ImageReference:
    """What a VM boots and does not write to: the built-in guest, an image of the file's, or a path."""

    kind: Literal["builtin", "named", "path"]
    name: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class SshDeclaration:
    """How a VM is reached by ssh.

    Attributes:
        port: On the host; None when none was named and the VM's network is its own affair (a raw command line).
        vm_port: In the guest.
        options: For ssh_config, over the global ones.
    """

    port: Port | None
    vm_port: int = 22
    options: Mapping[str, SshValue] = field(default_factory=dict)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the VM has an address of its own, and its port is none of this host's."""
        return any(option.lower() == "hostname" for option in self.options)


@dataclass(frozen=True)
class VMDeclaration:
    """One `[vm.NAME]`, with what it extends, its variables filled in except in `cmd`, `qemu_args` and `append`.

    What is None was not declared. In a raw VM (`is_raw`) nothing is added for it; in any other the default holds.

    Attributes:
        chain: Its own name and those of the VMs it extends, nearest first.
        abstract: Only there to be extended: not started, not listed.
        cmd: Words for QEMU, split at white space after their variables are filled in.
        qemu_args: The same, each one word whatever is in it.
        held: What it is when no QEMU runs it; nothing else is declared of it then but what all kinds have.
    """

    name: str
    chain: tuple[str, ...] = ()
    kind: str = "vm"
    abstract: bool = False
    depends_on: tuple[str, ...] = ()
    restart: Literal["no", "on-failure", "always"] = "no"
    limits: Limits = NO_LIMITS
    sandbox: bool | None = None
    clipboard: bool = False
    cmd: tuple[str, ...] = ()
    qemu_args: tuple[str, ...] = ()
    vars: Mapping[str, Any] = field(default_factory=dict)
    ssh: SshDeclaration | None = None
    image: ImageReference | None = None
    iso: Path | None = None
    disks: tuple[DiskDeclaration, ...] = ()
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    boot: Literal["direct", "iso", "disk"] | None = None
    firmware: Literal["bios", "uefi"] | None = None
    machine: Literal["pc", "q35"] | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    accel: Literal["auto", "kvm", "tcg"] | None = None
    networks: tuple[Network, ...] | None = None
    forwards: tuple[Forward, ...] = ()
    share: ShareDeclaration | None = None
    display: Display | None = None
    agent: bool | None = None
    is_raw: bool = False
    held: HeldSpec | None = None

    @property
    def host_forwards(self) -> tuple[Forward, ...]:
        """Every port of the host this VM is known to want, ssh's first."""
        if self.ssh is None or self.ssh.port is None or self.ssh.is_elsewhere:
            return self.forwards
        return (Forward(self.ssh.port, self.ssh.vm_port), *self.forwards)


@dataclass(frozen=True)
class Surroundings:
    """What the reading of a VM needs beside its own table."""

    directory: Path
    home: Path
    images: tuple[str, ...]

    def path(self, text: str) -> Path:
        """Read a path: relative to the file, `~` for the home directory. Raises ConfigError when it is empty."""
        if not text:
            raise ConfigError("a path is empty", hint="name a file")
        if text == "~" or text.startswith("~/"):
            return self.home / text[2:]
        return self.directory / text


def read_ssh(table: Table, *, auto: bool) -> SshDeclaration | None:
    """Read `[vm.NAME.ssh]`; with `auto`, a port that is not named is picked."""
    ssh = table.table("ssh")
    if ssh is None:
        return None
    port = _read_port(ssh, "port") if "port" in ssh else ("auto" if auto else None)
    vm_port = ssh.integer("vm_port", 1, PORT_MAX, "a port of the guest")
    return SshDeclaration(port, vm_port or 22, read_ssh_options(ssh, besides=("port", "vm_port")))


def read_ssh_options(table: Table, *, besides: tuple[str, ...] = ()) -> dict[str, SshValue]:
    """Read options for ssh_config; their names are ssh's own, and are checked where the file is made."""
    options: dict[str, SshValue] = {}
    for key in table.values:
        if key in besides:
            continue
        if not (key.isascii() and key.isalnum() and key[0].isalpha()):
            table.report(
                key, f"{show_value(key)} cannot be an option of ssh", hint="options are like ServerAliveInterval"
            )
            continue
        value = table.values[key]
        if isinstance(value, bool | int):
            if -INTEGER_LIMIT <= value < INTEGER_LIMIT:
                options[key] = value
            else:
                table.report(key, f"{key} is {show_value(value)}", hint="ssh knows no such numbers")
            continue
        what = "a string, a whole number, true or false, or an array of strings"
        read = table.texts(key, what) if isinstance(value, list) else table.text(key, what)
        if read is None:
            continue
        lines = (read,) if isinstance(read, str) else read
        if any(not char.isprintable() and char != "\t" for line in lines for char in line):
            table.report(key, f"{key} holds a control character", hint="an option of ssh stands on one line")
        else:
            options[key] = read
    return options


def read_vm(table: Table, name: str, *, around: Surroundings) -> VMDeclaration:
    """Read `[vm.NAME]`, merged with what it extends; what is wrong with it is reported to its problems."""
    table.check_keys(VM_KEYS, kind="keys of a VM")
    table.text("extends", "the name of a VM")  # followed before the tables were merged
    kind = table.choice("kind", KINDS) or "vm"
    check_kind(table, kind, KEYS_OF_KIND)
    limits = _read_limits(table)
    is_raw = "cmd" in table and not any(key in table for key in BOOT_KEYS)
    networks = _read_networks(table)
    forwards_ports = networks is None or any(network.kind in FORWARDING_NETWORKS for network in networks)
    declared = VMDeclaration(
        name=name,
        chain=tuple(table.chain),
        kind=kind,
        abstract=bool(table.boolean("abstract")),
        depends_on=table.texts("depends_on", "an array of names of VMs") or (),
        restart=cast(Any, table.choice("restart", RESTARTS) or "no"),
        limits=limits,
        sandbox=table.boolean("sandbox"),
        cmd=table.texts("cmd", filled=False) or (),
        qemu_args=table.texts("qemu_args", filled=False) or (),
        vars=table.get("vars", dict, "a table") or {},
        ssh=read_ssh(table, auto=not is_raw and forwards_ports),
        image=table.parse("image", lambda text: _parse_image(text, around)),
        iso=table.parse("iso", around.path),
        disks=_read_disks(table, around),
        kernel=table.parse("kernel", around.path),
        initrd=table.parse("initrd", around.path),
        append=_read_append(table),
        boot=cast(Any, table.choice("boot", BOOTS)),
        firmware=cast(Any, table.choice("firmware", FIRMWARES)),
        machine=cast(Any, table.choice("machine", MACHINES)),
        memory_bytes=_read_memory(table),
        cpus=table.integer("cpus", 1, CPUS_MAX, "a number of CPUs"),
        accel=cast(Any, table.choice("accel", ACCELERATORS)),
        networks=networks,
        forwards=_read_forwards(table),
        share=_read_share(table, around),
        display=cast(Any, table.choice("display", DISPLAYS)),
        clipboard=bool(table.boolean("clipboard")),
        agent=table.boolean("agent"),
        is_raw=is_raw,
        held=read_held(table, kind, name, limits, around) if kind != "vm" else None,
    )
    _check_boot(table, declared)
    _check_networks(table, declared)
    _check_clipboard(table, declared)
    return declared


def _check_clipboard(table: Table, vm: VMDeclaration) -> None:
    if vm.clipboard and (vm.is_raw or vm.display not in (None, "vnc")):
        why = "a raw VM has the devices it names" if vm.is_raw else f'display = "{vm.display}"'
        hint = "a SPICE viewer has the guest's clipboard as it is" if vm.display == "spice" else 'use display = "vnc"'
        table.report("clipboard", f"the clipboard is shared over VNC, and here {why}", hint=hint)


def _read_append(table: Table) -> str:
    text = table.values.get("append")
    if isinstance(text, str) and "{{" in text:
        return text  # filled in when the VM starts, with the ports that were picked
    return table.text("append") or ""


def _parse_image(text: str, around: Surroundings) -> ImageReference:
    if text == BUILTIN and text not in around.images:
        return ImageReference("builtin", BUILTIN)
    if text in around.images:
        return ImageReference("named", text)
    if "/" in text or "." in text or text == "~":
        return ImageReference("path", path=around.path(text))
    nearest = find_nearest(text, (*around.images, BUILTIN))
    meant = f"did you mean {nearest}? " if nearest else ""
    raise ConfigError(
        f"there is no image {show_value(text)}",
        hint=f"{meant}an image is {BUILTIN}, the NAME of an [img.NAME], or a path, as in ./{text or 'disk.qcow2'}",
    )


def _read_memory(table: Table) -> int | None:
    memory = _read_size(table, "memory")
    if memory is not None and not MEMORY_MIN_BYTES <= memory <= MEMORY_MAX_BYTES:
        table.report(
            "memory",
            f"a guest cannot have {format_size(memory)} of memory",
            hint=f"give it {format_size(MEMORY_MIN_BYTES)} to {format_size(MEMORY_MAX_BYTES)}",
        )
        return None
    return memory


def _read_size(table: Table, key: str) -> int | None:
    """A size: `"2G"`, or a whole number of mebibytes."""
    if key not in table:
        return None
    value = table.values[key]
    if isinstance(value, int) and not isinstance(value, bool):
        mebibytes = table.integer(key, 0, MEMORY_MAX_BYTES // MIB * 1024, "a size in MiB")
        return None if mebibytes is None else mebibytes * MIB
    if not isinstance(value, str):
        table.report(key, f'{key} is {name_type(value)}; a size is wanted, as "2G", or a number of MiB')
        return None
    return table.parse(key, lambda text: parse_size_bytes(text, key=key))


def _read_limits(table: Table) -> Limits:
    limits = table.table("limits")
    if limits is None:
        return NO_LIMITS
    limits.check_keys(LIMIT_KEYS, kind="limits")
    cpu: float | None = None
    if "cpu" in limits:
        value = limits.values["cpu"]
        if isinstance(value, bool) or not isinstance(value, int | float):
            limits.report("cpu", f"cpu is {name_type(value)}; a number of host CPUs is wanted, as 1.5")
        elif not CPU_MIN <= value <= CPU_MAX:
            hint = f"from {CPU_MIN:g} to {CPU_MAX} host CPUs"
            limits.report("cpu", f"cpu cannot be {show_value(value)}", hint=hint)
        else:
            cpu = float(value)
    memory = _read_size(limits, "memory")
    if memory is not None and memory < MEMORY_MIN_BYTES:
        limits.report("memory", f"QEMU cannot run in {format_size(memory)}", hint="leave room for the guest and QEMU")
    file = _read_size(limits, "file_size")
    if file is not None and file < FILE_MIN_BYTES:
        limits.report("file_size", f"QEMU cannot work with files of {format_size(file)}", hint="1M is the least")
    return Limits(cpu, memory, file)


def _read_disks(table: Table, around: Surroundings) -> tuple[DiskDeclaration, ...]:
    disks = []
    for index, element in table.mixed("disk", "a path, a table, or an array of these"):
        if isinstance(element, str):
            disk = table.parse("disk", lambda text: DiskDeclaration(around.path(text)), index, element)
        else:
            disk = _read_disk(element, around)
        if disk is not None:
            disks.append(disk)
    return tuple(disks)


def _read_disk(table: Table, around: Surroundings) -> DiskDeclaration | None:
    table.check_keys(DISK_KEYS, kind="keys of a disk")
    path = table.parse("path", around.path)
    if "path" not in table:
        table.report(None, "a disk needs a path", hint='as in {path = "disk.qcow2", size = "10G"}')
    size = _read_size(table, "size")
    if size is not None and size == 0:
        table.report("size", "a disk cannot be empty", hint='as in size = "10G"')
    serial = table.text("serial") or ""
    if len(serial.encode()) > SERIAL_MAX:
        table.report("serial", f"serial has more than {SERIAL_MAX} characters", hint="virtio-blk shows no more")
    form = table.choice("format", ("qcow2", "raw"))
    interface = table.choice("interface", ("virtio", "ide"))
    read_only = table.boolean("read_only")
    if path is None:
        return None
    return DiskDeclaration(path, size, cast(Any, form), cast(Any, interface or "virtio"), serial, bool(read_only))


def _read_share(table: Table, around: Surroundings) -> ShareDeclaration | None:
    for _, element in table.mixed("share", "a directory, or a table with path and tag,", many=False):
        if isinstance(element, str):
            path = table.parse("share", around.path, text=element)
            return None if path is None else ShareDeclaration(path)
        element.check_keys(SHARE_KEYS, kind="keys of a share")
        path = element.parse("path", around.path)
        tag = element.text("tag")
        if tag is not None and not 1 <= len(tag.encode()) <= TAG_MAX:
            element.report("tag", f"tag {show_value(tag)} cannot be one", hint=f"use 1 to {TAG_MAX} characters")
        if "path" not in element:
            element.report(None, "a share needs a path", hint='as in {path = "src", tag = "src"}')
        return None if path is None else ShareDeclaration(path, tag or "host")
    return None


def _read_networks(table: Table) -> tuple[Network, ...] | None:
    if "net" not in table:
        return None
    networks = []
    for index, element in table.mixed("net", "a network, or an array of networks"):
        if isinstance(element, Table):
            element.report(None, "net is a table; a string is wanted", hint='as in net = "user"')
            continue
        network = table.parse("net", parse_network, index, element)
        if network is not None:
            networks.append(network)
    return tuple(networks)


def _read_forwards(table: Table) -> tuple[Forward, ...]:
    forwards = []
    for index, element in table.mixed("forward", "a forward, or an array of forwards"):
        if isinstance(element, str):
            forward = table.parse("forward", parse_forward, index, element)
        else:
            forward = _read_forward(element)
        if forward is not None:
            forwards.append(forward)
    return tuple(forwards)


def _read_forward(table: Table) -> Forward | None:
    table.check_keys(FORWARD_KEYS, kind="keys of a forward")
    for key in ("host", "guest"):
        if key not in table:
            table.report(None, f"a forward needs {key}", hint='as in {host = 8080, guest = 80} or {host = "auto", …}')
    host, guest = _read_port(table, "host"), table.integer("guest", 1, PORT_MAX, "a port of the guest")
    address = table.parse("address", check_address)
    protocol = table.choice("protocol", ("tcp", "udp"))
    if host is None or guest is None:
        return None
    return Forward(host, guest, address or LOOPBACK, cast(Any, protocol or "tcp"))


def _read_port(table: Table, key: str) -> Port | None:
    value = table.values.get(key)
    if value == "auto":
        return "auto"
    return table.integer(key, 1, PORT_MAX, 'a port, or "auto",')


def _check_boot(table: Table, vm: VMDeclaration) -> None:
    if vm.iso is not None and vm.kernel is not None:
        table.report("iso", "iso and kernel exclude each other", hint="name the one to boot")
    if vm.image is not None and vm.image.kind == "builtin" and (vm.iso is not None or vm.kernel is not None):
        table.report("image", "the built-in image brings its own kernel", hint="leave out image, or iso and kernel")
    if "initrd" in table and "kernel" not in table:
        table.report("initrd", "initrd needs kernel", hint="name the kernel it belongs to")
    if vm.boot == "disk" and not ("disk" in table or "image" in table):
        table.report("boot", "there is no disk to boot from", hint='name one: disk = "disk.qcow2"')
    if vm.boot == "iso" and vm.kernel is not None:
        table.report("boot", "an ISO does not start a kernel", hint="leave out boot or kernel")


def _check_networks(table: Table, vm: VMDeclaration) -> None:
    networks = vm.networks or ()
    if len(networks) > 1 and any(network.kind == "none" for network in networks):
        table.report("net", '"none" stands beside other networks', hint="leave it out, or the others")
    if vm.is_raw and vm.networks is None and vm.forwards:
        table.report("forward", "cmd has a network of its own, which takes no forward", hint='add net = "user"')
    forwarding = sum(network.kind in FORWARDING_NETWORKS for network in networks)
    if forwarding > 1:
        table.report("net", "a VM has one user-mode network", hint='"user" or "restricted", once')
    if vm.networks is not None and not forwarding and vm.host_forwards and not vm.is_raw:
        key = "forward" if vm.forwards else "ssh"
        table.report(key, "a port is forwarded through the user-mode network", hint='add "user" to net')
    seen: list[Forward] = []
    for forward in vm.host_forwards:
        for other in seen:
            if overlap(forward, other) or (forward.host == "auto" == other.host and forward.key == other.key):
                table.report("forward", f"{forward} and {other} want the same port", hint="give one of them another")
        seen.append(forward)
