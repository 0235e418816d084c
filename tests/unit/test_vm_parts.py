"""The parts of a VM's life that need no QEMU: causes, boot watch, states, record, lock, journal, traffic (floor 3)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.errors import EXIT_GUEST_PANICKED, ControlError, HostError, StateError
from control.paths import InstanceFiles, open_instance_files
from control.process.handle import read_start_ticks
from control.vm import journal as journals
from control.vm import traffic as traffics
from control.vm.causes import find_cause, looks_like_prompt
from control.vm.instance import (
    Record,
    claim_instance,
    find_running,
    lock_instance,
    read_host_boot_id,
    read_record,
    remove_stale_files,
    write_atomically,
    write_record,
)
from control.vm.journal import open_journal
from control.vm.listener import Carrier
from control.vm.qemu_words import explain_words
from control.vm.states import State, check_transition
from control.vm.traffic import Traffic
from control.vm.watch import BootWatch, WatchTimes
from control.wire import Message, encode_message
from control.wire.message import read_envelope

# -- causes ------------------------------------------------------------------------------------------------------------

PANIC = """\
[    1.210001] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
[    1.211033] CPU: 0 PID: 1 Comm: init Not tainted 6.1.0-18-amd64 #1  Debian 6.1.76-1
[    1.212900] Call Trace:
[    1.213201]  <TASK>
[    1.213400]  dump_stack_lvl+0x44/0x5c
[    1.213800]  panic+0x118/0x2ed
[    1.219999] Kernel Offset: disabled
[    1.220301] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---
"""
NO_ROOT = """\
[    1.5] VFS: Cannot open root device "vda1" or unknown-block(0,0): error -6
[    1.5] Please append a correct "root=" boot option; here are the available partitions:
[    1.5] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)
[    1.6] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0) ]---
"""
ENDS = [
    ("panic", PANIC),
    ("panic", PANIC + "[    1.3] Rebooting in 10 seconds..\n"),
    ("no-root", NO_ROOT),
    ("no-bootable-device", "SeaBIOS (version 1.16.2)\nBooting from Hard Disk...\n"
     "Boot failed: could not read the boot disk\n\nNo bootable device.\n"),
    ("no-bootable-device", "Booting from DVD/CD...\nNo bootable device.  Retrying in 60 seconds.\n"),
    ("no-bootable-device", "BdsDxe: No bootable option or device was found.\n"
     "BdsDxe: Press any key to enter the Boot Manager Menu.\n"),
    ("boot-loader", "GRUB loading.\nWelcome to GRUB!\n\nerror: file `/boot/grub/i386-pc/normal.mod' not found.\n"
     "Entering rescue mode...\ngrub rescue> "),
    ("boot-loader", "Booting from Hard Disk...\nMissing operating system.\n"),
    ("initramfs-shell", "Gave up waiting for root file system device.\nALERT!  /dev/vda9 does not exist.  Dropping to "
     "a shell!\n\n\nBusyBox v1.35.0 (Debian 1:1.35.0-4+b3) built-in shell (ash)\nEnter 'help' for a list of built-in "
     "commands.\n\n(initramfs) "),
    ("emergency-mode", "You are in emergency mode. After logging in, type \"journalctl -xb\" to view\nsystem logs.\n"
     "Give root password for maintenance\n(or press Control-D to continue): "),
    ("emergency-mode", "Cannot open access to console, the root account is locked.\nSee sulogin(8) man page for more "
     "details.\n\nPress Enter to continue.\n"),
]  # fmt: skip
WELL = [
    "",
    "Debian GNU/Linux 12 unhinged ttyS0\n\nunhinged login: ",
    "[    0.000000] Linux version 6.1.0-18-amd64\n[    1.000000] random: crng init done\n",
    PANIC + "\nroot@unhinged:~# ",
    PANIC + "root@unhinged:~# dmesg | tail\n[    9.1] eth0: link up\nroot@unhinged:~# ",
    NO_ROOT + "unhinged login: ",
    "(initramfs) exit\n[    3.0] systemd[1]: Started.\n",
    "No bootable device.\n" + "[    1.0] booted from the network\n" * 5,
    "BusyBox v1.35.0 multi-call binary\n# ",
]


@pytest.mark.parametrize(("code", "end"), ENDS)
def test_the_end_of_a_console_shows_its_cause(code: str, end: str) -> None:
    cause = find_cause(end)
    assert cause is not None
    assert cause.code == code
    assert cause.sentence
    assert cause.hint
    assert (cause.exit_code == EXIT_GUEST_PANICKED) == (code in ("panic", "no-root"))


@pytest.mark.parametrize("end", WELL)
def test_a_console_that_went_on_shows_no_cause(end: str) -> None:
    assert find_cause(end) is None


@given(st.text(alphabet="\n [](): -no.Kernlpaicbotdevs", max_size=300))
def test_no_text_takes_long_to_judge(text: str) -> None:
    find_cause(text * 10)


@pytest.mark.parametrize("end", ["login: ", "x\n# ", "> ", "(y/n)? ", "Password: "])
def test_prompts(end: str) -> None:
    assert looks_like_prompt(end)
    assert not looks_like_prompt(end + "\nand on")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ('qemu: -device virtio-blk-pci: Failed to get "write" lock\nIs another process using the image?', "another VM"),
        ("qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory", "memory"),
        ("error: failed to set MSR 0x10a to 0x0", "KVM"),
        ("Could not access KVM kernel module: Permission denied", "KVM"),
        ("qemu-system-x86_64: Error loading uncompressed kernel without PVH ELF Note", "kernel"),
        ("qemu-system-x86_64: -frobnicate: invalid option", "option"),
    ],
)
def test_what_qemu_says_is_explained(words: str, part: str) -> None:
    explanation = explain_words(tuple(words.splitlines()))
    assert explanation is not None
    assert part in explanation.sentence
    assert explanation.hint


# -- the boot watch ----------------------------------------------------------------------------------------------------

SHORT = WatchTimes(quiet_s=0.02, hang_s=0.06)


async def test_a_console_that_never_spoke_is_silent_too() -> None:
    """A guest with the wrong console= says nothing at all: the silence begins with the boot, not with a first byte."""
    watch = BootWatch(SHORT)
    watch.start_clock()
    async with asyncio.timeout(5):
        await watch.wait_for_silence()
        assert watch.judge_silence() is None
        assert await watch.stays_silent_until_hung()
    error = watch.judge_hang(cpu_share=0.9, screen=("GNU GRUB",))
    assert error is not None
    assert error.code == "wrong-console"
    assert any("GNU GRUB" in line for line in error.evidence)


async def test_each_silence_is_reported_once() -> None:
    watch = BootWatch(SHORT)
    watch.feed(b"x")
    async with asyncio.timeout(5):
        await watch.wait_for_silence()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await watch.wait_for_silence()


async def test_speaking_again_ends_a_silence() -> None:
    watch = BootWatch(WatchTimes(quiet_s=0.01, hang_s=60))
    watch.feed(b"x")
    async with asyncio.timeout(5):
        await watch.wait_for_silence()
        waiting = asyncio.create_task(watch.stays_silent_until_hung())
        await asyncio.sleep(0)
        watch.feed(b"y")
        assert await waiting is False


@pytest.mark.parametrize("size", [1, 5, 13, 100])
def test_a_kernel_is_heard_however_its_first_line_is_cut(size: int) -> None:
    watch = BootWatch(SHORT)
    said = b"SeaBIOS\r\n[    0.000000] Linux version 6.1.0-18-amd64 (debian"
    end = said.index(b"6.1")
    for at in range(0, end - 1, size):
        watch.feed(said[at : min(at + size, end - 1)])
    assert not watch.kernel_spoke
    watch.feed(said[end - 1 :])
    assert watch.kernel_spoke


def test_a_login_prompt_means_up_and_a_shell_of_the_initramfs_waits_for_a_person() -> None:
    watch = BootWatch(SHORT)
    watch.feed(b"Linux version 6\r\nunhinged login: ")
    assert watch.judge_silence() is None
    assert watch.up
    assert watch.judge_hang(cpu_share=1.0, screen=()) is None
    watch = BootWatch(SHORT)
    watch.feed(b"(initramfs) ")
    cause = watch.judge_silence()
    assert cause is not None
    assert (cause.code, cause.waits_for_person) == ("initramfs-shell", True)


def test_a_busy_guest_hangs_and_an_idle_one_waits() -> None:
    watch = BootWatch(SHORT)
    watch.feed(b"[    0.0] Linux version 6.1\r\n[    0.5] tsc: Unable to calibrate against PIT\r\n")
    error = watch.judge_hang(cpu_share=1.0, screen=())
    assert error is not None
    assert error.code == "hung"
    assert "Unable to calibrate" in error.evidence[-1]
    assert watch.judge_hang(cpu_share=0.01, screen=()) is None


def test_evidence_of_a_hostile_console_is_plain() -> None:
    watch = BootWatch(SHORT)
    watch.feed(PANIC.replace("init!", "\x1b]0;x\x07\x1b[2Jinit!").encode())
    error = watch.panic_error()
    assert error.exit_code == EXIT_GUEST_PANICKED
    assert not any("\x1b" in line or "\x07" in line for line in error.evidence)


# -- states ------------------------------------------------------------------------------------------------------------

LEGAL = {
    ("DEFINED", "STARTING"), ("STARTING", "RUNNING"), ("RUNNING", "PAUSED"), ("PAUSED", "RUNNING"),
    ("STARTING", "STOPPING"), ("RUNNING", "STOPPING"), ("PAUSED", "STOPPING"), ("STOPPING", "STOPPED"),
    ("STARTING", "STOPPED"), ("RUNNING", "STOPPED"), ("PAUSED", "STOPPED"),
    *((state, "FAILED") for state in ("DEFINED", "STARTING", "RUNNING", "PAUSED", "STOPPING")),
}  # fmt: skip


@pytest.mark.parametrize("old", list(State))
@pytest.mark.parametrize("new", list(State))
def test_the_ways_between_states(old: State, new: State) -> None:
    if (old.value, new.value) in LEGAL:
        check_transition(old, new)
        return
    with pytest.raises(StateError) as caught:
        check_transition(old, new)
    assert caught.value.state == old.value


# -- the instance on disk ----------------------------------------------------------------------------------------------


@pytest.fixture
def files(runtime: Path) -> InstanceFiles:
    return open_instance_files(runtime, "one")


def own_record() -> Record:
    """A record that names this very process as its QEMU."""
    ticks = read_start_ticks(os.getpid())
    assert ticks is not None
    return Record("one", "RUNNING", pid=os.getpid(), start_ticks=ticks, host_boot_id=read_host_boot_id())


def test_a_record_is_read_as_it_was_written(files: InstanceFiles) -> None:
    assert read_record(files) is None
    record = replace(own_record(), spec={"name": "one", "disks": []})
    write_record(files, record)
    assert read_record(files) == record
    assert stat.S_IMODE(files.state.stat().st_mode) == 0o600
    assert [path.name for path in files.directory.iterdir()] == ["state.json"]


CORRUPT = [
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"name":"one"}',
    b'{"name":"one","state":"RUNNING","new":1}', b'{"name":"one","state":"RUNNING","pid":"7"}',
    b'{"name":"one","state":"RUNNING","pid":7,"start_ticks":null}', b'{"name":"one","state":"ASLEEP"}',
    b'{"name":1,"state":"RUNNING"}', b'{"name":"one","state":["RUNNING"]}',
    b'{"name":"one","state":"RUNNING","spec":7}', b'{"name":"one","state":"RUNNING","agent":"no"}',
    b'{"name":"one","state":"RUNNING","pid":' + b"9" * 30 + b"}", b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("data", CORRUPT, ids=lambda data: repr(data[:60]))
def test_a_corrupt_record_is_named_and_left_for_the_user(files: InstanceFiles, data: bytes) -> None:
    files.state.write_bytes(data)
    with pytest.raises(StateError, match=r"state\.json") as caught:
        find_running(files, read_record(files))
    assert caught.value.hint
    assert files.state.read_bytes() == data


def test_a_record_that_is_a_directory_is_named(files: InstanceFiles) -> None:
    files.state.mkdir()
    with pytest.raises(StateError):
        read_record(files)


def test_a_running_process_is_found_and_others_are_not(files: InstanceFiles) -> None:
    record = own_record()
    found = find_running(files, record)
    assert found is not None
    found.close()
    stale = (
        None,
        replace(record, pid=0),
        replace(record, start_ticks=record.start_ticks - 1),
        replace(record, host_boot_id="of the boot before"),
    )
    assert [find_running(files, other) for other in stale] == [None] * 4


def test_a_write_that_fails_leaves_the_old_file(files: InstanceFiles) -> None:
    files.state.mkdir()
    with pytest.raises(HostError, match="cannot be written") as caught:
        write_atomically(files.state, b"x")
    assert caught.value.hint
    assert [path.name for path in files.directory.iterdir()] == ["state.json"]


def test_stale_files_go_and_logs_stay(files: InstanceFiles) -> None:
    for path in (*files.all_sockets, files.pid, files.serial_log, files.qemu_log, files.data_disk):
        path.write_bytes(b"x")
    remove_stale_files(files)
    assert {path.name for path in files.directory.iterdir()} == {"serial", "qemu.log", "disk.qcow2"}
    remove_stale_files(files)


HOLDER = """
import sys
from pathlib import Path
from control.vm.instance import claim_instance
with claim_instance(Path(sys.argv[1]), "one", or_next=False) as files:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(runtime: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has taken the instance `one`."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(runtime)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_two_processes_cannot_have_one_instance(runtime: Path, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(StateError, match="one") as caught, claim_instance(runtime, "one", or_next=False):
        pass
    assert "NAME=" in caught.value.hint
    with claim_instance(runtime, "one", or_next=True) as files:
        assert files.directory.name == "vm.one-2"
        with claim_instance(runtime, "one", or_next=True) as third:
            assert third.directory.name == "vm.one-3"


def test_a_lock_ends_with_its_holder_however_it_ends(runtime: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    with claim_instance(runtime, "one", or_next=False) as files:
        assert files.directory.name == "vm.one"


def test_a_vm_that_runs_without_us_is_not_free(runtime: Path, files: InstanceFiles) -> None:
    write_record(files, own_record())
    with pytest.raises(StateError), claim_instance(runtime, "one", or_next=False):
        pass
    write_record(files, replace(own_record(), start_ticks=1))
    with claim_instance(runtime, "one", or_next=False) as claimed, lock_instance(claimed) as again:
        assert claimed == files
        assert again is False


def test_an_error_while_it_is_claimed_passes_through(runtime: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), claim_instance(runtime, "one", or_next=True):
            raise KeyError


# -- the journal -------------------------------------------------------------------------------------------------------


def message(number: int, *, direction: str = "vm-to-host", text: str = "alive", **more: str) -> Message:
    return read_envelope(
        {
            "timestamp": "2026-01-01T00:00:00Z",
            "direction": direction,
            "type": "status",
            "data": {"message": text, "details": {"n": number}},
            **more,
        }
    )


def read_numbers(path: Path) -> list[int]:
    return [json.loads(line)["data"]["details"]["n"] for line in path.read_text().splitlines()]


def test_the_journal_keeps_order_and_is_read_by_others_at_once(files: InstanceFiles) -> None:
    with open_journal(files.messages, fresh=True) as journal:
        for number in range(100):
            journal.append(message(number))
        journal.flush()
        assert read_numbers(files.messages) == list(range(100))
    with open_journal(files.messages, fresh=False) as journal:
        journal.append(message(100))
    assert read_numbers(files.messages) == list(range(101))
    with open_journal(files.messages, fresh=True):
        assert read_numbers(files.messages) == []


def test_the_journal_grows_by_whole_lines(files: InstanceFiles) -> None:
    """Somebody reads it at any moment; what was cut off, by a full disk, takes nothing with it that comes later."""
    files.messages.write_bytes(b'{"cut o')
    with open_journal(files.messages, fresh=False) as journal:
        sizes = set()
        for number in range(2000):
            journal.append(message(number))
            text = files.messages.read_bytes()
            sizes.add(len(text))
            assert text.endswith(b"\n") or text == b'{"cut o'
    assert len(sizes) > 3, "some were written before the end"
    cut, *lines = files.messages.read_bytes().splitlines()
    assert cut == b'{"cut o'
    assert [json.loads(line)["data"]["details"]["n"] for line in lines] == list(range(2000))


def test_the_journal_is_bounded(files: InstanceFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "LIMIT_BYTES", 2000)
    with open_journal(files.messages, fresh=True) as journal:
        for number in range(200):
            journal.append(message(number))
    old = files.messages.with_name("messages.jsonl.1")
    numbers = read_numbers(old) + read_numbers(files.messages)
    assert numbers == list(range(200 - len(numbers), 200))
    assert old.stat().st_size + files.messages.stat().st_size < 5000


def test_a_journal_on_a_full_disk_says_so() -> None:
    with pytest.raises(HostError, match="No space left"), open_journal(Path("/dev/full"), fresh=False) as journal:
        journal.append(message(1))
        journal.flush()


# -- traffic -----------------------------------------------------------------------------------------------------------


class Ear:
    """Notes what a listener is told, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    @property
    def text(self) -> bytes:
        return b"".join(item for item in self.heard if isinstance(item, bytes))

    @property
    def messages(self) -> list[int]:
        return [item.details["n"] for item in self.heard if isinstance(item, Message)]

    async def on_console(self, chunk: bytes) -> None: ...

    async def on_text(self, text: bytes) -> None:
        self.heard.append(text)

    async def on_message(self, message: Message, carrier: Carrier) -> None:
        self.heard.append(message)

    def on_phase(self, phase: str, seconds: float) -> None: ...

    def on_note(self, note: str) -> None:
        self.heard.append(note)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def traffic(files: InstanceFiles, ear: Ear) -> Iterator[Traffic]:
    with open_journal(files.messages, fresh=True) as journal:
        yield Traffic(journal, ear, lambda message: None)


async def test_messages_and_text_come_apart_in_order(traffic: Traffic, ear: Ear, files: InstanceFiles) -> None:
    stream = b"boot\r\n" + encode_message(message(1)) + b"login: " + encode_message(message(2)) + b"end"
    for byte in stream:
        await traffic.take_console(bytes([byte]))
    assert ear.text == b"boot\r\nlogin: end"
    assert ear.messages == read_numbers(files.messages) == [1, 2]


async def test_a_message_over_two_carriers_is_heard_once(traffic: Traffic, ear: Ear) -> None:
    twice = message(1, id="same")
    await traffic.take_agent(twice.envelope)
    await traffic.take_console(encode_message(twice))
    await traffic.take_share(encode_message(twice))
    assert (ear.messages, ear.text) == ([1], b"")


async def test_a_message_that_claims_to_come_from_the_host_is_text_and_counted(traffic: Traffic, ear: Ear) -> None:
    lie = message(1, direction="host-to-vm")
    with traffic.expect_answer(message(0, direction="host-to-vm", id="q")) as answer:
        await traffic.take_console(encode_message(replace(lie, in_reply_to="q")))
        await traffic.take_agent(lie.envelope)
        assert not answer.done()
    assert traffic.counters.claimed_from_host == 2
    assert ear.messages == []
    assert len([item for item in ear.heard if isinstance(item, str)]) == 1


async def test_what_is_no_message_passes_as_text_and_is_counted(traffic: Traffic, ear: Ear) -> None:
    lines = b'{"type":"status"}\r\n{"data": nonsense\n{"id":"\\udfff","data":{"\\udfff":1}}\n'
    await traffic.take_console(lines)
    await traffic.take_agent({"type": "status"})
    await traffic.take_agent(None)
    await traffic.take_share(b"\xff")
    assert ear.text == lines
    assert traffic.counters.not_messages == 6


async def test_half_a_message_is_shown_after_a_moment(
    traffic: Traffic, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffics, "HELD_LINE_S", 0.02)
    await traffic.take_console(b'prompt {"type":"st')
    assert ear.text == b"prompt "
    async with asyncio.timeout(5):
        while ear.text != b'prompt {"type":"st':  # noqa: ASYNC110 - what is waited for is a timer of the product
            await asyncio.sleep(0.005)


async def test_answers_reach_who_waits(traffic: Traffic, files: InstanceFiles) -> None:
    with traffic.expect_answer(message(1, direction="host-to-vm", id="q")) as answer:
        await traffic.take_agent(message(2, in_reply_to="other").envelope)
        assert not answer.done()
        await traffic.take_agent(message(3, in_reply_to="q").envelope)
        await traffic.take_agent(message(4, in_reply_to="q").envelope)
        assert (await answer).details["n"] == 3
    await traffic.take_agent(message(5, in_reply_to="q").envelope)
    assert read_numbers(files.messages) == [1, 2, 3, 4, 5]


async def test_memory_for_ids_is_bounded(traffic: Traffic, ear: Ear) -> None:
    for number in range(traffics.REMEMBERED_IDS + 10):
        await traffic.take_agent(message(number, id=f"id-{number}").envelope)
    assert len(traffic._seen) == traffics.REMEMBERED_IDS
    assert len(ear.messages) == traffics.REMEMBERED_IDS + 10


async def test_history_shows_messages_and_notes_nothing(traffic: Traffic, ear: Ear, files: InstanceFiles) -> None:
    await traffic.show_history(b"old\r\n" + encode_message(message(1, id="a")) + b'tail {"type')
    assert (ear.messages, ear.text) == ([1], b'old\r\ntail {"type')
    await traffic.take_console(encode_message(message(1, id="a")))
    assert read_numbers(files.messages) == [1]


def test_every_error_has_an_exit_code_and_a_bounded_sentence() -> None:
    def walk(kind: type[ControlError]) -> Iterator[type[ControlError]]:
        yield kind
        for below in kind.__subclasses__():
            yield from walk(below)

    assert all(0 < kind.exit_code < 256 for kind in walk(ControlError))


@pytest.mark.parametrize("cut", range(1, 160, 3))
async def test_the_empty_line_before_a_message_goes_with_it_and_others_stay(
    cut: int, traffic: Traffic, ear: Ear
) -> None:
    data = b"one\r\n\r\n" + encode_message(message(1)) + b"two\r\n\r\nlogin: \r\n" + encode_message(message(2))
    await traffic.take_console(data[:cut])
    await traffic.take_console(data[cut:])
    await traffic.end_console()
    assert ear.text == b"one\r\ntwo\r\n\r\nlogin: \r\n"
    assert ear.messages == [1, 2]


async def test_history_asks_the_terminal_nothing(traffic: Traffic, ear: Ear) -> None:
    await traffic.show_history(b"# \x1b[6nls\r\n\x1b[c\x1b[31mred\x05\r\n")
    assert ear.text == b"# ls\r\n\x1b[31mred\r\n"
