"""The VM specification (floor 1). Made by the faces, turned into a command line by `control.argv`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from control.errors import ConfigError
from control.spec.limits import MEMORY_MIN_BYTES, NO_LIMITS, Limits
from control.spec.network import Forward, Network
from control.units import MIB, TIB, format_size

Accelerator = Literal["kvm", "tcg"]
Display = Literal["vnc", "spice", "std", "none"]
DiskFormat = Literal["qcow2", "raw"]
Interface = Literal["virtio", "ide"]

MEMORY_MAX_BYTES = 4 * TIB
CPUS_MAX = 255
"""QEMU's `pc` machine takes 255 CPUs (`qemu-system-x86_64 -machine help`, MachineClass.max_cpus)."""

CPU_MODELS = {
    "kvm": "host",
    # RDRAND saves the guest a second of waiting for entropy. `rep movsb` and five-level page tables are slow to
    # emulate: without them the built-in guest is up 0.2 s earlier (docs/image.md).
    "tcg": "max,-erms,-la57",
}

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
"""System calls that a virtual machine does not need are a way out for a hostile guest."""

IDE_UNITS = {"pc": 4, "q35": 6}
"""How many IDE devices a machine takes, a CD drive among them (QEMU sources, hw/ide/piix.c and ich.c)."""


@dataclass(frozen=True)
class DirectBoot:
    """Start a kernel without a boot loader: a `vmlinux` with a PVH entry, or a `bzImage`."""

    kernel: Path
    initrd: Path | None = None
    command_line: str = ""


@dataclass(frozen=True)
class IsoBoot:
    """Start from an ISO image in a CD drive."""

    iso: Path


@dataclass(frozen=True)
class DiskBoot:
    """Start from the first disk of the VM."""


Boot = DirectBoot | IsoBoot | DiskBoot


@dataclass(frozen=True)
class Disk:
    """A disk image the VM may write to, unless `read_only`.

    Attributes:
        serial: What the guest sees as the disk's serial number; at most 20 characters (virtio-blk's limit).
    """

    path: Path
    format: DiskFormat
    interface: Interface = "virtio"
    serial: str = ""
    read_only: bool = False
    has_mailboxes: bool = True


@dataclass(frozen=True)
class Frozen:
    """Memory that is a file, and mostly a state from which a VM goes on instead of booting.

    Attributes:
        memory: A file that is the guest's memory.
        state: What else there is to it: the devices, and the memory too while that is not in the file yet. None for a
            template in the making that boots.
        is_shared: Whether what the guest writes goes to the file: that of a template in the making. A clone sees what
            is in the file, and what it writes is its own.
    """

    memory: Path
    state: Path | None
    is_shared: bool = False


@dataclass(frozen=True)
class Share:
    """A host directory the guest can mount over 9p by its `tag`.

    Attributes:
        read_only: Whether QEMU refuses whatever the guest wants to change.
        has_mailboxes: Whether messages are exchanged in it as well (docs/protocol.md).
        security_model: How owners and modes are kept on the host; `mapped-xattr` keeps a hostile guest from making
            set-uid files there (QEMU manual, `-fsdev local`).
    """

    path: Path
    tag: str = "host"
    security_model: Literal["mapped-xattr", "mapped-file", "none"] = "mapped-xattr"
    read_only: bool = False
    has_mailboxes: bool = True


@dataclass(frozen=True)
class VMSpec:
    """One VM, as facts.

    Attributes:
        name: The instance's name.
        accelerator: Always the one that was chosen, never a wish.
        memory_bytes: Guest RAM.
        machine: QEMU's `-machine` type.
        firmware: For booting from ISO or disk: `bios` is SeaBIOS, `uefi` is OVMF read from `ovmf`.
        agent: Whether the guest gets the virtio-serial port of the agent.
        hvc0: Whether the guest gets the second, fast console.
        networks: A card for each. `user` is QEMU's user-mode network, through which the guest reaches whatever the host
            reaches, its loopback included; `restricted` is the same cut off from everything but `forwards`.
        forwards: Through the user-mode network; their ports have been picked.
        realm: What tells a LAN, and the cards on it, from those of other configurations.
        display: `vnc` is a VGA card with a VNC server at a private UNIX socket; `spice` a QXL card with a SPICE server
            at one, VNC beside it, and the devices for USB, sound, the clipboard and several monitors; `std` a VGA card
            whose picture can be asked for, and no server.
        clipboard: Whether VNC viewers share the clipboard of a guest that runs spice-vdagent.
        sandbox: Whether QEMU refuses itself system calls that a virtual machine does not need.
        limits: What QEMU may use of the host.
        frozen: What it goes on from instead of booting.
        extra_args: Words appended to QEMU's command line as they are.

    Raises:
        ConfigError: A value is out of its range.
    """

    name: str
    boot: Boot
    accelerator: Accelerator
    memory_bytes: int = 1024 * MIB
    cpus: int = 2
    machine: Literal["pc", "q35"] = "pc"
    firmware: Literal["bios", "uefi"] = "bios"
    ovmf: Path | None = None
    disks: tuple[Disk, ...] = ()
    share: Share | None = None
    agent: bool = True
    hvc0: bool = True
    networks: tuple[Network, ...] = (Network("user"),)
    forwards: tuple[Forward, ...] = ()
    realm: str = ""
    display: Display = "vnc"
    clipboard: bool = False
    sandbox: bool = True
    limits: Limits = NO_LIMITS
    frozen: Frozen | None = None
    qemu: str = "qemu-system-x86_64"
    extra_args: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not MEMORY_MIN_BYTES <= self.memory_bytes <= MEMORY_MAX_BYTES:
            raise ConfigError(
                f"a guest cannot have {format_size(self.memory_bytes)} of memory",
                key="MEMORY",
                hint=f"give it {format_size(MEMORY_MIN_BYTES)} to {format_size(MEMORY_MAX_BYTES)}, as in MEMORY=1G",
            )
        if not 1 <= self.cpus <= CPUS_MAX:
            raise ConfigError(
                f"a guest cannot have {self.cpus} CPUs", key="CPUS", hint=f"give it 1 to {CPUS_MAX}, as in CPUS=2"
            )
        if isinstance(self.boot, DiskBoot) and not self.disks:
            raise ConfigError("there is no disk to boot from", key="DISK", hint="name one: DISK=image.qcow2")
        ide = [disk for disk in self.disks if disk.interface == "ide"]
        room = IDE_UNITS[self.machine] - isinstance(self.boot, IsoBoot)
        if len(ide) > room:
            raise ConfigError(
                f"the machine {self.machine} has room for {room} IDE disks, not for {len(ide)}",
                key="DISK",
                hint="use virtio disks, or the machine q35",
            )
        if self.firmware == "uefi" and self.ovmf is None:
            raise ConfigError("UEFI needs an OVMF firmware file", key="FIRMWARE", hint="install the package ovmf")
        check_networks(self)


@dataclass(frozen=True)
class RawSpec:
    """A VM whose command line is the user's own; only what is declared beside it is added, and how it is watched.

    What is None was not declared. `name`, `networks`, `forwards`, `realm`, `share`, `agent`, `display`, `sandbox`,
    `limits` and `qemu` mean what they mean in `VMSpec`.

    Attributes:
        words: QEMU's command line, without the program.
        directory: Where QEMU is started, for the relative paths in `words`.
        hvc0: Never: a second console would be a device that nobody asked for.
    """

    name: str
    words: tuple[str, ...]
    directory: Path
    accelerator: Accelerator | None = None
    memory_bytes: int | None = None
    cpus: int | None = None
    machine: Literal["pc", "q35"] | None = None
    networks: tuple[Network, ...] = ()
    forwards: tuple[Forward, ...] = ()
    realm: str = ""
    share: Share | None = None
    agent: bool = False
    display: Display | None = None
    sandbox: bool = False
    limits: Limits = NO_LIMITS
    qemu: str = "qemu-system-x86_64"
    hvc0: Literal[False] = False

    def __post_init__(self) -> None:
        check_networks(self)


Spec = VMSpec | RawSpec


def check_networks(spec: Spec) -> None:
    """See to it that the networks of `spec` can be had.

    Raises:
        ConfigError: A port is to be forwarded and nothing forwards it, one was not picked, or the sandbox forbids it.
    """
    if spec.forwards and not any(network.forwards for network in spec.networks):
        raise ConfigError(
            "a port is forwarded through the user-mode network, and this VM has none",
            key="net",
            hint='add "user" to net',
        )
    if any(forward.host == "auto" for forward in spec.forwards):
        raise ConfigError("a port has not been picked yet", key="forward", hint="please report it")
    if spec.sandbox and any(network.kind == "bridge" for network in spec.networks):
        # The bridge helper is a set-user-ID program, which a process under seccomp cannot start (seccomp(2)).
        raise ConfigError(
            "QEMU cannot join a bridge from within its sandbox",
            key="sandbox",
            hint='say sandbox = false, or make a tap device and use net = "tap:INTERFACE"',
        )
