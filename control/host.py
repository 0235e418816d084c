"""What this host has, and what it needs (floor 1).

The table of needed programs and files, and the questions whose answers decide whether a VM can be started. Everything
here runs under any Python from 3.9 on and without the virtual environment, because it is asked before set-up:
`launch/deps.py` installs what is missing, `launch/doctor.py` reports it, the launchers find QEMU and count memory.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from control.errors import HostError

if TYPE_CHECKING:
    from control.streams import Runner

QEMU_NAME = "qemu-system-x86_64"
QEMU_MINIMUM = (6, 2)
"""The oldest QEMU we start: the first whose `-device` takes JSON, which alone carries every path unharmed.

Source: QEMU 6.2 change log, "-device ... accepts JSON".
"""

PYTHON_MINIMUM = (3, 11)
_PYTHON_NEWEST_KNOWN = 14
QEMU_VERSION_DEADLINE_S = 10.0
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")


class Requirement(NamedTuple):
    """One package of the distribution, and how to see that it is not needed.

    Attributes:
        package: Its name on Debian and Ubuntu.
        proofs: What must be there: for each entry, one of its alternatives. A name is a program in the search path,
            something with a slash is a file.
        why: What it is for, as the end of "it ...".
        group: `essential` for `make start`, `test` for what only tests use, `guests` for what makes
            packages of the agent and Debian images, `lua` for `control.lua`.
        only_on: The distributions that have it, as `debian-12`; empty for all.
    """

    package: str
    proofs: tuple[tuple[str, ...], ...]
    why: str
    group: str = "essential"
    only_on: tuple[str, ...] = ()


class Lack(NamedTuple):
    """A package that is missing here, its reason, and the program or file that was looked for."""

    package: str
    why: str
    looked_for: str


class Distribution(NamedTuple):
    """Who made this system: `ID`, `VERSION_ID`, `PRETTY_NAME` and `ID_LIKE` of os-release(5); empty when unknown."""

    identity: str
    version: str
    name: str
    like: str


class Surroundings(NamedTuple):
    """Where things are looked for; the defaults are this machine's.

    Attributes:
        search_path: Directories of programs, as in PATH.
        root: Prefix of every file looked for.
        qemu: The QEMU the user names with QEMU=; empty for the one in the search path.
        python: The interpreter that runs now.
        python_version: Its major and minor version.
    """

    search_path: str
    root: str = "/"
    qemu: str = ""
    python: str = sys.executable
    python_version: tuple[int, int] = (sys.version_info[0], sys.version_info[1])


REQUIREMENTS = (
    Requirement("qemu-system-x86", ((QEMU_NAME,),), "runs the virtual machine"),
    Requirement("qemu-utils", (("qemu-img",),), "makes and checks disk images"),
    Requirement("xorriso", (("xorriso",),), "writes the guest's ISO file"),
    Requirement("grub-common", (("grub-mkimage",),), "makes the ISO boot under UEFI"),
    Requirement("mtools", (("mcopy",), ("mformat",), ("mmd",)), "fills the ISO's UEFI partition"),
    Requirement("lz4", (("lz4",),), "packs the guest's file system"),
    Requirement("zstd", (("zstd",),), "unpacks the guest's kernel"),
    Requirement(
        "ovmf",
        (("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"),),
        "is the UEFI firmware under which the ISO is tested",
        "test",
    ),
    Requirement(
        "isolinux",
        (("/usr/lib/ISOLINUX/isolinux.bin",),),
        "boots the ISO made of the Debian installer",
        "test",
    ),
    Requirement(
        "syslinux-common", (("/usr/lib/syslinux/modules/bios/ldlinux.c32",),), "is the other half of isolinux", "test"
    ),
    Requirement("socat", (("socat",),), "makes the serial lines of the tests", "test"),
    Requirement("gdb", (("gdb",),), "runs a QEMU under test (unhinged gdb)", "test"),
    Requirement("binutils", (("as",), ("ld",), ("objcopy",)), "assembles the accelerator probe to compare it", "test"),
    Requirement(
        "debian-installer-12-netboot-amd64",
        (("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/linux",),),
        "is a guest not made by us, which the tests boot",
        "test",
        ("debian-12",),
    ),
    Requirement("chromium", (("chromium",),), "is the browser that the tests drive", "browser"),
    Requirement("virt-viewer", (("remote-viewer",),), "is the native viewer (unhinged view)", "browser"),
    Requirement("tigervnc-viewer", (("vncviewer",),), "is the native viewer for VNC", "browser"),
    Requirement("xvfb", (("Xvfb",),), "is a display for the viewer where there is none", "browser"),
    Requirement("xdotool", (("xdotool",),), "types into the viewer", "browser"),
    Requirement("xclip", (("xclip",),), "reads and fills the viewer's clipboard", "browser"),
    Requirement("tesseract-ocr", (("tesseract",),), "reads graphical screens (unhinged wait-text)", "browser"),
    Requirement("lua5.4", (("lua5.4",),), "is the interpreter of control.lua", "lua"),
    Requirement("lua-socket", (("/usr/share/lua/5.4/socket.lua",),), "lets its interpreters talk to each other", "lua"),
    Requirement("rpm", (("rpmbuild",),), "makes the agent's RPM package", "guests"),
    Requirement("mmdebstrap", (("mmdebstrap",),), "installs the packages of a Debian image", "guests"),
    Requirement(
        "debian-archive-keyring",
        (("/usr/share/keyrings/debian-archive-keyring.gpg",),),
        "holds the keys by which Debian's packages are known",
        "guests",
    ),
    Requirement("uidmap", (("newuidmap",),), "lets mmdebstrap do that without root", "guests"),
    Requirement("e2fsprogs", (("/sbin/mke2fs", "/usr/sbin/mke2fs"),), "makes the file system of an image", "guests"),
    Requirement("openssh-client", (("ssh-keygen",),), "makes the key a cloud image gets", "guests"),
)


def look_around(environment: Mapping[str, str] | None = None) -> Surroundings:
    """Return this machine's surroundings, as the environment describes them."""
    values = os.environ if environment is None else environment
    return Surroundings(values.get("PATH", os.defpath), qemu=values.get("QEMU", ""))


def find_program(name: str, search_path: str) -> str | None:
    """Return the path of the program a shell would start for `name`, or None.

    A small `shutil.which`: importing that costs more than the whole search.
    """
    return next(_find_programs(name, search_path), None)


def _find_programs(name: str, search_path: str) -> Iterator[str]:
    for directory in search_path.split(os.pathsep):
        candidate = os.path.join(directory or ".", name)  # noqa: PTH118 - strings on the fast path
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            yield candidate


def find_lacks(group: str, surroundings: Surroundings) -> list[Lack]:
    """Return what is missing for `essential` or, with the essentials, for another group; empty when nothing is."""
    distribution = read_distribution(Path(surroundings.root, "etc/os-release"))
    release = f"{distribution.identity}-{distribution.version}"
    lacks = [] if find_python(surroundings) else [_python_lack(surroundings)]
    for requirement in REQUIREMENTS:
        if requirement.group not in ("essential", group):
            continue
        if requirement.only_on and release not in requirement.only_on:
            continue
        if requirement.package == "qemu-system-x86" and surroundings.qemu:
            continue  # the user brings a QEMU of their own
        missing = _first_missing(requirement, surroundings)
        if missing:
            lacks.append(Lack(requirement.package, requirement.why, missing))
    return lacks


def _first_missing(requirement: Requirement, surroundings: Surroundings) -> str:
    for alternatives in requirement.proofs:
        if not any(_is_there(name, surroundings) for name in alternatives):
            return alternatives[0]
    return ""


def _is_there(name: str, surroundings: Surroundings) -> bool:
    if "/" in name:
        return os.path.exists(surroundings.root + name.lstrip("/"))  # noqa: PTH110
    return find_program(name, surroundings.search_path) is not None


def find_python(surroundings: Surroundings) -> str | None:
    """Return an interpreter that is new enough and can make a virtual environment; the one running now if it can.

    Debian and Ubuntu ship `ensurepip`, without which a virtual environment has no pip, in a package of its own.
    """
    if surroundings.python_version >= PYTHON_MINIMUM and _can_make_venv(surroundings.python, surroundings):
        return surroundings.python
    for minor in range(_PYTHON_NEWEST_KNOWN, PYTHON_MINIMUM[1] - 1, -1):
        name = f"python3.{minor}"
        # The first one found may be a version manager's stand-in, which is no interpreter: go on looking.
        for found in _find_programs(name, surroundings.search_path):
            if _can_make_venv(found, surroundings, name):
                return found
    return None


def _can_make_venv(python: str, surroundings: Surroundings, library: str = "") -> bool:
    if python == sys.executable:
        directory = os.path.dirname(os.__file__)  # noqa: PTH120
    else:
        name = library or f"python{surroundings.python_version[0]}.{surroundings.python_version[1]}"
        directory = str(Path(os.path.realpath(python)).parent.parent / "lib" / name)
    return all(os.path.exists(f"{directory}/{module}/__init__.py") for module in ("venv", "ensurepip"))  # noqa: PTH110


def _python_lack(surroundings: Surroundings) -> Lack:
    if surroundings.python_version < PYTHON_MINIMUM:
        # Ubuntu 22.04 has Python 3.10 as its own and 3.11 beside it.
        version = ".".join(map(str, PYTHON_MINIMUM))
        return Lack(f"python{version}-venv", f"is the Python this needs ({version} or newer)", f"python{version}")
    return Lack("python3-venv", "makes the virtual environment for the Python packages", "the Python module ensurepip")


def find_qemu(surroundings: Surroundings) -> Path:
    """Return the absolute path of the QEMU to start: the one QEMU= names, or else the one in the search path.

    Raises:
        HostError: There is none, or QEMU= names something that cannot be started.
    """
    wanted = surroundings.qemu or QEMU_NAME
    found: str | None = wanted if "/" in wanted else find_program(wanted, surroundings.search_path)
    if found is not None and os.path.isfile(found) and os.access(found, os.X_OK):  # noqa: PTH113
        return Path(found).absolute()
    if surroundings.qemu:
        raise HostError(
            f"QEMU={surroundings.qemu} is not a program that can be started",
            hint=f"name the file itself, or leave QEMU= away to use {QEMU_NAME} from the search path",
        )
    raise HostError(
        f"{QEMU_NAME} is not installed", hint="make deps-install-essential, or name one with QEMU=/path/to/qemu"
    )


def parse_qemu_version(text: str) -> tuple[int, int, int] | None:
    """Read what `qemu-system-x86_64 --version` prints.

    >>> parse_qemu_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)")
    (7, 2, 22)
    """
    match = _VERSION.search(text)
    if match is None:
        return None
    major, minor, micro = match.groups(default="0")
    return int(major), int(minor), int(micro)


def check_qemu_version(binary: Path, text: str) -> tuple[int, int, int]:
    """Return the version, after seeing that it is one we can drive.

    Args:
        binary: The QEMU that was asked; for the message only.
        text: What it printed when asked with `--version`.

    Raises:
        HostError: It is not QEMU, or is older than 6.2.
    """
    version = parse_qemu_version(text)
    if version is None:
        said = text.strip().splitlines()
        raise HostError(
            f"{binary} does not say that it is QEMU (it says {said[0][:80] if said else 'nothing'!r})",
            hint="name another one with QEMU=, or run: make deps-install-essential",
        )
    if version < QEMU_MINIMUM:
        minimum = ".".join(map(str, QEMU_MINIMUM))
        raise HostError(
            f"{binary} is QEMU {'.'.join(map(str, version))}; {minimum} or newer is needed",
            hint=f"install a newer distribution's QEMU, or name another one with QEMU=/path/to/{QEMU_NAME}",
        )
    return version


async def probe_qemu_version(binary: Path, run: Runner) -> tuple[int, int, int]:
    """Ask QEMU for its version; nothing is left running.

    Raises:
        HostError: It cannot be started, does not answer, is not QEMU, or is older than 6.2.
    """
    answer = await run([str(binary), "--version"], timeout_s=QEMU_VERSION_DEADLINE_S)
    if answer.timed_out:
        raise HostError(
            f"{binary} did not tell its version within {QEMU_VERSION_DEADLINE_S:g} s",
            hint="see whether it is a program that waits for something; name another one with QEMU=",
        )
    said = answer.stdout if answer.return_code == 0 else answer.stderr + answer.stdout
    return check_qemu_version(binary, said.decode("utf-8", "replace"))


def read_distribution(os_release: Path = Path("/etc/os-release")) -> Distribution:
    """Say which distribution this is; a file that is missing or unreadable gives empty fields."""
    values: dict[str, str] = {}
    try:
        text = os_release.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if separator and not name.startswith("#"):
            values[name] = value.strip("\"'")
    return Distribution(
        values.get("ID", ""), values.get("VERSION_ID", ""), values.get("PRETTY_NAME", ""), values.get("ID_LIKE", "")
    )


def find_memory_available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return how much memory a new VM could take without swapping, or None when the kernel does not say.

    A container's own limit counts as well. Source: proc(5), MemAvailable; Linux, cgroup-v2.rst, memory.max.
    """
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(encoding="ascii"), flags=re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        return None
    if match is None:
        return None
    available = int(match.group(1)) * 1024
    limit, used = (_read_int(cgroup / name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, max(0, limit - used))


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # no such control group, or "max": no limit


def find_disk_free_bytes(path: Path) -> int | None:
    """Return how much an ordinary user may still write where `path` is or would be made; None when nobody knows."""
    for candidate in _with_parents(path.absolute()):
        try:
            found = os.statvfs(candidate)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return found.f_bavail * found.f_frsize
    return None


def is_writable(path: Path) -> bool:
    """Tell whether files can be made in the directory `path`, or it can be made."""
    for candidate in _with_parents(path.absolute()):
        if candidate.exists():
            return candidate.is_dir() and os.access(candidate, os.W_OK | os.X_OK)
    return False


def _with_parents(path: Path) -> Iterable[Path]:
    yield path
    yield from path.parents


def count_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
