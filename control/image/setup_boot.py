"""The one boot in which an image sets itself up (floor 2): QEMU until the guest has powered itself off."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from control.errors import BootError, HostError, ImageBuildError, LaunchError, WaitTimeout
from control.image.workshop import Machine, Workshop, show_lines
from control.spec.image import ImageDeclaration
from control.spec.template import Renderer, TemplateError
from control.spec.vm_spec import CPU_MODELS, SANDBOX
from control.units import KIB, format_duration

MEMORY_MIB = 1024
CPUS = 2

OURS_TAKING_ONE = ("-serial", "-monitor", "-qmp", "-pidfile")
OURS_ALONE = ("-daemonize", "-no-shutdown")
"""Words of the user's that ours stand for: qqmgr's own example sends the console to a terminal, and ours is a file."""

_GREET = b'{"execute": "qmp_capabilities"}\n'
"""QEMU tells of nothing before (docs/interop/qmp-spec.rst, "Capabilities Negotiation")."""

_TAIL_BYTES = 16 * KIB
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()][0-9A-B]|[=>78cM])")


def boot_once(image: ImageDeclaration, shop: Workshop, disk: Path, iso: Path, env: Mapping[str, Any]) -> None:
    """Boot `disk` with `iso` until the guest powers itself off. The console is kept as `build.log`.

    Raises:
        ConfigError: A variable in `build_args` is not defined.
        HostError: There is no QEMU, or no room on the disk.
        LaunchError: QEMU refused, or died.
        BootError: The guest did something else than power off.
        WaitTimeout: It did not in time; QEMU is killed.
    """
    log = image.path.parent / "build.log"
    log.unlink(missing_ok=True)
    machine = shop.find_machine()
    pid_file = disk.with_name("pid")
    argv = [machine.qemu, *_build_words(image, shop, machine, disk, iso, env), *_build_ours(log, pid_file)]
    limit = shop.boot_timeout_s
    shop.note(f"{image.name}: setting it up in a VM, for at most {format_duration(limit)}; its console: {log}")
    with shop.keep(pid_file):
        done = shop.run(argv, timeout_s=limit, stdin=_GREET, on_stdout=_tells_of_full_disk)
    seen = _read_tail(log)
    events = list(_read_events(done.stdout))
    if _tells_of_full_disk(done.stdout):
        raise HostError(f"there was no room left in {disk.parent}", hint="make room there, or ask for a smaller image")
    if done.timed_out:
        raise WaitTimeout(
            f"{image.name} to power itself off",
            limit,
            last_seen=seen or ("its console shows nothing",),
            hint="end its user-data with power_state: {mode: poweroff}; or give it more time with --timeout",
        )
    if done.return_code != 0:
        raise LaunchError(
            f"QEMU ended with {_show_code(done.return_code)} while it set the image up",
            argv=argv,
            return_code=done.return_code,
            output_tail=show_lines(done.stderr) or seen,
            hint="look at build_args" if image.build_args else "",
        )
    reasons = [event["data"].get("reason") for event in events if event["event"] == "SHUTDOWN"]
    if reasons != ["guest-shutdown"]:
        raise BootError(
            f"the guest did not power itself off: QEMU tells of {', '.join(map(str, reasons)) or 'no shutdown'}",
            code="build-shutdown",
            seen=seen,
            hint="a panic is a reset, and so is power_state: {mode: reboot}; it is to be poweroff",
        )


def _build_words(
    image: ImageDeclaration, shop: Workshop, machine: Machine, disk: Path, iso: Path, env: Mapping[str, Any]
) -> list[str]:
    """The user's words, or what does without them."""
    if not image.build_args:
        return _build_default_words(machine, disk, iso)
    renderer = Renderer({**shop.variables, **env, "img_self": str(disk), "cloud_init_iso": str(iso)})
    try:
        words = [renderer.render_value(word) for word in image.build_args]
    except TemplateError as error:
        error.args = (f"build_args: {error}",)
        raise
    if any("\0" in word for word in words):
        raise ImageBuildError("build_args holds a NUL character", hint="no program can be given one")
    return _leave_out_ours(words)


def _build_default_words(machine: Machine, disk: Path, iso: Path) -> list[str]:
    # Both are virtio, because the kernels of cloud images know little else. A build that dies is thrown away, so the
    # disk need not be safe before its end.
    return [
        *("-nodefaults", "-no-user-config", "-machine", "pc,graphics=off", "-accel", machine.accelerator),
        *("-cpu", CPU_MODELS[machine.accelerator], "-m", str(MEMORY_MIB), "-smp", str(CPUS)),
        *("-drive", f"file={_escape(disk)},format=qcow2,if=virtio,cache=unsafe,discard=unmap"),
        *("-drive", f"file={_escape(iso)},format=raw,if=virtio,readonly=on"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,romfile="),
        *("-device", "virtio-rng-pci", "-sandbox", SANDBOX),
    ]


def _build_ours(log: Path, pid_file: Path) -> list[str]:
    return [
        *("-pidfile", str(pid_file)),
        *("-display", "none", "-no-reboot", "-serial", f"file:{log}", "-monitor", "none"),
        *("-qmp", "stdio"),  # its last words say why it ended
    ]


def _leave_out_ours(words: Sequence[str]) -> list[str]:
    kept, waiting = [], iter(words)
    for word in waiting:
        option = word[1:] if word.startswith("--") else word
        if option in OURS_TAKING_ONE:
            next(waiting, None)
        elif option not in OURS_ALONE:
            kept.append(word)
    return kept


def _escape(path: Path) -> str:
    """A comma is doubled in a value (QEMU manual, "-drive")."""
    return str(path).replace(",", ",,")


def _tells_of_full_disk(output: bytes) -> bool:
    """QEMU stops the guest then, until there is room (QEMU manual, "-drive", werror=enospc): it would not end."""
    # Each event is one short line, and QEMU writes it at once.
    return any(event["event"] == "BLOCK_IO_ERROR" and event["data"].get("nospace") for event in _read_events(output))


def _read_events(output: bytes) -> Iterator[dict[str, Any]]:
    """The events that QEMU told of; its answers, and what is none of its, are passed over."""
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # a device of the user's may write to stdout, too
        if isinstance(said, dict) and "event" in said:
            yield {"data": {}, **said}


def _read_tail(log: Path) -> tuple[str, ...]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return show_lines(_ESCAPES.sub(b"", file.read()))
    except FileNotFoundError:  # QEMU did not come so far
        return ()


def _show_code(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
