"""From options to a specification (floor 6): files are looked at, the accelerator is chosen, the data disk is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, cast

from control.accel.choice import AcceleratorChoice, choose_accelerator
from control.errors import ConfigError
from control.host import find_qemu, look_around
from control.launch.options import LaunchOptions
from control.paths import InstanceFiles, cache_directory
from control.process.run import run
from control.spec.network import Network
from control.spec.vm_spec import Boot, DirectBoot, Disk, DiskBoot, IsoBoot, Share, VMSpec
from control.vm import media as check
from control.vm.provision import (
    DATA_DISK_SERIAL,
    OVMF_CODE,
    build_command_line,
    check_memory,
    copy_firmware_variables,
    get_builtin_file,
    make_data_disk,
    read_manifest,
    takes_attributes,
)


@dataclass(frozen=True)
class Prepared:
    """A specification that this host can run, and how its accelerator came to be chosen."""

    spec: VMSpec
    accelerator: AcceleratorChoice


async def prepare(options: LaunchOptions, files: InstanceFiles, *, with_agent: bool) -> Prepared:
    """Turn `options` into a specification for the instance at `files`.

    Raises:
        ConfigError, ImageError: What the user named is not possible; nothing was made.
        HostError: QEMU is missing or too old, KVM was asked for and does not work, or the host has no room.
    """
    check_memory(options.memory_bytes)
    boot, builtin = _choose_boot(options)
    disks, share = _choose_disks(options, files, builtin=builtin), _choose_share(options)
    qemu = find_qemu(look_around({**os.environ, "QEMU": options.qemu} if options.qemu else None))
    choice = await choose_accelerator(_accelerator(options.accel), qemu, run, cache_directory())
    spec = VMSpec(
        name=files.directory.name.removeprefix("vm."),
        boot=boot,
        accelerator=choice.name,
        memory_bytes=options.memory_bytes,
        cpus=options.cpu_count,
        machine=cast(Literal["pc", "q35"], options.machine),
        firmware=cast(Literal["bios", "uefi"], options.firmware),
        ovmf=OVMF_CODE if options.firmware == "uefi" else None,
        disks=disks,
        share=share,
        agent=with_agent,
        networks=(Network(cast(Literal["user", "restricted", "none"], options.network)),),
        display=cast(Literal["std", "none"], options.display),
        qemu=str(qemu),
        extra_args=options.qemu_args,
    )
    # Only now that nothing is left to refuse is anything made.
    if options.firmware == "uefi":
        await copy_firmware_variables(files)
    if any(disk.path == files.data_disk for disk in disks) and not files.data_disk.exists():
        await make_data_disk(files.data_disk)
    return Prepared(spec, choice)


def _accelerator(wish: str) -> Literal["auto", "kvm", "tcg"]:
    return cast(Literal["auto", "kvm", "tcg"], wish)


def _choose_boot(options: LaunchOptions) -> tuple[Boot, bool]:
    """Decide what to boot; the flag says whether it is the built-in guest."""
    if options.kernel and options.iso:
        raise ConfigError("KERNEL= and ISO= exclude each other", key="ISO", hint="name the one to boot")
    if options.initrd and not options.kernel:
        raise ConfigError("INITRD= needs KERNEL=", key="INITRD", hint="name the kernel it belongs to")
    mode = options.boot or ("iso" if options.iso else "disk" if options.disk and not options.kernel else "direct")
    if mode == "iso":
        if options.kernel:
            raise ConfigError("BOOT=iso does not start a KERNEL=", key="BOOT", hint="leave BOOT= or KERNEL= away")
        iso = options.iso or get_builtin_file("unhinged.iso")
        return IsoBoot(check.check_iso(iso)), options.iso is None
    if mode == "disk":
        if options.disk is None:
            raise ConfigError("BOOT=disk needs a disk", key="DISK", hint="name one: DISK=image.qcow2")
        return DiskBoot(), False
    if options.kernel is None:
        manifest = read_manifest()
        line = f"{manifest['kernel_command_line']} {options.append}".strip()
        return DirectBoot(get_builtin_file("vmlinux"), get_builtin_file("initrd"), line), True
    initrd = check.check_initrd(options.initrd) if options.initrd else None
    return DirectBoot(check.check_kernel(options.kernel), initrd, build_command_line(options.append)), False


def _choose_disks(options: LaunchOptions, files: InstanceFiles, *, builtin: bool) -> tuple[Disk, ...]:
    if options.disk is not None:
        return (Disk(options.disk, check.check_disk(options.disk)),)
    if not builtin:
        return ()
    return (Disk(files.data_disk, "qcow2", serial=DATA_DISK_SERIAL),)


def _choose_share(options: LaunchOptions) -> Share | None:
    if options.share is None:
        return None
    path = check.check_share(options.share)
    return Share(path, security_model="mapped-xattr" if takes_attributes(path) else "mapped-file")
