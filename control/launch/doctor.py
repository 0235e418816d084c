"""Checks this host and prints each lack with its cure (floor 6; `make doctor`).

    python3 -m control.launch.doctor [--json]

It ends with 0 when `make start` can work; a warning tells of something slower, optional, or that `make start` will
do by itself. It runs with the system's Python and without the virtual environment, because that may be what is
lacking, so it starts its programs itself, as `deps.py` does.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from control import host, paths
from control.accel.kvm import KvmHost, probe_kvm
from control.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ControlError
from control.host import Surroundings
from control.launch import deps
from control.streams import Completed
from control.units import GIB, MIB, format_size

GUEST_MEMORY_BYTES = GIB
"""What a guest gets when MEMORY= does not say otherwise (`VMSpec.memory_bytes`)."""

GUEST_SMALLEST_MIB = 256
"""Below this the built-in guest does not come up comfortably."""

QEMU_OWN_BYTES = 150 * MIB
"""What QEMU takes beside the guest's memory under TCG: its code cache, devices and libraries."""

IMAGE_BUILD_BYTES = 700 * MIB
"""What fetching, unpacking and packing the guest image needs at its peak."""

INSTANCE_BYTES = 64 * MIB
"""What a VM's logs and fresh disk need to begin with."""

STEP_DEADLINE_S = 20.0
"""How long one question to a program may take; a cold disk is slow, silence is a fault."""


class Check(NamedTuple):
    """One answer.

    Attributes:
        name: What was looked at.
        status: `ok`, `warn`, or `lack` when `make start` cannot work.
        found: What was seen.
        cure: What to do about it; empty for `ok`.
    """

    name: str
    status: str
    found: str
    cure: str = ""


class Place(NamedTuple):
    """The checkout that is examined, and where its VMs live."""

    checkout: Path
    working_directory: Path

    @property
    def venv_python(self) -> Path:
        return self.checkout / paths.VENV_PYTHON.relative_to(paths.ROOT)

    @property
    def image(self) -> Path:
        return self.checkout / "build" / "image" if self.is_checkout else paths.IMAGE

    @property
    def is_checkout(self) -> bool:
        """Whether there is a `make` to be advised; an installed package has none."""
        return self.checkout != paths.ROOT or paths.IS_CHECKOUT


def main(arguments: Sequence[str], surroundings: Surroundings | None = None, place: Place | None = None) -> int:
    """Run all checks, print them, and return the exit code."""
    if list(arguments) not in ([], ["--json"]):
        print("usage: python3 -m control.launch.doctor [--json]", file=sys.stderr)
        return EXIT_USAGE
    where = surroundings or host.look_around()
    try:
        checks = asyncio.run(examine(where, place or Place(paths.ROOT, Path.cwd()), KvmHost()))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    can_start = all(check.status != "lack" for check in checks)
    try:
        print(_as_json(checks, can_start) if arguments else _as_text(checks, can_start), flush=True)
    except BrokenPipeError:
        # The reader left; the answer is in the exit code. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_OK if can_start else EXIT_ERROR


async def examine(where: Surroundings, place: Place, kvm_host: KvmHost) -> list[Check]:
    """Make all checks, those first on which the others depend."""
    environment = await check_venv(place) if place.is_checkout else check_installation()
    checks = [check_python(where), environment, check_apt(where)]
    checks += check_packages(where, place)
    checks += await check_qemu(where, kvm_host)
    checks += [judge_memory(host.find_memory_available_bytes()), check_cpus()]
    checks += [check_directory("build/", place.image.parent, IMAGE_BUILD_BYTES if not _has_image(place) else MIB)]
    checks += [check_directory(".unhinged/", paths.runtime_directory(place.working_directory), INSTANCE_BYTES)]
    checks += [check_image(where, place), check_terminal()]
    return checks


def check_python(where: Surroundings) -> Check:
    version = f"{'.'.join(map(str, where.python_version))} ({where.python})"
    found = host.find_python(where)
    if found == where.python:
        return Check("Python", "ok", version)
    if found:
        return Check("Python", "warn", f"{version} cannot be used", f"make start uses {found}")
    if where.python_version >= host.PYTHON_MINIMUM:
        return Check("Python", *_cured_by_start(where), f"{version} has no ensurepip", "make deps-install-essential")
    minimum = ".".join(map(str, host.PYTHON_MINIMUM))
    cure = f"make deps-install-essential, or install Python {minimum} or newer"
    return Check("Python", *_cured_by_start(where), f"{version} is too old; {minimum} or newer is needed", cure)


def _cured_by_start(where: Surroundings) -> tuple[str]:
    """Say how bad a missing package is: `make start` installs it where it can."""
    can_install = host.find_program("apt-get", where.search_path) is not None and (
        os.geteuid() == 0 or host.find_program("sudo", where.search_path) is not None
    )
    return ("warn",) if can_install else ("lack",)


async def check_venv(place: Place) -> Check:
    python = place.venv_python
    if not python.exists():
        return Check("environment", "warn", f"no {python}", "make setup-python (make start does it by itself)")
    modules = read_dependencies(place.checkout / "pyproject.toml")
    answer = await run_plainly([str(python), "-c", "\n".join(f"import {name}" for name in modules)])
    if answer.return_code == 0:
        return Check("environment", "ok", f"{python.parent.parent.name} has {', '.join(modules)}")
    words = _last_line(answer.stderr) or "it does not answer"
    return Check("environment", "warn", f"{python} does not work: {words}", "make distclean, then make setup-python")


def check_installation() -> Check:
    return Check("environment", "ok", f"the package is installed in {paths.ROOT}")


def read_dependencies(pyproject: Path) -> list[str]:
    """Return the names by which the project's dependencies are imported; empty when the file cannot be read.

    Read without a TOML parser, which Python has only from 3.11 on; each dependency is one quoted line.
    """
    try:
        text = pyproject.read_text(encoding="utf-8")
    except OSError:
        return []
    block = re.search(r"^dependencies = \[(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r'^\s*"([A-Za-z0-9._-]+)', block.group(1), flags=re.MULTILINE) if block else []
    return [name.replace("-", "_") for name in names]


def check_apt(where: Surroundings) -> Check:
    if host.find_program("apt-get", where.search_path) is None:
        name = host.read_distribution(Path(where.root, "etc/os-release")).name or "this system"
        return Check("apt", "warn", f"{name} has no apt-get", "packages must be installed by hand")
    if os.geteuid() != 0 and host.find_program("sudo", where.search_path) is None:
        return Check("apt", "warn", "apt-get, but no way to root", "install missing packages as root")
    if deps.needs_lists(where):
        return Check("apt", "warn", "apt-get without package lists", "apt-get update (make start does it by itself)")
    return Check("apt", "ok", "apt-get" if os.geteuid() == 0 else "apt-get through sudo")


def check_packages(where: Surroundings, place: Place) -> list[Check]:
    """Look for every program and file in the table, in one line for each package that is missing."""
    essential = host.find_lacks("essential", where)
    known = {lack.package for lack in essential}
    checks = []
    for lack in essential:
        if lack.package != "qemu-system-x86" and not lack.package.endswith("-venv"):  # these have lines of their own
            found = f"{lack.looked_for} is missing; it {lack.why}"
            if place.is_checkout:
                checks.append(Check(lack.package, *_cured_by_start(where), found, "make deps-install-essential"))
            else:
                checks.append(Check(lack.package, "lack", found, f"apt-get install {lack.package}"))
    if not place.is_checkout:
        return checks or [Check("tools", "ok", "all programs for the image and the ISO")]
    checks += [
        Check(lack.package, "warn", f"not installed; it {lack.why}", "make test installs it")
        for lack in host.find_lacks("test", where)
        if lack.package not in known
    ]
    return checks or [Check("tools", "ok", "all programs for the image, the ISO and the tests")]


async def check_qemu(where: Surroundings, kvm_host: KvmHost) -> list[Check]:
    try:
        binary = host.find_qemu(where)
    except ControlError as error:
        status = "lack" if where.qemu else _cured_by_start(where)[0]
        return [Check("QEMU", status, str(error), error.hint)]
    try:
        version = await host.probe_qemu_version(binary, run_plainly)
    except ControlError as error:
        return [Check("QEMU", "lack", str(error), error.hint)]
    checks = [Check("QEMU", "ok", f"{'.'.join(map(str, version))} ({binary})"), await check_devices(binary)]
    verdict = await probe_kvm(binary, run_plainly, host=kvm_host)
    if verdict.works:
        return [*checks, Check("KVM", "ok", verdict.reason)]
    cure = (
        f"{verdict.hint}; without it guests run under TCG, slower" if verdict.hint else "guests run under TCG, slower"
    )
    return [*checks, Check("KVM", "warn", verdict.reason, cure)]


async def check_devices(binary: Path) -> Check:
    """See that this QEMU was built with what the guest is given."""
    answer = await run_plainly([str(binary), "-accel", "tcg", "-device", "help"])
    known = set(re.findall(r'^name "([^"]+)"', answer.stdout.decode("utf-8", "replace"), flags=re.MULTILINE))
    missing = [name for name in ("virtio-serial-pci", "virtio-blk-pci") if name not in known]
    cure = f"install the distribution's own QEMU, or name one with QEMU=/path/to/{host.QEMU_NAME}"
    if missing:
        return Check("devices", "lack", f"this QEMU has no {' and no '.join(missing)}", cure)
    if "virtio-9p-pci" not in known:
        return Check("9p share", "warn", "this QEMU has no virtio-9p-pci, so SHARE= cannot work", cure)
    return Check("devices", "ok", "virtio-serial, virtio-blk, virtio-9p")


def judge_memory(available: int | None) -> Check:
    """Hold the free memory against what the default guest takes."""
    if available is None:
        return Check("memory", "warn", "the kernel does not say how much is free", "nothing, if the VM starts")
    found = f"{format_size(available)} free"
    if available >= GUEST_MEMORY_BYTES + QEMU_OWN_BYTES:
        return Check("memory", "ok", found)
    found = f"{found}, a guest gets {format_size(GUEST_MEMORY_BYTES)}"
    fitting = (available - QEMU_OWN_BYTES) // MIB // 64 * 64
    if fitting < GUEST_SMALLEST_MIB:
        return Check("memory", "lack", found, "end something large")
    cure = f"end something large, or start a smaller guest: make start MEMORY={fitting}M"
    return Check("memory", "warn", found, cure)


def check_cpus() -> Check:
    cpus = host.count_cpus()
    return Check("processors", "ok", f"{cpus}")


def check_directory(name: str, path: Path, needed_bytes: int) -> Check:
    if not host.is_writable(path):
        return Check(name, "lack", f"{path} cannot be written", "run from a checkout of your own, or mend its rights")
    free = host.find_disk_free_bytes(path)
    if free is None:
        return Check(name, "warn", f"nobody says how much room {path} has", "see df")
    if free < needed_bytes:
        found = f"{format_size(free)} free, {format_size(needed_bytes)} needed"
        return Check(name, "lack", found, f"make room where {path} is")
    return Check(name, "ok", f"writable, {format_size(free)} free")


def check_image(where: Surroundings, place: Place) -> Check:
    if _has_image(place):
        return Check("guest image", "ok", str(place.image))
    distribution = host.read_distribution(Path(where.root, "etc/os-release"))
    known = sorted(file.stem for file in (place.checkout / "iso" / "distributions").glob("*.toml"))
    if f"{distribution.identity}-{distribution.version}" in known:
        cure = "make image (make start does it by itself)"
        if not place.is_checkout:
            cure = "unhinged img build builtin (unhinged run, and tests, do it by themselves)"
        return Check("guest image", "warn", "not built yet", cure)
    found = f"not built, and it cannot be built on {distribution.name or 'this system'}, only on {', '.join(known)}"
    return Check(
        "guest image", "lack", found, "bring build/image/ from such a system, or start another guest with ISO="
    )


def _has_image(place: Place) -> bool:
    return all((place.image / name).is_file() for name in ("image.json", "vmlinux", "initrd", "unhinged.iso"))


def check_terminal() -> Check:
    try:
        is_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    except ValueError:
        is_terminal = False
    if not is_terminal:
        return Check("terminal", "ok", "none: the launchers run without questions")
    size = os.get_terminal_size(sys.stdout.fileno())
    return Check("terminal", "ok", f"{os.environ.get('TERM', 'unknown')}, {size.columns}x{size.lines}")


async def run_plainly(
    argv: Sequence[str],
    *,
    timeout_s: float = STEP_DEADLINE_S,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Run a program to its end or its deadline, on any Python; a `Runner`.

    A program that cannot be started gives return code 127, as in a shell, and its reason on stderr.
    """
    return await asyncio.get_running_loop().run_in_executor(None, _run_blocking, list(argv), timeout_s, cwd, env)


def _run_blocking(argv: list[str], timeout_s: float, cwd: Path | None, env: Mapping[str, str] | None) -> Completed:
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: PLW1510 - the return code is judged by the caller
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, cwd=cwd, env=env
        )
    except subprocess.TimeoutExpired as expired:
        seconds = time.monotonic() - started
        return Completed(tuple(argv), None, expired.stdout or b"", expired.stderr or b"", seconds)
    except OSError as error:
        return Completed(tuple(argv), 127, b"", str(error).encode(), time.monotonic() - started)
    return Completed(tuple(argv), done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def _as_text(checks: Sequence[Check], can_start: bool) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:4}  {check.name:{width}}  {check.found}")
        if check.cure:
            lines.append(f"{'':4}  {'':{width}}  -> {check.cure}")
    what = "make start" if paths.IS_CHECKOUT else "unhinged"
    lines.append(f"{what} can work here" if can_start else f"{what} cannot work here; mend what says 'lack'")
    return "\n".join(lines)


def _as_json(checks: Sequence[Check], can_start: bool) -> str:
    return json.dumps({"can_start": can_start, "checks": [check._asdict() for check in checks]}, indent=2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
