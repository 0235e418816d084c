"""A recording holds when a console said what, and no secret that was typed on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.console import echo
from control.console import recorder as recording
from control.console.channel import ConsoleChannel
from control.console.echo import WAIT_S, WAITING_MAX_BYTES
from control.console.recorder import FILE_MAX_BYTES, LABEL_MAX, LABELS_A_SECOND, MERGE_S, Recorder
from control.errors import HostError
from control.vm.recording import ConsoleRecording

BEGAN = 1_700_000_000.0


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Console:
    """A console that is recorded, and the recording of it."""

    def __init__(self, path: Path, **more: Any) -> None:
        self.clock = Clock()
        self.path = path
        self.offset = 0
        self.recorder = Recorder(
            path, started_at=BEGAN, console="ttyS0", clock=self.clock, wall=lambda: BEGAN + self.clock.now - 50, **more
        )

    def say(self, data: bytes, *, after: float = 0.05) -> None:
        self.clock.now += after
        self.offset += len(data)
        self.recorder.said(data, self.offset)

    def say_byte_by_byte(self, data: bytes) -> None:
        for at in range(len(data)):
            self.say(data[at : at + 1], after=0.0001)

    def type(self, data: bytes, *, after: float = 0.05) -> None:
        self.clock.now += after
        self.recorder.typed(data)

    def type_slowly(self, data: bytes, *, echo: bool, pause: float = 0.1) -> None:
        for at in range(len(data)):
            self.type(data[at : at + 1], after=pause)
            if echo:
                self.say(data[at : at + 1], after=0.002)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.recorder.flush()

    def entries(self) -> list[Any]:
        self.recorder.close()
        return [json.loads(line) for line in self.path.read_text().splitlines()[1:]]

    def typed(self) -> str:
        return "".join(value for _, kind, value in self.entries() if kind == "i")


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path / "serial.times")
    yield console
    console.recorder.close()


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_entries_and_their_times(console: Console) -> None:
    console.say(b"one", after=1)
    console.recorder.mark("kernel")
    console.say(b"two", after=1)
    console.recorder.resized(132, 43)
    header = json.loads(console.path.read_text().splitlines()[0])
    assert header == {"version": 1, "started_at": BEGAN, "console": "ttyS0", "columns": 80, "rows": 24}
    assert console.entries() == [[1.0, "o", 3], [1.0, "m", "kernel"], [2.0, "o", 6], [2.0, "r", "132x43"]]
    assert console.path.stat().st_mode & 0o777 == 0o600


def test_output_that_comes_together_is_one_entry_with_the_time_of_its_end(console: Console) -> None:
    console.say(b"a", after=1)
    console.say(b"b", after=MERGE_S / 4)
    console.say(b"c", after=MERGE_S / 4)
    assert console.recorder.due == pytest.approx(51 + MERGE_S)
    console.say(b"d", after=MERGE_S)
    assert console.entries() == [[1.005, "o", 3], [1.015, "o", 4]]


def test_what_is_due_is_written_without_more_coming(console: Console) -> None:
    console.say(b"a", after=1)
    console.recorder.flush(51 + MERGE_S)
    assert console.path.read_text().endswith('[1.0, "o", 1]\n')
    assert console.recorder.due is None


def test_labels_are_bounded(console: Console) -> None:
    for _ in range(LABELS_A_SECOND * 3):
        console.recorder.mark("x" * 1000)
    console.wait(1.0)
    console.recorder.mark("later")
    labels = [value for _, kind, value in console.entries() if kind == "m"]
    assert len(labels) == LABELS_A_SECOND + 1 and labels[-1] == "later"
    assert len(labels[0]) == LABEL_MAX


def test_another_supervisor_goes_on(tmp_path: Path) -> None:
    """The first was killed while it wrote; the guest went on meanwhile."""
    first = Console(tmp_path / "serial.times")
    first.say(b"early", after=1)
    first.wait(1)
    with first.path.open("ab") as file:
        file.write(b'[1.5, "o", 1')
    second = Recorder(
        first.path, started_at=BEGAN + 99, console="ttyS0", clock=Clock(), wall=lambda: BEGAN + 10
    )  # what it says about the beginning does not count
    assert second.offset == 5
    second.said(b"", 500)
    second.close()
    lines = first.path.read_text().splitlines()
    assert json.loads(lines[0])["started_at"] == BEGAN
    assert [json.loads(line) for line in lines[1:]] == [[1.0, "o", 5], [10.0, "o", 500]]


def test_times_stay_in_order_though_the_host_was_set_back(tmp_path: Path) -> None:
    first = Console(tmp_path / "serial.times")
    first.say(b"early", after=100)
    first.recorder.close()
    with Recorder(first.path, started_at=0, console="ttyS0", clock=Clock(), wall=lambda: BEGAN - 3600) as second:
        second.mark("after")
    times = [json.loads(line)[0] for line in first.path.read_text().splitlines()[1:]]
    assert times == [100.0, 100.0]


@pytest.mark.parametrize("garbage", [b"", b"half", b"[]\n", b'{"version": 2}\n[1, "o", 1]\n', b"\xff\n"])
def test_a_file_that_is_no_recording_is_begun_anew(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "serial.times").write_bytes(garbage)
    console = Console(tmp_path / "serial.times")
    console.say(b"x", after=1)
    assert console.entries() == [[1.0, "o", 1]]


def test_the_file_is_bounded_and_keeps_its_newest_half(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILE_MAX_BYTES == 32 << 20
    monkeypatch.setattr(recording, "FILE_MAX_BYTES", 20_000)
    sizes = set()
    for _ in range(5000):
        console.say(b"x", after=MERGE_S * 2)
        sizes.add(console.path.stat().st_size)
    assert max(sizes) < 20_000 + 100
    console.recorder.close()
    header, *lines = console.path.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert json.loads(header)["started_at"] == BEGAN
    assert json.loads(header)["dropped_s"] == entries[0][0]
    assert entries[-1][2] == 5000 and [entry[2] for entry in entries] == sorted(entry[2] for entry in entries)
    assert [path.name for path in console.path.parent.iterdir()] == ["serial.times"]


def test_a_disk_that_is_full_is_an_error_and_the_file_can_be_gone_on_with(tmp_path: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("this host has no /dev/full")
    with pytest.raises(HostError, match="cannot be written"):
        Recorder(Path("/dev/full"), started_at=BEGAN, console="ttyS0")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "serial.times").symlink_to("target")
    with pytest.raises(HostError):
        Console(tmp_path / "serial.times")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_burst_is_not_slowed_down(tmp_path: Path) -> None:
    """Of 100 MB in pieces as small as 4 KiB, with keys waiting. Beside it, their checksum: it takes as long as that."""
    chunk = b"The guest prints and prints, line after line of it.\r\n" * 78
    with Recorder(tmp_path / "serial.times", started_at=time.time(), console="ttyS0") as recorder:
        offset = 0
        began = time.process_time()
        for count in range(25_000):
            offset += len(chunk)
            recorder.said(chunk, offset)
            if count % 1000 == 0:
                recorder.typed(b"q")
        used = time.process_time() - began
    began = time.process_time()
    for _ in range(25_000):
        zlib.crc32(chunk)
    assert used < 4 * (time.process_time() - began), f"{used:.2f} s of CPU for {offset / 1e6:.0f} MB"


# -- what was typed ----------------------------------------------------------------------------------------------------


def test_what_is_echoed_is_kept(console: Console) -> None:
    console.say(b"$ ")
    console.type_slowly(b"ls -l", echo=True)
    console.type(b"\r")
    console.say(b"\r\nfile\r\n$ ")
    console.type_slowly("naïve €".encode(), echo=True)
    console.wait(WAIT_S)
    assert console.typed() == "ls -l\rnaïve €"


def test_events_stand_in_the_order_of_their_times(console: Console) -> None:
    console.type(b"a")
    console.recorder.mark("one")
    console.say(b"a")
    console.recorder.mark("two")
    console.wait(WAIT_S)
    entries = console.entries()
    assert [kind for _, kind, _ in entries] == ["i", "m", "o", "m"]
    assert [at for at, _, _ in entries] == sorted(at for at, _, _ in entries)


def test_a_password_that_is_not_echoed_is_masked(console: Console) -> None:
    console.say(b"Password: ")
    console.type(b"hunter2\r")
    console.say(b"\r\nLast login: never\r\n$ ")
    assert console.typed() == "*******\r"


def test_a_password_typed_so_slowly_that_its_beginning_has_waited_too_long(console: Console) -> None:
    console.say(b"Password: ")
    console.type_slowly(b"hunter2", echo=False, pause=0.9)
    console.type(b"\r")
    console.say(b"\r\n$ ")
    assert console.typed() == "*******\r"


@pytest.mark.parametrize("password", [b"hunter2", b"P4ssw0rd", b"Password", b"P"])
@pytest.mark.parametrize("is_split", [False, True])
def test_a_password_whose_prompt_is_still_on_its_way(console: Console, password: bytes, is_split: bool) -> None:
    """Also one that begins like the prompt; one that is the whole prompt looks like its echo."""
    console.say(b"$ ")
    console.type_slowly(b"su", echo=True)
    console.type(b"\r")
    console.say(b"\r\n")
    console.type(password)
    say = console.say_byte_by_byte if is_split else console.say
    say(b"Password: ")
    console.type(b"\r")
    say(b"\r\n# ")
    shown = console.typed()
    assert shown in ("su\r" + "*" * len(password) + "\r", "**\r" + "*" * len(password) + "\r")


@pytest.mark.parametrize("is_split", [False, True])
def test_login_and_password_sent_at_once(console: Console, is_split: bool) -> None:
    console.say(b"login: ")
    console.type(b"root\rsecret\r")
    (console.say_byte_by_byte if is_split else console.say)(b"root\r\nPassword: ")
    console.say(b"\r\n# ")
    assert console.typed() == "root\r******\r"


def test_a_password_whose_last_letters_are_what_the_guest_says_next(console: Console) -> None:
    console.say(b"Password: ")
    console.type_slowly(b"abc$ ", echo=False, pause=0.7)
    console.say(b"$ ")
    assert console.typed() == "*****"


def test_a_password_whose_first_letters_are_what_the_guest_says_next(console: Console) -> None:
    console.say(b"Password: ")
    console.type(b"Last")
    console.type(b" of all\r")
    console.say(b"Last login: never\r\n")
    assert console.typed() == "***********\r"


def test_stars_for_letters_are_no_echo(console: Console) -> None:
    console.say(b"[sudo] password for me: ")
    for letter in b"*unter2":
        console.type(bytes([letter]))
        console.say(b"*")
    console.type(b"\r")
    console.say(b"\r\n")
    assert console.typed() == "*******\r"


def test_a_late_echo_is_not_taken_for_that_of_the_password(console: Console) -> None:
    """The guest hangs; its user's name is echoed only after the password, which is the same, was typed."""
    console.say(b"login: ")
    console.type(b"root\r")
    console.wait(WAIT_S + 0.1)
    console.type(b"root\r")
    console.say(b"root\r\nPassword: ")
    console.say(b"\r\n# ")
    assert console.typed() == "****\r****\r"


def test_a_guest_that_answers_very_late(console: Console) -> None:
    console.type(b"ls\r")
    console.say(b"ls\r\n", after=WAIT_S + 1)
    console.type_slowly(b"pwd", echo=True)
    console.type(b"\r")
    console.say(b"\r\n/root\r\n")
    assert console.typed() == "**\rpwd\r"


def test_what_the_kernel_says_in_the_middle_of_a_line_masks_it(console: Console) -> None:
    console.type_slowly(b"rm", echo=True)
    console.say(b"[   12.0] usb 1-1: new device\r\n")
    console.type_slowly(b" -rf", echo=True)
    console.type(b"\r")
    console.say(b"\r\n")
    console.type_slowly(b"id", echo=True)
    console.wait(WAIT_S)
    assert console.typed() == "******\rid"


def test_two_people_at_one_console(console: Console) -> None:
    console.say(b"$ ")
    console.type(b"l")
    console.type(b"i", after=0.001)
    console.say(b"li")
    console.type(b"s")
    console.type(b"d", after=0.001)
    console.say(b"sd")
    console.type(b"\r")
    console.say(b"\r\nPassword: ")
    console.type(b"se")
    console.type(b"XY")  # the other does not know that a password is typed
    console.type(b"cret\r")
    console.say(b"\r\n")
    assert console.typed() == "lisd\r********\r"


def test_keys_are_no_secrets(console: Console) -> None:
    console.say(b"Password: ")
    keys = b"\x1b[A\x1b[1;5C\x1bOP\x1b[3~\t\x03\x04\x15"
    console.type(keys)
    console.wait(WAIT_S)
    assert console.typed().encode() == keys


def test_a_key_that_is_typed_in_pieces(console: Console) -> None:
    for piece in (b"\x1b", b"[", b"1;5", b"C"):
        console.type(piece)
    console.type(b"\x1b")
    console.type(b"[secret")
    console.wait(WAIT_S)
    assert console.typed() == "\x1b[1;5C\x1b*******"


def test_erasing_and_completing(console: Console) -> None:
    console.type_slowly(b"lx", echo=True)
    console.type(b"\x7f")
    console.say(b"\b \b")
    console.type_slowly(b"s fi", echo=True)
    console.type(b"\t")
    console.say(b"le.txt ")
    console.type(b"\r")
    console.say(b"\r\n")
    assert console.typed() == "lx\x7fs fi\t\r"


def test_a_character_that_is_split(console: Console) -> None:
    for byte in "é€".encode():
        console.type(bytes([byte]))
        console.say(bytes([byte]))
    console.wait(WAIT_S)
    console.type(b"\r")
    console.say(b"\r\n")
    console.say(b"Password: ")
    for byte in "é€".encode():
        console.type(bytes([byte]))
    console.say(b"\r\n")
    assert console.typed() == "é€\r**"


def test_an_escape_sequence_of_the_output_that_is_split(console: Console) -> None:
    console.say(b"$ \x1b[3")
    console.type(b"ls")
    for piece in (b"2m", b"l", b"\x1b", b"[0", b"m\x1b]0;ti", b"tle\x07", b"s"):
        console.say(piece)
    console.wait(WAIT_S)
    assert console.typed() == "ls"


def test_a_long_paste_that_is_echoed(console: Console) -> None:
    """Line by line, as far as the guest follows."""
    paste = "".join(f"line number {number}\r" for number in range(6000))
    assert len(paste) > 100_000
    for at in range(0, len(paste), 32768):
        part = paste[at : at + 32768].encode()
        console.type(part)
        echo = part.replace(b"\r", b"\r\n")
        for begin in range(0, len(echo), 1000):
            console.say(echo[begin : begin + 1000], after=0.001)
    entries = console.entries()
    assert "".join(value for _, kind, value in entries if kind == "i") == paste
    assert all(len(value) <= recording.INPUT_MAX for _, kind, value in entries if kind == "i")


def test_a_long_paste_that_is_not_echoed(console: Console) -> None:
    paste = b"0123456789abcdef" * (WAITING_MAX_BYTES // 16 + 100)
    console.type(paste)
    console.wait(WAIT_S)
    assert console.typed() == "*" * len(paste)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("say"), st.sampled_from([b"Password: ", b"\r\n", b"# ", b"\x1b[1m", b"*", b"root", b"x"])
            ),
            st.tuples(st.just("key"), st.sampled_from([b"\r", b"\x7f", b"\t", b"\x1b[A", b"\x03"])),
            st.tuples(st.just("wait"), st.sampled_from([b"0.01", b"0.5", b"3"])),
            st.tuples(st.just("secret"), st.sampled_from([b"\xc3\xa9\xc3\xa9", b"Q", b"QZ7", b"Z7"])),
        ),
        max_size=25,
    )
)
def test_nothing_the_guest_never_said_is_recorded(steps: list[tuple[str, bytes]]) -> None:
    """Letters that never come from the guest are never kept, whatever else happens between them."""
    with tempfile.TemporaryDirectory() as directory:
        console = Console(Path(directory) / "times")
        for what, value in steps:
            if what == "say":
                console.say(value)
            elif what == "wait":
                console.wait(float(value))
            else:
                console.type(value)
        typed = console.typed()
    assert not set(typed) & set("éQZ7"), typed
    secret = sum(len(value.decode()) for what, value in steps if what == "secret")
    assert typed.count("*") == secret


# -- as a VM keeps it --------------------------------------------------------------------------------------------------


async def wait_for_line(path: Path, line: bytes) -> None:
    file = ConsoleChannel(path)
    seen = b""
    try:
        async with asyncio.timeout(20), contextlib.aclosing(file.chunks()) as chunks:
            async for chunk in chunks:
                seen += chunk
                if line in seen:
                    return
    finally:
        file.close()


async def test_what_is_due_is_written_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "WAIT_S", 0.05)
    monkeypatch.setattr(echo, "WAIT_S", 0.05)
    notes: list[str] = []
    path = tmp_path / "serial.times"
    kept = ConsoleRecording(path, "ttyS0", notes.append, offset=0)
    try:
        kept.typed(b"secret")
        await wait_for_line(path, b'"i", "******"]')
        kept.said(b"x", 1)
        kept.said(b"y", 2)
        await wait_for_line(path, b'"o", 2]')
    finally:
        kept.close()
    assert not notes


async def test_a_recording_that_cannot_be_written_is_named_once_and_holds_up_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "serial.times").mkdir()
    kept = ConsoleRecording(tmp_path / "serial.times", "ttyS0", notes.append, offset=0)
    kept.said(b"x", 1)
    kept.typed(b"x")
    kept.mark("x")
    kept.close()
    assert len(notes) == 1 and "not recorded" in notes[0]


async def test_a_disk_that_fills_up_is_named_once(tmp_path: Path) -> None:
    """The limit of the size of files stands in for the disk."""
    notes: list[str] = []
    path = tmp_path / "serial.times"
    kept = ConsoleRecording(path, "ttyS0", notes.append, offset=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        for number in range(20):
            kept.mark(f"label {number}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(notes) == 1 and path.stat().st_size == 300
    again = ConsoleRecording(path, "ttyS0", notes.append, offset=7)
    again.close()
    lines = path.read_text().splitlines()
    assert [json.loads(line)[1] for line in lines[1:]][-2:] == ["m", "o"], "gone on with, its half line repaired"


# -- a real shell ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_shell(console: Console, *argv: str) -> Iterator[int]:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(argv[0], argv, {"PATH": os.environ["PATH"], "PS1": "$ ", "TERM": "xterm", "HOME": "/nowhere"})
    console.clock.now = time.monotonic()
    try:
        yield terminal
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def hear_until(console: Console, terminal: int, end: bytes) -> None:
    heard = b""
    while end not in heard:
        assert select.select([terminal], [], [], 20)[0], heard
        chunk = os.read(terminal, 4096)
        heard += chunk
        console.say(chunk, after=0.001)


def enter(console: Console, terminal: int, data: bytes, *, until: bytes) -> None:
    console.type(data, after=0.001)
    os.write(terminal, data)
    hear_until(console, terminal, until)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here: apt install bash")
def test_a_real_bash_with_readline_and_bracketed_paste(console: Console) -> None:
    with open_shell(console, "bash", "--norc", "--noprofile", "-i") as terminal:
        hear_until(console, terminal, b"$ ")
        for key in b"echo one":
            enter(console, terminal, bytes([key]), until=bytes([key]))
        enter(console, terminal, b"\r", until=b"$ ")
        enter(console, terminal, b"\x1b[200~echo two\x1b[201~", until=b"two")
        console.wait(WAIT_S)
        enter(console, terminal, b"\r", until=b"two\r\n\x1b[?2004h$ ")
        enter(console, terminal, b"read -s -p Secret: x\r", until=b"\rSecret:")
        enter(console, terminal, b"hunter2\r", until=b"$ ")
        enter(console, terminal, b"stty -echo; cat\r", until=b"\r\n")
        for line in (b"swordfish\r", b"plugh\r"):
            console.type(line, after=0.5)
            os.write(terminal, line)
            hear_until(console, terminal, line[:-1])  # cat says it, which is no echo, and in the log anyway
        enter(console, terminal, b"\x04", until=b"$ ")
        enter(console, terminal, b"exit\r", until=b"exit\r\n")
    typed = console.typed()
    assert typed.startswith("echo one\r\x1b[200~echo two\x1b[201~\rread -s -p Secret: x\r*******\r"), typed
    assert "hunter2" not in console.path.read_text()


def test_a_real_getpass(console: Console) -> None:
    program = "import getpass; print(len(getpass.getpass()), input('Name: '))"
    with open_shell(console, sys.executable, "-c", program) as terminal:
        hear_until(console, terminal, b"Password: ")
        for key in b"s3cret":
            console.type(bytes([key]), after=0.2)
            os.write(terminal, bytes([key]))
        enter(console, terminal, b"\r", until=b"Name: ")
        enter(console, terminal, b"me\r", until=b"6 me\r\n")
    assert console.typed() == "******\rme\r"
