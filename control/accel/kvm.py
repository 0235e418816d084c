"""Puts KVM to the test: can this host run guest code with it, through this QEMU? (floor 2; `choice.py` calls it)

Opening `/dev/kvm`, even making a VM with it, proves nothing: there are hosts whose KVM answers every request and then
kills or starves each guest. So a small guest (`rom.py`) runs for real. QEMU stays alive and silent after a
KVM internal error; to notice at once it connects its monitor to a socket of ours, and is told to quit when it reports
that the guest was stopped. A QEMU that does nothing is killed by the runner at the deadline.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import re
import signal
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from control.accel import rom
from control.streams import Completed, Runner

DEADLINE_S = 3.0
"""How long the guest may take. Working KVM and TCG need 0.05 to 0.2 s; a KVM that interprets its guest at 1 us per
instruction would need more than 10 s."""

HELP_DEADLINE_S = 10.0
"""How long QEMU may take to list its accelerators; 20 ms is usual, more when its libraries come from a cold disk."""

_WORDS_LIMIT = 200


@dataclass(frozen=True)
class KvmHost:
    """Where this host tells about KVM; the defaults are Linux's, tests give others."""

    device: Path = Path("/dev/kvm")
    cpu_info: Path = Path("/proc/cpuinfo")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    architecture: str = field(default_factory=lambda: os.uname().machine)


@dataclass(frozen=True)
class KvmVerdict:
    """Whether KVM works here, and what was seen.

    Attributes:
        works: Guest code ran to its end on it.
        reason: What was seen, as a clause that can follow "because".
        seconds: How long the test took.
        hint: What the user can do about a KVM that does not work; may be empty.
        firm: Seeing it once is enough until the host boots again. False when a busy machine could have caused it.
    """

    works: bool
    reason: str
    seconds: float
    hint: str = ""
    firm: bool = True


async def probe_kvm(qemu_binary: Path, run: Runner, *, host: KvmHost | None = None) -> KvmVerdict:
    """Find out whether this user can run guests with KVM, within about three seconds; nothing is left running.

    Args:
        qemu_binary: Absolute path of the QEMU to test with.
        run: Runs the child processes; it must give them an empty standard input.
        host: Where to look; None means this machine.

    Raises:
        HostError: `qemu_binary` cannot be started at all.
    """
    started = time.monotonic()
    lack = find_device_lack(host or KvmHost())
    if lack is not None:
        return lack
    accelerators = await run([str(qemu_binary), "-accel", "help"], timeout_s=HELP_DEADLINE_S)
    if accelerators.timed_out:
        reason = f"{qemu_binary} did not list its accelerators within {HELP_DEADLINE_S:g} s"
        return KvmVerdict(False, reason, accelerators.seconds, firm=False)
    if b"kvm" not in accelerators.stdout.split():
        reason = f"{qemu_binary} was built without KVM"
        hint = "install your distribution's own QEMU, or name one with QEMU=/path/to/qemu-system-x86_64"
        return KvmVerdict(False, reason, accelerators.seconds, hint)
    try:
        completed = await run_probe_guest(qemu_binary, run, accelerator="kvm", cpu="host")
    except OSError as error:
        reason = f"KVM cannot be tested: {error.strerror} ({error.filename or tempfile.gettempdir()})"
        return KvmVerdict(False, reason, time.monotonic() - started, "make room in /tmp, or set TMPDIR", firm=False)
    return judge(completed)


def find_device_lack(host: KvmHost) -> KvmVerdict | None:
    """Say why this user cannot open the KVM device; None when it opens."""
    if host.architecture != "x86_64":
        return _lack(f"this host's processor is {host.architecture}, on which KVM cannot run x86 guests", "")
    try:
        descriptor = os.open(host.device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            return _permission_lack(host.device)
        if error.errno == errno.ENOENT:
            return _lack(f"there is no {host.device}", _missing_hint(host.cpu_info))
        # ENXIO, ENODEV: the node is there, the driver is not.
        return _lack(f"{host.device} does not open: {error.strerror}", _missing_hint(host.cpu_info))
    try:
        is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    return None if is_device else _lack(f"{host.device} is not a device", _missing_hint(host.cpu_info))


def judge(completed: Completed) -> KvmVerdict:
    """Read the verdict out of what the probe's QEMU left behind."""
    code = completed.return_code
    step = _last_step(completed.stdout)
    words = _own_words(completed.stderr)
    seconds = completed.seconds
    if code == rom.WORKED:
        return KvmVerdict(True, f"guest code ran on it in {seconds * 1000:.0f} ms", seconds)
    hint = "this host's KVM cannot run guests; if it is itself a VM, nested virtualisation is not really there"
    if b"KVM internal error" in completed.stderr:
        cause = " (emulation failure)" if b"emulation failure" in completed.stderr else ""
        return KvmVerdict(False, f"KVM here fails: the guest dies at {step}: KVM internal error{cause}", seconds, hint)
    if code in (rom.UNEXPECTED_EXCEPTION, rom.WRONG_RESULT):
        what = "gets an exception" if code == rom.UNEXPECTED_EXCEPTION else "computes a wrong result"
        return KvmVerdict(False, f"KVM here fails: the guest {what} at {step}", seconds, hint)
    if code == 0:
        return KvmVerdict(False, f"KVM here fails: the guest resets itself at {step}", seconds, hint)
    if code is None:
        reason = f"KVM here is too slow: after {seconds:.1f} s the guest is still at {step}"
        return KvmVerdict(False, reason, seconds, hint, firm=False)
    if code < 0:
        told = words or f"killed by {_signal_name(-code)}"
        return KvmVerdict(False, f"KVM here fails: QEMU aborted: {told}", seconds, hint)
    reason = f"KVM here fails: QEMU refused: {words or f'exit code {code}, without a word'}"
    hint = "another hypervisor may hold the processor; end it, or use TCG"
    return KvmVerdict(False, reason, seconds, hint, firm=False)


async def run_probe_guest(
    qemu_binary: Path, run: Runner, *, accelerator: str, cpu: str, timeout_s: float = DEADLINE_S
) -> Completed:
    """Run the probe's guest on an accelerator to its end, its death or the deadline; nothing is left behind.

    Raises:
        OSError: No temporary directory can be made or written.
        HostError: QEMU cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="unhinged-probe-") as name:
        directory = Path(name)
        (directory / "probe.rom").write_bytes(rom.build_image())
        async with _quit_when_stopped(directory / "monitor.socket"):
            # Names without a directory, so that no path can hold a comma: QEMU runs inside the directory.
            argv = [str(qemu_binary), "-accel", accelerator, "-cpu", cpu, *_MACHINE]
            return await run(argv, timeout_s=timeout_s, cwd=directory)


_MACHINE = (
    *("-machine", "pc", "-m", "8", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-bios", "probe.rom"),
    *("-device", f"isa-debug-exit,iobase={rom.EXIT_PORT:#x},iosize=0x4"),
    *("-chardev", "stdio,id=progress,signal=off"),
    *("-device", f"isa-debugcon,iobase={rom.PROGRESS_PORT:#x},chardev=progress"),
    *("-qmp", "unix:monitor.socket"),
)


@contextlib.asynccontextmanager
async def _quit_when_stopped(path: Path) -> AsyncIterator[None]:
    """Listen where QEMU connects its monitor, and tell it to quit as soon as it reports that the guest was stopped.

    This is not a monitor client: it looks for two words, so that the probe runs before set-up too.
    """
    import asyncio  # what is known already costs no event loop

    connections: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            connections.append((task, writer))
        try:
            # There are no events before the negotiation, so the guest may be stopped already: ask once.
            writer.write(b'{"execute": "qmp_capabilities"}\n{"execute": "query-status"}\n')
            while line := await reader.readline():
                if b'"STOP"' in line or b'"internal-error"' in line:
                    writer.write(b'{"execute": "quit"}\n')
        except (OSError, ValueError):
            # A QEMU that died or babbles ends by itself or at the runner's deadline; its exit is what gets judged.
            return
        finally:
            writer.close()

    # Bound through the directory's descriptor: the path may be longer than an AF_UNIX address can be.
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        except OSError:
            listener.close()
            raise
    finally:
        os.close(descriptor)
    server = await asyncio.start_unix_server(serve, sock=listener)
    try:
        yield
    finally:
        server.close()
        # QEMU is gone, but something it started may still hold the other end: do not wait for that.
        for _, writer in connections:
            writer.transport.abort()
        await asyncio.gather(*(task for task, _ in connections))


def _lack(reason: str, hint: str) -> KvmVerdict:
    return KvmVerdict(False, reason, 0.0, hint)


def _missing_hint(cpu_info: Path) -> str:
    try:
        flags = set(re.findall(r"\b(vmx|svm)\b", cpu_info.read_text(errors="replace")))
    except OSError:
        flags = set()
    if not flags:
        return (
            "this processor shows no virtualisation: switch it on in the firmware set-up (VT-x or AMD-V),"
            " or, when this is a VM, in the settings of its host"
        )
    return f"load the module: sudo modprobe {'kvm_intel' if 'vmx' in flags else 'kvm_amd'}"


def _permission_lack(device: Path) -> KvmVerdict:
    found = device.stat()
    mode = stat.S_IMODE(found.st_mode)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    reason = f"this user may not open {device} (group {group}, mode {mode:04o})"
    if mode & 0o060 != 0o060 or group == "root":
        return _lack(reason, f"give the device to the group kvm: sudo chgrp kvm {device} && sudo chmod 660 {device}")
    return _lack(reason, f'join the group: sudo usermod -aG {group} "$USER", then log in again')


def _last_step(progress: bytes) -> str:
    known = [letter for letter in progress.decode("ascii", "replace") if letter in rom.STEPS]
    return rom.STEPS[known[-1]] if known else "its first instruction"


def _own_words(stderr: bytes) -> str:
    """Pick QEMU's first complaint, without its name in front; printable and bounded."""
    for line in stderr.decode("utf-8", "replace").splitlines():
        words = re.sub(r"^\S*qemu\S*: (error: )?", "", line).strip()
        if words and not words.startswith("warning:"):
            printable = "".join(character if character.isprintable() else "?" for character in words)
            return printable[:_WORDS_LIMIT]
    return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
