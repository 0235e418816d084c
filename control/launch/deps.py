"""Installs the distribution's packages that are missing (floor 6; the Makefile's set-up targets call it).

    python3 -m control.launch.deps essential|test|guests|lua|browser [--check]
    python3 -m control.launch.deps python

The first form installs what `make start`, the tests, packages and Debian images, or Lua need here and do not find; with
`--check` it only says so. The second prints the interpreter to make the virtual environment with.

It runs with the system's Python before there is a virtual environment, so it uses the standard library only and starts
its programs itself, without `control/process`: that needs a newer Python than a fresh machine may have. With nothing
to do it is silent and quick, because every `make start` asks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from control import host
from control.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from control.host import Lack, Surroundings

USAGE = """usage: python3 -m control.launch.deps essential|test|guests|lua|browser [--check]
       python3 -m control.launch.deps python"""
IMAGE_MANIFEST = Path(__file__).resolve().parents[2] / "build" / "image" / "image.json"

LOCK_WAIT_S = 600
"""How long apt waits for another apt to finish; unattended upgrades after a fresh installation take minutes."""

# Source: apt.conf(5), apt-get(8): Acquire::Retries, Acquire::http::Timeout; apt 1.9.11 on: DPkg::Lock::Timeout.
_APT_OPTIONS = (
    *("-q", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}"),
    *("-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=60", "-o", "Acquire::https::Timeout=60"),
)
_STALE_LISTS = (
    "Unable to locate package",
    "has no installation candidate",
    "404",
    "Failed to fetch",
    "Unable to fetch",
)
_PURPOSES = {"essential": "make start", "test": "the tests", "guests": "packages of the agent and Debian images",
             "lua": "Lua interpreters", "browser": "the tests of web pages and viewers"}  # fmt: skip
_LISTS_LOCKED = "/var/lib/apt/lists/lock"
_OUTPUT_TAIL_LINES = 200


class Apt(NamedTuple):
    """How apt-get is started here.

    Attributes:
        prefix: What goes before `apt-get`: nothing as root, or sudo and the environment it would drop.
        shown_prefix: The same as a person would type it.
    """

    prefix: tuple[str, ...]
    shown_prefix: str


def main(arguments: Sequence[str], surroundings: Surroundings | None = None) -> int:
    """Do what the command line says; return the exit code."""
    where = surroundings or host.look_around()
    if list(arguments) == ["python"]:
        return _print_python(where)
    options = [argument for argument in arguments if argument != "--check"]
    if options not in (["essential"], ["test"], ["guests"], ["lua"], ["browser"]) or len(arguments) > 2:
        _say(USAGE)
        return EXIT_USAGE
    try:
        return install(options[0], where, check_only="--check" in arguments)
    except KeyboardInterrupt:
        _say("deps: interrupted; run the same command again to go on")
        return EXIT_INTERRUPTED


def install(group: str, where: Surroundings, *, check_only: bool = False) -> int:
    """Install what `group` lacks, saying what and why; return 0 when nothing is missing any more."""
    lacks = host.find_lacks(group, where)
    update = needs_lists(where)
    if not lacks and not update:
        return EXIT_OK
    _say_what_is_missing(group, lacks, update)
    packages = [lack.package for lack in lacks]
    if host.find_program("apt-get", where.search_path) is None:
        return _say_by_hand(where, lacks)
    if check_only:
        _say(f"install with: {_command(_shown_prefix(), packages, update=update)}")
        return EXIT_ERROR
    apt = _find_way_to_root(where)
    if apt is None:
        _say("deps: this needs root, and there is no sudo here. As root, run:")
        _say(f"  {_command('', packages, update=update)}")
        return EXIT_ERROR
    if not _run_apt(apt, packages, update=update):
        _say("deps: the packages could not be installed; the reason is above. When it is gone, run:")
        _say(f"  {_command(apt.shown_prefix, packages, update=True)}")
        if host.read_distribution(Path(where.root, "etc/os-release")).identity == "ubuntu":
            _say("deps: on Ubuntu some of them are in the section universe: sudo add-apt-repository universe")
        return EXIT_ERROR
    return _check_again(group, where)


def _check_again(group: str, where: Surroundings) -> int:
    left = host.find_lacks(group, where)
    for lack in left:
        _say(f"deps: {lack.package} was installed, but {lack.looked_for} still is not there")
    if left:
        _say("deps: is PATH complete? It is", f"  {where.search_path}")
        return EXIT_ERROR
    _say("deps: done")
    return EXIT_OK


def needs_lists(where: Surroundings) -> bool:
    """Tell whether apt must be asked for its lists: the guest image is built from packages they name."""
    if IMAGE_MANIFEST.exists() or host.find_program("apt-get", where.search_path) is None:
        return False
    try:
        names = os.listdir(f"{where.root}var/lib/apt/lists")  # noqa: PTH208 - strings on the fast path
    except OSError:
        return True
    return not any("_Packages" in name for name in names)


def _find_way_to_root(where: Surroundings) -> Apt | None:
    kept = ["DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"]
    # sudo drops these; a machine behind a proxy would otherwise wait for its time-outs.
    kept += [f"{name}={os.environ[name]}" for name in ("http_proxy", "https_proxy", "no_proxy") if name in os.environ]
    if os.geteuid() == 0:
        return Apt(("env", *kept, "apt-get"), "")
    sudo = host.find_program("sudo", where.search_path)
    if sudo is None:
        return None
    # Without a terminal nobody can type a password: sudo must refuse at once instead of waiting.
    ask = () if _has_terminal() else ("-n",)
    return Apt((sudo, *ask, "env", *kept, "apt-get"), "sudo ")


def _shown_prefix() -> str:
    return "" if os.geteuid() == 0 else "sudo "


def _has_terminal() -> bool:
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:
        return False  # closed


def _run_apt(apt: Apt, packages: Sequence[str], *, update: bool) -> bool:
    """Update the lists if need be, install, and try once more with fresh lists when they were the reason to fail."""
    if update and not _update(apt):
        return False
    if not packages:
        return True
    _say(f"running: {apt.shown_prefix}apt-get install --yes --no-install-recommends {' '.join(packages)}")
    argv = [*apt.prefix, *_APT_OPTIONS, "install", "--yes", "--no-install-recommends", *packages]
    code, output = _run(argv)
    if code != 0 and not update and any(sign in output for sign in _STALE_LISTS):
        if not _update(apt):
            return False
        code, _ = _run(argv)
    return code == 0


def _update(apt: Apt) -> bool:
    """Fetch apt's lists, waiting while another apt holds them: DPkg::Lock::Timeout does not cover that lock."""
    import time

    _say(f"running: {apt.shown_prefix}apt-get update")
    deadline = time.monotonic() + LOCK_WAIT_S
    pause_s = 1.0
    while True:
        code, output = _run([*apt.prefix, *_APT_OPTIONS, "update"])
        if code == 0 or _LISTS_LOCKED not in output or time.monotonic() > deadline:
            return code == 0
        _say("deps: another program is using apt's lists; waiting for it")
        # The lock is root's, and sudo gives no way to wait on it: looking again is all that can be done.
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 15.0)


def _run(argv: Sequence[str]) -> tuple[int, str]:
    """Run a program to its end, showing what it says on stderr as it comes; return its exit code and last lines.

    There is no deadline: apt bounds its own waits for locks and the network, and killing dpkg half-way would leave
    the system's packages broken.
    """
    import subprocess
    from collections import deque

    tail: deque[str] = deque(maxlen=_OUTPUT_TAIL_LINES)
    try:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        )
    except OSError as error:
        _say(f"deps: {argv[0]} cannot be started: {error.strerror}")
        return 127, ""
    with child:
        if child.stdout is not None:
            for line in child.stdout:
                # dpkg counts percents and apt repeats that it waits; once is enough.
                if line not in tail and not line.startswith("(Reading database ... "):
                    _say(f"  {line.rstrip()}")
                tail.append(line)
    return child.returncode, "".join(tail)


def _command(prefix: str, packages: Sequence[str], *, update: bool) -> str:
    steps = [f"{prefix}apt-get update"] if update else []
    if packages:
        steps.append(f"{prefix}apt-get install --yes --no-install-recommends {' '.join(packages)}")
    return " && ".join(steps)


def _say_what_is_missing(group: str, lacks: Sequence[Lack], needs_lists: bool) -> None:
    purpose = _PURPOSES[group]
    if lacks:
        noun = "package that is" if len(lacks) == 1 else "packages that are"
        _say(f"{purpose} need{'s' if group == 'essential' else ''} {len(lacks)} {noun} not installed here:")
    width = max((len(lack.package) for lack in lacks), default=0)
    for lack in lacks:
        _say(f"  {lack.package:{width}}  it {lack.why} ({lack.looked_for} is missing)")
    if needs_lists:
        _say("apt has no package lists here; the guest image is built from the packages they name")


def _say_by_hand(where: Surroundings, lacks: Sequence[Lack]) -> int:
    name = host.read_distribution(Path(where.root, "etc/os-release")).name or "this system"
    _say(f"deps: {name} has no apt-get. Install what brings these, then run the command again:")
    for lack in lacks:
        _say(f"  {lack.looked_for}  (Debian's package {lack.package})")
    return EXIT_ERROR


def _print_python(where: Surroundings) -> int:
    python = host.find_python(where)
    if python is None:
        _say("deps: no Python here is new enough and can make a virtual environment; run: make deps-install-essential")
        return EXIT_ERROR
    print(python)
    return EXIT_OK


def _say(*lines: str) -> None:
    """Write lines to stderr; a reader that went away must not keep dpkg from finishing."""
    try:
        for line in lines:
            print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        # Nobody reads any more. What is still buffered would fail once more when Python ends, and change the exit code.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
