"""The options the three launchers share (floor 6); the Makefile's variables map to them one to one."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from control.errors import ConfigError
from control.units import parse_size_bytes

NETWORKS = ("user", "restricted", "none")


@dataclass(frozen=True)
class LaunchOptions:
    """What a user asked for, before anything of it has been looked at on this host.

    Attributes:
        until: Matched against the console as bytes, line by line; None to run until the guest ends.
        timeout_s: None for no limit.
        attach: Take over a VM that was left running, rather than start one.
    """

    iso: Path | None = None
    disk: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    boot: str = ""
    firmware: str = "bios"
    machine: str = "pc"
    memory: str = "1G"
    cpus: str = "2"
    accel: str = "auto"
    network: str = "user"
    display: str = "std"
    share: Path | None = None
    name: str = ""
    until: re.Pattern[bytes] | None = None
    timeout_s: float | None = None
    boot_watch: bool = True
    attach: bool = False
    qemu: str = ""
    qemu_args: tuple[str, ...] = field(default=())
    debug: bool = False

    @property
    def memory_bytes(self) -> int:
        return parse_size_bytes(self.memory, key="MEMORY")

    @property
    def cpu_count(self) -> int:
        if not (self.cpus.strip().isdecimal() and len(self.cpus) < 10):
            raise ConfigError(
                f"CPUS={self.cpus[:80]!r} is not a number of CPUs", key="CPUS", hint="write it like CPUS=2"
            )
        return int(self.cpus)


def build_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of one launcher."""
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    what = parser.add_argument_group("what to boot (nothing: the built-in guest)")
    what.add_argument("--iso", metavar="FILE", help="boot this ISO from a CD drive")
    what.add_argument("--disk", metavar="FILE", help="a qcow2 or raw disk; booted when it is all there is")
    what.add_argument("--kernel", metavar="FILE", help="boot this bzImage or PVH vmlinux directly")
    what.add_argument("--initrd", metavar="FILE", help="the initial RAM disk for --kernel")
    what.add_argument("--append", metavar="TEXT", default="", help="more words for the kernel's command line")
    what.add_argument("--boot", choices=("direct", "iso", "disk"), help="which of them to boot from")
    what.add_argument("--firmware", choices=("bios", "uefi"), default="bios", help="for ISO and disk (default: bios)")
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--name", metavar="NAME", default="", help="name of the VM (default: the next free one)")
    machine.add_argument("--memory", metavar="SIZE", default="1G", help="guest memory (default: 1G)")
    machine.add_argument("--cpus", metavar="N", default="2", help="guest CPUs (default: 2)")
    machine.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto", help="default: auto")
    machine.add_argument("--machine", choices=("pc", "q35"), default="pc", help="QEMU machine type (default: pc)")
    machine.add_argument("--network", choices=NETWORKS, default="user", help="default: user")
    machine.add_argument("--display", choices=("std", "none"), default="std", help="VGA card or none (default: std)")
    machine.add_argument("--share", metavar="DIR", help="share this directory with the guest (9p, tag 'host')")
    machine.add_argument("--qemu", metavar="PROGRAM", default="", help="the QEMU to run (default: QEMU=, or PATH)")
    machine.add_argument("--qemu-arg", metavar="WORD", action="append", default=[], help="a word for QEMU itself")
    run = parser.add_argument_group("the run")
    run.add_argument("--until", metavar="REGEX", help="end with success once the console shows this")
    run.add_argument("--timeout", metavar="SECONDS", help="end with exit code 124 after this long")
    run.add_argument("--no-boot-watch", action="store_true", help="do not judge a guest that fails to come up")
    run.add_argument("--debug", action="store_true", help="say on stderr what is done")
    return parser


def read_options(namespace: argparse.Namespace) -> LaunchOptions:
    """Turn parsed arguments into options; an empty value means that it was not given.

    Raises:
        ConfigError: A value cannot be read; names it.
    """
    return LaunchOptions(
        iso=_path(namespace.iso),
        disk=_path(namespace.disk),
        kernel=_path(namespace.kernel),
        initrd=_path(namespace.initrd),
        append=namespace.append,
        boot=namespace.boot or "",
        firmware=namespace.firmware,
        machine=namespace.machine,
        memory=namespace.memory,
        cpus=namespace.cpus,
        accel=namespace.accel,
        network=namespace.network,
        display=namespace.display,
        share=_path(namespace.share),
        name=namespace.name,
        until=_pattern(namespace.until),
        timeout_s=_seconds(namespace.timeout),
        boot_watch=not namespace.no_boot_watch,
        attach=getattr(namespace, "attach", False),
        qemu=namespace.qemu,
        qemu_args=tuple(namespace.qemu_arg),
        debug=namespace.debug,
    )


def _path(text: str | None) -> Path | None:
    # As a shell does it: a name that begins with a ~ of nobody stands for itself.
    return Path(os.path.expanduser(text)).absolute() if text else None  # noqa: PTH111 - Path.expanduser() would raise


def _pattern(text: str | None) -> re.Pattern[bytes] | None:
    if not text:
        return None
    try:
        return re.compile(os.fsencode(text), re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"UNTIL={text[:80]!r} is not a regular expression: {error}",
            key="UNTIL",
            hint="a character that means itself is written with a backslash, as in 'ready \\(ok\\)'",
        ) from error


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e7:
        raise ConfigError(f"TIMEOUT={text!r} is not a time", key="TIMEOUT", hint="write seconds, as in TIMEOUT=60")
    return seconds
