"""From options to a specification (floor 4): files are looked at, the accelerator is chosen, the data disk is made."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from control.accel.choice import AcceleratorChoice, choose_accelerator
from control.errors import ConfigError, HostError, ImageError
from control.host import find_qemu, look_around
from control.launch import files as check
from control.launch.options import LaunchOptions
from control.paths import IMAGE, InstanceFiles, cache_directory
from control.process.run import run
from control.spec import DirectBoot, Disk, DiskBoot, IsoBoot, Share, VMSpec
from control.spec.network import Network
from control.spec.vm_spec import Boot
from control.units import MIB, format_size

DATA_DISK_SIZE = "8G"
DATA_DISK_SERIAL = "unhinged-data"
"""The guest formats a blank disk with this serial number, and no other (docs/architecture.md)."""

QEMU_IMG_TIMEOUT_S = 30.0
OVMF_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
"""Debian package ovmf 2022.11."""


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
    _check_memory(options.memory_bytes)
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
        await _copy_firmware_variables(files)
    if any(disk.path == files.data_disk for disk in disks) and not files.data_disk.exists():
        await _make_data_disk(files.data_disk)
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
        iso = options.iso or _builtin_file("unhinged.iso")
        return IsoBoot(check.check_iso(iso)), options.iso is None
    if mode == "disk":
        if options.disk is None:
            raise ConfigError("BOOT=disk needs a disk", key="DISK", hint="name one: DISK=image.qcow2")
        return DiskBoot(), False
    if options.kernel is None:
        manifest = _read_manifest()
        line = f"{manifest['kernel_command_line']} {options.append}".strip()
        return DirectBoot(_builtin_file("vmlinux"), _builtin_file("initrd"), line), True
    initrd = check.check_initrd(options.initrd) if options.initrd else None
    return DirectBoot(check.check_kernel(options.kernel), initrd, _command_line(options.append)), False


def _command_line(append: str) -> str:
    """The command line for a kernel of the user's: with our console, unless they name one."""
    return append if "console=" in append else f"console=ttyS0 {append}".strip()


def _read_manifest() -> dict[str, Any]:
    path = _builtin_file("image.json")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise ImageError(f"{path} is damaged: {error}", hint="build the image again: make clean image") from error
    return manifest


def _builtin_file(name: str) -> Path:
    path = IMAGE / name
    if not path.is_file():
        raise ImageError(f"the built-in guest image is not built: {path} is missing", hint="make image")
    return path


def _choose_disks(options: LaunchOptions, files: InstanceFiles, *, builtin: bool) -> tuple[Disk, ...]:
    if options.disk is not None:
        return (Disk(options.disk, check.check_disk(options.disk)),)
    if not builtin:
        return ()
    return (Disk(files.data_disk, "qcow2", serial=DATA_DISK_SERIAL),)


async def _make_data_disk(path: Path) -> None:
    """Make a fresh, sparse data disk; a half-made one never gets the final name."""
    partial = path.with_suffix(".partial")
    made = await run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(partial), DATA_DISK_SIZE], timeout_s=QEMU_IMG_TIMEOUT_S
    )
    if made.return_code != 0:
        partial.unlink(missing_ok=True)
        words = made.stderr.decode("utf-8", "replace").strip()
        raise HostError(f"the data disk {path} cannot be made: {words}", hint="make room on that disk")
    partial.replace(path)


def _choose_share(options: LaunchOptions) -> Share | None:
    if options.share is None:
        return None
    path = check.check_share(options.share)
    return Share(path, security_model="mapped-xattr" if _takes_attributes(path) else "mapped-file")


def _takes_attributes(directory: Path) -> bool:
    """Whether the file system keeps user attributes, in which 9p then stores the guest's owners and modes."""
    try:
        os.setxattr(directory, "user.unhinged.test", b"")
        os.removexattr(directory, "user.unhinged.test")
    except OSError:
        return False
    return True


async def _copy_firmware_variables(files: InstanceFiles) -> None:
    if not (OVMF_CODE.exists() and OVMF_VARIABLES.exists()):
        raise HostError("the UEFI firmware OVMF is not installed", hint="apt-get install ovmf")
    if not files.firmware_variables.exists():
        shutil.copyfile(OVMF_VARIABLES, files.firmware_variables)


def _check_memory(memory_bytes: int) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory_bytes > total:
        raise HostError(
            f"the guest is to have {format_size(memory_bytes)} of memory, this host has {format_size(total)}",
            hint=f"ask for less: MEMORY={max(256, total // MIB // 4)}M",
        )
