"""From one VM of a configuration to a specification this host can run (floor 3): files are looked at, ports picked, the
accelerator chosen, disks made. The command line's face calls it with the instance's lock held.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from control.errors import ConfigError, ControlError, HostError, ImageError
from control.host import find_qemu, look_around
from control.paths import InstanceFiles, cache_directory
from control.process.run import run
from control.spec.declaration import DiskDeclaration, ShareDeclaration, VMDeclaration
from control.spec.fleet import Fleet, build_append, build_words
from control.spec.network import Forward, Network
from control.spec.plain import AnySpec
from control.spec.vm_spec import (
    Accelerator,
    Boot,
    DirectBoot,
    Disk,
    DiskBoot,
    DiskFormat,
    IsoBoot,
    RawSpec,
    Share,
    VMSpec,
)
from control.units import MIB
from control.vm import media
from control.vm.ports import check_free, pick_port
from control.vm.provision import (
    DATA_DISK_SERIAL,
    OVMF_CODE,
    build_command_line,
    check_memory,
    copy_firmware_variables,
    get_builtin_file,
    make_data_disk,
    make_disk,
    make_overlay,
    read_manifest,
    takes_attributes,
)

MEMORY_BYTES = 1024 * MIB
CPUS = 2
"""What a declared VM has when it does not say (docs/configuration.md)."""


@dataclass(frozen=True)
class Planned:
    """A machine that can be started.

    Attributes:
        ports: Those that were picked, by `Forward.key`.
        notes: What the user should know of this host, each one line; the same for all VMs that it concerns.
    """

    spec: AnySpec
    ports: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def directory(self, files: InstanceFiles) -> Path:
        """Where its QEMU is started: what relative paths in raw words are relative to."""
        return self.spec.directory if isinstance(self.spec, RawSpec) else files.directory


async def plan_vm(
    fleet: Fleet, vm: VMDeclaration, files: InstanceFiles, *, known_ports: Mapping[str, object], make: bool = True
) -> Planned:
    """Turn a VM of `fleet` into a specification, and make the disks it is to have.

    Args:
        known_ports: The ports that were picked last time; taken again when they are free.
        make: Whether anything is made on disk, and ports have to be free; otherwise it is only said what would be.

    Raises:
        ConfigError, ImageError: What is declared is not possible; nothing was made.
        HostError: QEMU or another program is missing, a port is taken, or the host has no room.
    """
    if vm.held is not None:
        return Planned(vm.held, {})
    with _naming(vm):
        forwards, ports = _pick_ports(vm, known_ports, make=make)
        if make:
            _check_interfaces(vm.networks or ())
        qemu = find_qemu_of(fleet)
        accelerator, notes = await _choose_accelerator(vm, qemu)
        share = _choose_share(vm.share)
        words = build_words(fleet, vm, ports)
        realm = str(fleet.location.runtime)
        if vm.is_raw:
            return Planned(
                RawSpec(
                    vm.name,
                    words,
                    fleet.location.directory,
                    accelerator,
                    vm.memory_bytes,
                    vm.cpus,
                    vm.machine,
                    vm.networks or (),
                    forwards if vm.networks else (),
                    realm,
                    share,
                    bool(vm.agent),
                    vm.display,
                    bool(vm.sandbox),
                    vm.limits,
                    qemu,
                ),
                ports,
                notes,
            )
        check_memory(vm.memory_bytes or MEMORY_BYTES)
        builder = _Builder(fleet, vm, files, build_append(fleet, vm, ports))
        boot = builder.choose_boot()
        networks = (Network("user"),) if vm.networks is None else vm.networks
        spec = VMSpec(
            name=vm.name,
            boot=boot,
            accelerator=accelerator or "tcg",
            memory_bytes=vm.memory_bytes or MEMORY_BYTES,
            cpus=vm.cpus or CPUS,
            machine=vm.machine or "pc",
            firmware=vm.firmware or "bios",
            ovmf=OVMF_CODE if vm.firmware == "uefi" else None,
            disks=builder.choose_disks(),
            share=share,
            agent=vm.agent is not False,
            networks=networks,
            forwards=forwards,
            realm=realm,
            display=vm.display or "vnc",
            clipboard=vm.clipboard,
            sandbox=_choose_sandbox(vm, networks),
            limits=vm.limits,
            qemu=qemu,
            extra_args=words,
        )
        if make:
            await builder.make()
        return Planned(spec, ports, notes)


@contextmanager
def _naming(vm: VMDeclaration) -> Iterator[None]:
    """Say of an error which VM it is about."""
    try:
        yield
    except ControlError as error:
        if isinstance(error, ImageError | HostError) and not str(error).startswith("["):
            error.args = (f"[vm.{vm.name}] {error}",)
        raise


def find_qemu_of(fleet: Fleet) -> str:
    """Return the QEMU that `fleet` names, or else that of the host. Raises HostError."""
    if "/" in fleet.qemu:
        if not os.access(fleet.qemu, os.X_OK):
            raise HostError(f"{fleet.qemu} cannot be run", hint="look at bin in [qemu]")
        return fleet.qemu
    return str(find_qemu(look_around({**os.environ, "QEMU": fleet.qemu} if fleet.qemu else None)))


async def _choose_accelerator(vm: VMDeclaration, qemu: str) -> tuple[Accelerator | None, tuple[str, ...]]:
    """None for a raw command line, which says it by itself."""
    if vm.is_raw and vm.accel is None:
        return None, ()
    if vm.accel == "tcg":
        return "tcg", ()
    from control.accel.choice import choose_accelerator

    choice = await choose_accelerator(vm.accel or "auto", Path(qemu), run, cache_directory())
    return choice.name, (choice.reason,) if choice.name == "tcg" else ()


def _choose_sandbox(vm: VMDeclaration, networks: tuple[Network, ...]) -> bool:
    if vm.sandbox is not None:
        return vm.sandbox
    return not any(network.kind == "bridge" for network in networks)


def _choose_share(share: ShareDeclaration | None) -> Share | None:
    if share is None:
        return None
    path = media.check_share(share.path)
    return Share(path, share.tag, "mapped-xattr" if takes_attributes(path) else "mapped-file")


# -- ports -------------------------------------------------------------------------------------------------------------


def _pick_ports(
    vm: VMDeclaration, known: Mapping[str, object], *, make: bool
) -> tuple[tuple[Forward, ...], dict[str, int]]:
    """Give each forward its port of the host; those that are to be picked are remembered by their keys."""
    forwards, ports = [], {}
    for forward in vm.host_forwards:
        if forward.host == "auto":
            wish = known.get(forward.key)
            ports[forward.key] = pick_port(forward, wish if isinstance(wish, int) else 0)
            forward = replace(forward, host=ports[forward.key])
        elif make:
            check_free(forward)
        forwards.append(forward)
    return tuple(forwards), ports


def _check_interfaces(networks: Iterable[Network]) -> None:
    """See to it that what a VM is to be connected to is there: as root, QEMU would make a tap that leads nowhere.

    Raises:
        HostError: An interface is missing.
    """
    for network in networks:
        if network.kind not in ("tap", "bridge"):
            continue
        try:
            socket.if_nametoindex(network.name)
        except OSError:
            how = "tuntap add dev {0} mode tap user $USER" if network.kind == "tap" else "link add {0} type bridge"
            hint = f"make it: sudo ip {how.format(network.name)} && sudo ip link set {network.name} up"
            raise HostError(f"this host has no network interface {network.name}", hint=hint) from None


# -- what it boots -----------------------------------------------------------------------------------------------------


class _Builder:
    """What a declared VM boots and writes to; nothing is made before `make`."""

    def __init__(self, fleet: Fleet, vm: VMDeclaration, files: InstanceFiles, append: str) -> None:
        self._vm = vm
        self._files = files
        self._append = append
        self._qemu_img = fleet.qemu_img or "qemu-img"
        self._base = self._find_base(fleet)
        self._base_format: DiskFormat = "qcow2"
        self._is_builtin = self._base is None and vm.iso is None and vm.kernel is None and self._boots_builtin(fleet)

    def _boots_builtin(self, fleet: Fleet) -> bool:
        image = self._vm.image
        if image is None:
            return not self._vm.disks
        named = fleet.images.get(image.name)
        return image.kind == "builtin" or (named is not None and named.builder == "builtin")

    def _find_base(self, fleet: Fleet) -> Path | None:
        """The disk image it boots and does not write to."""
        image = self._vm.image
        if image is None or image.kind == "builtin":
            return None
        if image.kind == "path":
            return image.path
        declared = fleet.images[image.name]
        if declared.builder == "builtin":
            return None
        if not declared.path.exists():
            raise ImageError(f"the image {image.name} is not built", hint=f"unhinged img build {image.name}")
        return declared.path

    def choose_boot(self) -> Boot:
        vm = self._vm
        mode = vm.boot or self._guess_mode()
        if mode == "iso":
            if vm.iso is None and not self._is_builtin:
                raise ConfigError('boot = "iso" needs an iso', key=f"vm.{vm.name}.boot", hint="name one: iso = …")
            return IsoBoot(media.check_iso(vm.iso if vm.iso is not None else get_builtin_file("unhinged.iso")))
        if mode == "disk":
            return DiskBoot()
        if vm.kernel is not None:
            initrd = media.check_initrd(vm.initrd) if vm.initrd is not None else None
            return DirectBoot(media.check_kernel(vm.kernel), initrd, build_command_line(self._append))
        if not self._is_builtin:
            raise ConfigError('boot = "direct" needs a kernel', key=f"vm.{vm.name}.boot", hint="name one: kernel = …")
        line = f"{read_manifest()['kernel_command_line']} {self._append}".strip()
        return DirectBoot(get_builtin_file("vmlinux"), get_builtin_file("initrd"), line)

    def _guess_mode(self) -> Literal["direct", "iso", "disk"]:
        if self._vm.iso is not None:
            return "iso"
        return "direct" if self._vm.kernel is not None or self._is_builtin else "disk"

    def choose_disks(self) -> tuple[Disk, ...]:
        disks = [self._choose_disk(disk) for disk in self._vm.disks]
        if self._base is not None:
            self._base_format = media.check_disk(self._base, is_written=False, key="IMAGE")
            disks.insert(0, Disk(self._files.overlay, "qcow2"))
        elif self._is_builtin and not disks:
            disks.append(Disk(self._files.data_disk, "qcow2", serial=DATA_DISK_SERIAL))
        return tuple(disks)

    def _choose_disk(self, disk: DiskDeclaration) -> Disk:
        if disk.size_bytes is not None and not disk.path.exists():
            if not disk.path.parent.is_dir():
                raise ImageError(f"{disk.path} cannot be made: there is no such directory", hint="make the directory")
            form: DiskFormat = disk.format or "qcow2"
        else:
            form = media.check_disk(disk.path, is_written=not disk.read_only)
            if disk.format is not None and disk.format != form:
                raise ImageError(f"{disk.path} is {form}, not {disk.format}", hint="leave out its format")
        return Disk(disk.path, form, disk.interface, disk.serial, disk.read_only)

    async def make(self) -> None:
        """Make what is not there yet."""
        if self._vm.firmware == "uefi":
            await copy_firmware_variables(self._files)
        for disk in self._vm.disks:
            if disk.size_bytes is not None and not disk.path.exists():
                await make_disk(disk.path, disk.size_bytes, form=disk.format or "qcow2", qemu_img=self._qemu_img)
        if self._base is not None:
            await make_overlay(self._files.overlay, self._base, self._base_format, qemu_img=self._qemu_img)
        elif self._is_builtin and not self._vm.disks and not self._files.data_disk.exists():
            await make_data_disk(self._files.data_disk)


def find_ssh_port(vm: VMDeclaration, ports: Mapping[str, object]) -> int | None:
    """Return the port of the host that leads to the ssh of `vm`; None when there is none, or it is not picked yet."""
    if vm.ssh is None or vm.ssh.port is None or vm.ssh.is_elsewhere:
        return None
    if vm.ssh.port == "auto":
        port = ports.get(Forward("auto", vm.ssh.vm_port).key)
        return port if isinstance(port, int) else None
    return vm.ssh.port
