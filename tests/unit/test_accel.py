"""The accelerator's verdicts, their memory and the choice, on programs that play QEMU and files that play the host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from control.accel import cache, rom
from control.accel.choice import choose_accelerator
from control.accel.kvm import KvmHost, KvmVerdict, find_device_lack, judge, probe_kvm
from control.errors import ConfigError, HostError
from control.process.run import run
from control.streams import Completed

ACCELERATORS = "Accelerators supported in QEMU binary:\\ntcg\\nkvm\\n"


def write_qemu(path: Path, body: str, *, accelerators: str = ACCELERATORS) -> Path:
    """Write a program that plays QEMU: it lists accelerators, counts its guests in `guests`, then does `body`."""
    path.write_text(
        f"#!{sys.executable} -IS\n"
        + textwrap.dedent(
            f"""\
            import os, signal, socket, sys, time
            if sys.argv[1:] == ["-accel", "help"]:
                sys.stdout.write("{accelerators}")
                raise SystemExit(0)
            with open({str(path.with_name("guests"))!r}, "a") as guests:
                guests.write("guest\\n")
            """
        )
        + textwrap.dedent(body)
    )
    path.chmod(0o755)
    return path


def guests_of(qemu: Path) -> int:
    counted = qemu.with_name("guests")
    return len(counted.read_text().splitlines()) if counted.exists() else 0


@pytest.fixture
def host(tmp_path: Path) -> KvmHost:
    """A host whose KVM device opens: /dev/null is a character device everybody may open."""
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("11111111-2222-3333-4444-555555555555\n")
    return KvmHost(Path("/dev/null"), tmp_path / "cpuinfo", boot_id, "x86_64")


def completed(code: int | None, stdout: bytes = b"", stderr: bytes = b"", seconds: float = 0.1) -> Completed:
    return Completed(("qemu",), code, stdout, stderr, seconds)


# The verdict on what QEMU left behind.


@pytest.mark.parametrize(
    ("left", "reason", "firm"),
    [
        (
            completed(
                -6,
                b"",
                b"qemu-system-x86_64: warning: a thing\n"
                b"qemu-system-x86_64: error: failed to set MSR 0x10a to 0xc08e06b\n"
                b"qemu-system-x86_64: ../target/i386/kvm/kvm.c:3213: Assertion `ret' failed.\n",
            ),
            "KVM here fails: QEMU aborted: failed to set MSR 0x10a to 0xc08e06b",
            True,
        ),
        (completed(-6), "KVM here fails: QEMU aborted: killed by SIGABRT", True),
        (
            completed(0, b"RPL", b"KVM internal error. Suberror: 1\nemulation failure\nEAX=0\n"),
            "KVM here fails: the guest dies at the switch to long mode: KVM internal error (emulation failure)",
            True,
        ),
        (completed(None, b"RP", b"KVM internal error. Suberror: 3\n"), "KVM internal error", True),
        (completed(None, b"RPLCFXKBWS", seconds=3.0), "after 3.0 s the guest is still at a loop of ten million", False),
        (completed(None, b"", seconds=3.0), "after 3.0 s the guest is still at its first instruction", False),
        (completed(rom.UNEXPECTED_EXCEPTION, b"RPLCFXK"), "the guest gets an exception at cmpxchg16b", True),
        (completed(rom.WRONG_RESULT, b"RPLCF"), "the guest computes a wrong result at fxsave", True),
        (completed(0, b"RPLCFXKBW"), "the guest resets itself at a page fault", True),
        (
            completed(1, b"", b"qemu-system-x86_64: ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n"),
            "KVM here fails: QEMU refused: ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy",
            False,
        ),
        (completed(1), "QEMU refused: exit code 1, without a word", False),
    ],
)
def test_each_way_to_fail_has_its_own_words(left: Completed, reason: str, firm: bool) -> None:
    verdict = judge(left)
    assert not verdict.works
    assert reason in verdict.reason
    assert verdict.firm is firm


def test_only_the_exit_code_of_the_image_itself_proves_kvm() -> None:
    assert judge(completed(rom.WORKED, b"RPLCFXKBWS.")).works
    assert not judge(completed(0, b"RPLCFXKBWS.")).works


def test_words_of_qemu_are_bounded_and_printable() -> None:
    verdict = judge(completed(1, b"", b"qemu: \x1b[31m" + b"x" * 100_000 + b"\xff\n"))
    assert "\x1b" not in verdict.reason
    assert len(verdict.reason) < 300


# What keeps the device from being opened.


def test_a_missing_device_names_the_module_to_load(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags : fpu vmx ssse3\n")
    lack = find_device_lack(KvmHost(tmp_path / "kvm", info, architecture="x86_64"))
    assert lack is not None
    assert lack.reason == f"there is no {tmp_path / 'kvm'}"
    assert lack.hint == "load the module: sudo modprobe kvm_intel"


def test_a_missing_device_without_virtualisation_names_the_firmware(tmp_path: Path) -> None:
    lack = find_device_lack(KvmHost(tmp_path / "kvm", tmp_path / "none", architecture="x86_64"))
    assert lack is not None
    assert "firmware set-up" in lack.hint


def test_a_file_in_place_of_the_device_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").write_bytes(b"")
    lack = find_device_lack(KvmHost(tmp_path / "kvm", tmp_path / "none", architecture="x86_64"))
    assert lack is not None
    assert lack.reason.endswith("is not a device")


def test_another_processor_cannot_run_x86_guests_with_kvm() -> None:
    lack = find_device_lack(KvmHost(Path("/dev/null"), architecture="aarch64"))
    assert lack is not None
    assert "aarch64" in lack.reason


def lack_as_nobody(host: KvmHost) -> KvmVerdict | None:
    """Look at the device as an ordinary user would: as root, in a child process that gives its rights up."""
    if os.getuid() != 0:
        return find_device_lack(host)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            lack = find_device_lack(host)
            os.write(write_end, json.dumps([lack.reason, lack.hint] if lack else None).encode())
        finally:
            os._exit(0)  # whatever happens: this child must not go on as a second test run
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        answer = json.loads(answers.read())
    os.waitpid(child, 0)
    return KvmVerdict(False, answer[0], 0.0, answer[1]) if answer else None


@pytest.mark.parametrize(("mode", "cure"), [(0o660, "usermod -aG"), (0o600, "chgrp kvm")])
def test_a_closed_device_names_its_group_and_the_cure(public_path: Path, mode: int, cure: str) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a device's stand-in that belongs to another user: run as root")
    device = public_path / "kvm"
    device.write_bytes(b"")
    os.chown(device, 0, 4)
    device.chmod(mode)
    lack = lack_as_nobody(KvmHost(device, public_path / "none", architecture="x86_64"))
    assert lack is not None
    assert lack.reason == f"this user may not open {device} (group adm, mode {mode:04o})"
    assert cure in lack.hint


# The probe, with programs that play QEMU.


async def test_a_qemu_without_kvm_is_named(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(tmp_path / "qemu", "", accelerators="Accelerators supported in QEMU binary:\\ntcg\\n")
    verdict = await probe_kvm(qemu, run, host=host)
    assert verdict.reason == f"{qemu} was built without KVM"
    assert guests_of(qemu) == 0


async def test_a_qemu_that_aborts_is_quoted(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(
        tmp_path / "qemu",
        """\
        print("qemu-system-x86_64: error: failed to set MSR 0x10a to 0x0", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
        """,
    )
    verdict = await probe_kvm(qemu, run, host=host)
    assert verdict.reason == "KVM here fails: QEMU aborted: failed to set MSR 0x10a to 0x0"


async def test_a_qemu_that_stays_alive_silently_is_killed_at_the_deadline(tmp_path: Path, host: KvmHost) -> None:
    pid_file = tmp_path / "pid"
    qemu = write_qemu(
        tmp_path / "qemu",
        f"""\
        open({str(pid_file)!r}, "w").write(str(os.getpid()))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.stdout.write("RPLCFXKBWS"); sys.stdout.flush()
        time.sleep(600)
        """,
    )
    verdict = await probe_kvm(qemu, run, host=host)
    assert "too slow" in verdict.reason
    assert 3.0 <= verdict.seconds < 6.0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_stopped_guest_is_noticed_at_once(tmp_path: Path, host: KvmHost, when: str) -> None:
    status = '{"return": {"status": "internal-error", "running": false}}'
    event = '{"timestamp": {}, "event": "STOP"}'
    qemu = write_qemu(
        tmp_path / "qemu",
        f"""\
        monitor = socket.socket(socket.AF_UNIX)
        monitor.connect("monitor.socket")
        monitor.sendall(b'{{"QMP": {{}}}}\\n')
        lines = monitor.makefile()
        assert "qmp_capabilities" in lines.readline()
        assert "query-status" in lines.readline()
        sys.stdout.write("RP"); sys.stdout.flush()
        print("KVM internal error. Suberror: 1", file=sys.stderr, flush=True)
        monitor.sendall(b'{status if when == "before" else event}\\n')
        assert "quit" in lines.readline()
        """,
    )
    verdict = await probe_kvm(qemu, run, host=host)
    assert verdict.reason == "KVM here fails: the guest dies at the switch to protected mode: KVM internal error"
    assert verdict.seconds < 2.5


async def test_a_monitor_that_floods_costs_nothing_but_the_verdict(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(
        tmp_path / "qemu",
        """\
        monitor = socket.socket(socket.AF_UNIX)
        monitor.connect("monitor.socket")
        try:
            for _ in range(64):
                monitor.sendall(b"x" * 1048576)
        except OSError:
            pass
        raise SystemExit(1)
        """,
    )
    verdict = await probe_kvm(qemu, run, host=host)
    assert "QEMU refused" in verdict.reason


async def test_the_probe_leaves_no_task_and_no_file(
    tmp_path: Path, host: KvmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A directory whose name is longer than an AF_UNIX address, and holds what QEMU's options would stumble over.
    temporary = tmp_path / ("a, b=c " * 17)
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    qemu = write_qemu(tmp_path / "qemu", "socket.socket(socket.AF_UNIX).connect('monitor.socket'); sys.exit(85)")
    verdict = await probe_kvm(qemu, run, host=host)
    assert verdict.works
    assert list(temporary.iterdir()) == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_connection_that_outlives_qemu_does_not_hold_the_probe_up(tmp_path: Path, host: KvmHost) -> None:
    pid_file = tmp_path / "pid"
    qemu = write_qemu(
        tmp_path / "qemu",
        f"""\
        monitor = socket.socket(socket.AF_UNIX)
        monitor.connect("monitor.socket")
        monitor.sendall(b"{{}}\\n")
        monitor.recv(100)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.close(1), os.close(2)
            time.sleep(60)
        open({str(pid_file)!r}, "w").write(str(pid))
        os._exit(85)
        """,
    )
    try:
        async with asyncio.timeout(10):
            verdict = await probe_kvm(qemu, run, host=host)
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert verdict.works
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_no_room_for_the_image_is_a_reason_not_a_crash(
    tmp_path: Path, host: KvmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    verdict = await probe_kvm(write_qemu(tmp_path / "qemu", ""), run, host=host)
    assert not verdict.works
    assert "cannot be tested" in verdict.reason
    assert not verdict.firm


# The memory of the verdict.

VERDICT = KvmVerdict(False, "KVM here fails: so it was", 0.2, "a hint")


def test_a_verdict_is_remembered_privately(tmp_path: Path, host: KvmHost) -> None:
    key = cache.build_key(Path(sys.executable), host)
    assert key is not None
    directory = tmp_path / "new" / "unhinged"
    cache.store_verdict(directory, key, VERDICT)
    assert cache.find_verdict(directory, key) == VERDICT
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (file,) = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def other_boot(host: KvmHost, qemu: Path) -> None:
    host.boot_id.write_text("99999999-2222-3333-4444-555555555555\n")


def other_qemu(host: KvmHost, qemu: Path) -> None:
    qemu.write_bytes(b"newer")


@pytest.mark.parametrize("change", [other_boot, other_qemu])
def test_the_verdict_dies_with_what_it_depends_on(
    tmp_path: Path, host: KvmHost, change: Callable[[KvmHost, Path], None]
) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_bytes(b"old")
    key = cache.build_key(qemu, host)
    assert key is not None
    cache.store_verdict(tmp_path / "cache", key, VERDICT)
    change(host, qemu)
    changed = cache.build_key(qemu, host)
    assert changed is not None
    assert cache.find_verdict(tmp_path / "cache", changed) is None


def test_nothing_is_remembered_without_a_boot_id(tmp_path: Path, host: KvmHost) -> None:
    host.boot_id.unlink()
    assert cache.build_key(Path(sys.executable), host) is None


def spoil_garbage(file: Path) -> None:
    file.write_bytes(b"\xff{" * 50)


def spoil_depth(file: Path) -> None:
    file.write_text("[" * 60_000)


def spoil_types(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "works": "yes"}))


def spoil_rights(file: Path) -> None:
    file.chmod(0o666)


def spoil_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


def spoil_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def spoil_age(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "expires_s": 0.001}))


def spoil_directory(file: Path) -> None:
    file.parent.chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_garbage,
        spoil_depth,
        spoil_types,
        spoil_rights,
        spoil_link,
        spoil_fifo,
        spoil_age,
        spoil_directory,
    ],
)
def test_a_cache_that_cannot_be_trusted_is_ignored(
    tmp_path: Path, host: KvmHost, spoil: Callable[[Path], None]
) -> None:
    key = cache.build_key(Path(sys.executable), host)
    assert key is not None
    directory = tmp_path / "cache"
    cache.store_verdict(directory, key, VERDICT)
    (file,) = directory.iterdir()
    spoil(file)
    assert cache.find_verdict(directory, key) is None


def test_a_file_of_another_user_is_not_trusted(tmp_path: Path, host: KvmHost) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file away: run as root")
    key = cache.build_key(Path(sys.executable), host)
    assert key is not None
    cache.store_verdict(tmp_path / "cache", key, VERDICT)
    (file,) = (tmp_path / "cache").iterdir()
    os.chown(file, 65534, 65534)
    assert cache.find_verdict(tmp_path / "cache", key) is None


def test_a_busy_machines_verdict_expires(tmp_path: Path, host: KvmHost) -> None:
    key = cache.build_key(Path(sys.executable), host)
    assert key is not None
    unfirm = KvmVerdict(False, "too slow", 3.0, firm=False)
    cache.store_verdict(tmp_path / "cache", key, unfirm)
    assert cache.find_verdict(tmp_path / "cache", key) == unfirm
    (file,) = (tmp_path / "cache").iterdir()
    assert isinstance(json.loads(file.read_text())["expires_s"], float)


# The choice.


async def test_auto_takes_kvm_where_guest_code_ran_and_asks_only_once(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(tmp_path / "qemu", "sys.exit(85)")
    first = await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=host)
    second = await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=host)
    assert (first.name, first.from_cache, second.name, second.from_cache) == ("kvm", False, "kvm", True)
    assert first.reason.startswith("accelerator: kvm (guest code ran on it in ")
    assert second.reason == "accelerator: kvm (proved earlier in this boot of the host)"
    assert guests_of(qemu) == 1


async def test_auto_takes_tcg_and_says_why_in_one_line(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(tmp_path / "qemu", "sys.stderr.write('qemu: no\\n'); sys.exit(1)")
    choice = await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=host)
    assert choice.name == "tcg"
    assert choice.reason == ("accelerator: tcg (software emulation, slower), because KVM here fails: QEMU refused: no")


async def test_kvm_that_does_not_work_is_refused_with_a_way_out(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(tmp_path / "qemu", "sys.exit(1)")
    with pytest.raises(HostError, match="ACCEL=kvm was asked for, but KVM here fails") as caught:
        await choose_accelerator("kvm", qemu, run, tmp_path / "cache", host=host)
    assert caught.value.hint.endswith("or use ACCEL=tcg")


async def test_tcg_as_asked_tests_nothing(tmp_path: Path, host: KvmHost) -> None:
    choice = await choose_accelerator("tcg", tmp_path / "no-qemu", run, tmp_path / "cache", host=host)
    assert choice.reason == "accelerator: tcg (software emulation, slower), as asked"
    assert not (tmp_path / "cache").exists()


async def test_an_unknown_accelerator_is_a_usage_error(tmp_path: Path, host: KvmHost) -> None:
    with pytest.raises(ConfigError) as caught:
        await choose_accelerator("xen", tmp_path / "no-qemu", run, tmp_path / "cache", host=host)
    assert caught.value.hint == "use auto, kvm or tcg"


async def test_a_device_that_comes_back_is_seen_at_once(tmp_path: Path, host: KvmHost) -> None:
    qemu = write_qemu(tmp_path / "qemu", "sys.exit(85)")
    gone = KvmHost(tmp_path / "kvm", host.cpu_info, host.boot_id, "x86_64")
    assert (await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=gone)).name == "tcg"
    assert (await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=host)).name == "kvm"


async def test_a_device_that_does_not_open_is_not_remembered(tmp_path: Path, host: KvmHost) -> None:
    device = tmp_path / "kvm"
    device.write_bytes(b"")
    closed = KvmHost(device, host.cpu_info, host.boot_id, "x86_64")
    qemu = write_qemu(tmp_path / "qemu", "")
    choice = await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=closed)
    assert choice.name == "tcg"
    assert not (tmp_path / "cache").exists()


async def test_an_unwritable_cache_is_no_error(tmp_path: Path, host: KvmHost) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    qemu = write_qemu(tmp_path / "qemu", "sys.exit(85)")
    for _ in range(2):
        choice = await choose_accelerator("auto", qemu, run, tmp_path / "cache", host=host)
        assert (choice.name, choice.from_cache) == ("kvm", False)
    assert guests_of(qemu) == 2


async def test_a_qemu_that_cannot_be_started_is_an_error_not_a_verdict(tmp_path: Path, host: KvmHost) -> None:
    with pytest.raises(HostError):
        await choose_accelerator("auto", tmp_path / "no-qemu", run, tmp_path / "cache", host=host)
