"""Every file name of an instance and of the checkout, in one place (floor 0).

An instance directory holds all that belongs to one VM. Nothing else in this package spells these names.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from control.errors import ConfigError, HostError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout (or the site-packages folder) this package was loaded from."""

SCHEMAS = ROOT / "schemas"
VENV_PYTHON = ROOT / ".venv" / "bin" / "python"
UNIX_PATH_MAX_BYTES = 107
"""Longest AF_UNIX address Linux takes (sun_path is 108 bytes with its NUL; unix(7))."""

_LONGEST_SOCKET_NAME = len("/monitor.socket")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def runtime_directory(working_directory: Path) -> Path:
    """Say where the instances of a project folder live."""
    return working_directory / ".unhinged"


def cache_directory() -> Path:
    """Say where answers that outlive a VM are kept for this user (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "unhinged"


IS_CHECKOUT = (ROOT / "Makefile").is_file()
"""Whether `make` builds what is needed; an installed package has its images in the user's cache."""

BUILD = (ROOT if IS_CHECKOUT else cache_directory()) / "build"
IMAGE = BUILD / "image"


@dataclass(frozen=True)
class InstanceFiles:
    """The files of one instance.

    Attributes:
        directory: The instance directory; everything that is kept lies here.
        sockets: Where its sockets lie: the same directory, or a short one when the path is too long for AF_UNIX.
    """

    directory: Path
    sockets: Path

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def pid(self) -> Path:
        return self.directory / "pid"

    @property
    def state(self) -> Path:
        return self.directory / "state.json"

    @property
    def argv(self) -> Path:
        return self.directory / "argv.json"

    @property
    def serial_log(self) -> Path:
        return self.directory / "serial"

    @property
    def hvc0_log(self) -> Path:
        return self.directory / "hvc0"

    @property
    def shell_log(self) -> Path:
        """What the shell says that the agent has opened for `console --console shell`."""
        return self.directory / "shell"

    @property
    def serial_typed(self) -> Path:
        """A FIFO of what is typed on the serial console."""
        return self.directory / "serial.in"

    @property
    def hvc0_typed(self) -> Path:
        return self.directory / "hvc0.in"

    @property
    def serial_times(self) -> Path:
        """When the serial console said what, and what was typed on it."""
        return self.times_of(self.serial_log)

    @property
    def hvc0_times(self) -> Path:
        return self.times_of(self.hvc0_log)

    @staticmethod
    def times_of(log: Path) -> Path:
        """The recording that belongs to a console's log."""
        return log.with_name(f"{log.name}.times")

    @property
    def console_logs(self) -> dict[str, Path]:
        """The log of each console, by the name the guest has for it; `console` is that of a machine without QEMU."""
        return {
            "ttyS0": self.serial_log,
            "hvc0": self.hvc0_log,
            "shell": self.shell_log,
            "console": self.serial_log,
        }

    @property
    def consoles(self) -> tuple[tuple[Path, Path, Path], ...]:
        """Of each console its log, its FIFO, and a link to the log, under which QEMU's `pipe` device looks for it."""
        return (
            (self.serial_log, self.serial_typed, self.directory / "serial.out"),
            (self.hvc0_log, self.hvc0_typed, self.directory / "hvc0.out"),
        )

    @property
    def holder_job(self) -> Path:
        """What the holder of a machine without QEMU is to hold."""
        return self.directory / "holder.job"

    @property
    def holder_orders(self) -> Path:
        """A FIFO of what its holder is to do."""
        return self.directory / "holder.orders"

    @property
    def holder_state(self) -> Path:
        """That it runs, or how it is connected."""
        return self.directory / "holder.state"

    @property
    def holder_end(self) -> Path:
        """How it ended."""
        return self.directory / "holder.end"

    @property
    def timeline(self) -> Path:
        """When what happened since it was started."""
        return self.directory / "timeline.jsonl"

    @property
    def timeline_before(self) -> Path:
        """The same of the run before."""
        return self.directory / "timeline.before.jsonl"

    @property
    def messages(self) -> Path:
        return self.directory / "messages.jsonl"

    @property
    def qemu_log(self) -> Path:
        """What QEMU says on stderr: its errors."""
        return self.directory / "qemu.log"

    @property
    def qemu_output(self) -> Path:
        """What QEMU says on stdout: nothing, unless its command line sends something there."""
        return self.directory / "qemu.stdout"

    @property
    def logs(self) -> tuple[Path, ...]:
        """The files that are written for as long as QEMU runs, without end."""
        return (self.serial_log, self.hvc0_log, self.shell_log, self.qemu_log, self.qemu_output)

    @property
    def data_disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def clone_note(self) -> Path:
        """What an instance is a clone of; only a clone has it."""
        return self.directory / "clone.json"

    @property
    def kept_note(self) -> Path:
        """That a machine which was to be thrown away is kept."""
        return self.directory / "kept"

    @property
    def frozen_disks(self) -> Path:
        """What a clone has written over the disks of its template, a file for each of them."""
        return self.directory / "disks"

    @property
    def snapshots(self) -> Path:
        """What is kept of the machine's memory and devices, a file for each snapshot, and a note of what it is."""
        return self.directory / "snapshots"

    @property
    def firmware_variables(self) -> Path:
        return self.directory / "firmware-variables.fd"

    @property
    def qmp_socket(self) -> Path:
        return self.sockets / "qmp.socket"

    @property
    def monitor_socket(self) -> Path:
        return self.sockets / "monitor.socket"

    @property
    def agent_socket(self) -> Path:
        return self.sockets / "agent.socket"

    @property
    def bulk_socket(self) -> Path:
        return self.sockets / "bulk.socket"

    @property
    def vnc_socket(self) -> Path:
        """Where QEMU shows the guest's screen over RFB, the protocol of VNC."""
        return self.sockets / "vnc.socket"

    @property
    def spice_socket(self) -> Path:
        return self.sockets / "spice.socket"

    @property
    def control_socket(self) -> Path:
        """Where its supervisor listens, as long as there is one."""
        return self.sockets / "control.socket"

    @property
    def supervisor_log(self) -> Path:
        return self.directory / "supervisor.log"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def ssh_key(self) -> Path:
        """The private half of a key of the VM's own; the public one lies beside it."""
        return self.directory / "id_ed25519"

    @property
    def overlay(self) -> Path:
        """What the guest writes over an image that is not written to."""
        return self.directory / "overlay.qcow2"

    @property
    def all_sockets(self) -> tuple[Path, ...]:
        """The sockets of QEMU."""
        return (
            self.qmp_socket,
            self.monitor_socket,
            self.agent_socket,
            self.bulk_socket,
            self.vnc_socket,
            self.spice_socket,
        )

    @property
    def fleeting(self) -> tuple[Path, ...]:
        """What only a machine that runs needs."""
        holder = (self.holder_job, self.holder_orders, self.holder_state, self.holder_end)
        return (*self.all_sockets, self.pid, *holder)


def check_instance_name(name: str) -> str:
    """Return `name` when it can be the name of an instance.

    Raises:
        ConfigError: It is empty, longer than 63 characters, or holds something beside letters, digits, `.`, `_`, `-`.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name[:80]!r} cannot be the name of a VM",
            key="NAME",
            hint="use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return name


def open_instance_files(runtime: Path, name: str, *, is_shared: bool = False) -> InstanceFiles:
    """Make the private directories of the instance `name` below `runtime`, and say where its files lie.

    Args:
        is_shared: `runtime` is the user's own and holds other things as well: its mode is left as it is.

    Raises:
        ConfigError: `name` cannot be a name.
        HostError: A directory cannot be made, or belongs to somebody else; nothing else was changed.
    """
    directory = runtime / f"vm.{check_instance_name(name)}"
    if not (is_shared and runtime.is_dir()):
        _make_private(runtime)
    _make_private(directory)
    files = find_instance_files(runtime, name)
    if files.sockets != directory:
        _make_private(files.sockets.parent)
        _make_private(files.sockets)
    return files


def open_image_directory(directory: Path) -> Path:
    """Make the private directory of an image, and the one it lies in where there is none. Raises HostError."""
    if not directory.parent.is_dir():
        _make_private(directory.parent)
    _make_private(directory)
    return directory


def open_web_directory(runtime: Path, *, is_shared: bool = False) -> Path:
    """Make the private directory of the web console of this runtime directory: its token, users, sessions, audit log.

    Raises:
        HostError: It cannot be made, or belongs to somebody else.
    """
    if not (is_shared and runtime.is_dir()):
        _make_private(runtime)
    directory = runtime / "web"
    _make_private(directory)
    return directory


def find_instance_files(runtime: Path, name: str) -> InstanceFiles:
    """Say where the files of the instance `name` lie, without touching the disk."""
    directory = runtime / f"vm.{name}"
    if len(os.fsencode(directory)) + _LONGEST_SOCKET_NAME <= UNIX_PATH_MAX_BYTES:
        return InstanceFiles(directory, directory)
    import hashlib  # it is of no use to most, and slow to load

    # The digest ties the short directory to the long one, so that every command finds the same place.
    digest = hashlib.sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
    return InstanceFiles(directory, _short_socket_root() / digest)


def _short_socket_root() -> Path:
    run_dir = os.environ.get("XDG_RUNTIME_DIR", "")
    if run_dir.startswith("/") and len(os.fsencode(run_dir)) < 40 and os.access(run_dir, os.W_OK):
        return Path(run_dir) / "unhinged"
    return Path(f"/tmp/unhinged-{os.getuid()}")  # noqa: S108 - made private, and refused when it is another's


def _make_private(directory: Path) -> None:
    """Make `directory` with mode 0700, or see to it that the one there is ours and private."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise HostError(f"{directory} is not a directory of yours", hint="remove it, or run from another directory")
        if stat.S_IMODE(found.st_mode) != 0o700:
            directory.chmod(0o700)
    except OSError as error:
        raise HostError(
            f"the directory {directory} cannot be made: {error.strerror}",
            hint="make room or get write permission there, or run from another directory",
        ) from error
