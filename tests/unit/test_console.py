"""The console's bytes: apart from messages, as plain text, to wherever the user wants them (floor 2)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import pty
import socket
import threading
import time
import tracemalloc
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.console import scanner as scanning
from control.console.channel import LOOK_S, ConsoleChannel
from control.console.escape import ESCAPE_KEY, split_at_escape
from control.console.scanner import Candidate, MessageScanner, Text
from control.console.sink import open_output_sink
from control.console.tail import KEPT_BYTES, ConsoleTail, to_plain_text
from control.console.typed import Typed
from control.errors import ConsoleError

MESSAGE = (
    b'{"timestamp":"2026-01-01T00:00:00Z","direction":"vm-to-host","type":"status",'
    b'"data":{"message":"alive","details":{}}}\r\n'
)

# What a guest writes: text, whole and broken openings, line ends, and anything at all.
FRAGMENTS = st.sampled_from(
    [b'{"type":1}', b'{ "data"', b'{"', b"{", b'{    "in_reply_to"', b'{     "type"', b"\n", b"\r\n", b"login: ",
     b"\x1b[0m", "naïve".encode(), b'"timestamp"', MESSAGE, b"x" * 40]
)  # fmt: skip
STREAMS = st.lists(st.one_of(FRAGMENTS, st.binary(max_size=8)), max_size=40).map(b"".join)


def scan(data: bytes, cuts: list[int]) -> tuple[bytes, list[bytes]]:
    """All the bytes that came out, and the candidates among them, for `data` cut at `cuts`."""
    scanner = MessageScanner()
    out, candidates = b"", []
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        for piece in scanner.feed(data[start:end]):
            out += piece.data
            if isinstance(piece, Candidate):
                candidates.append(piece.data)
    return out + scanner.release(), candidates


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=60))
def test_the_bytes_and_the_candidates_do_not_depend_on_the_chunks(data: bytes, cuts: list[int]) -> None:
    whole, candidates = scan(data, [])
    assert whole == data
    assert scan(data, cuts) == (data, candidates)


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=60))
def test_the_same_with_lines_longer_than_the_limit(data: bytes, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "LINE_LIMIT_BYTES", 64)
        assert scan(data, cuts) == (data, scan(data, [])[1])


def test_every_byte_alone() -> None:
    data = b"[ 1.0] boot\r\nroot# " + MESSAGE + b'{"type" half'
    assert scan(data, list(range(len(data)))) == (data, [MESSAGE])


def test_a_message_behind_a_prompt_is_found_and_the_prompt_passes() -> None:
    assert list(MessageScanner().feed(b"root# " + MESSAGE)) == [Text(b"root# "), Candidate(MESSAGE)]


def test_text_that_cannot_become_a_message_passes_at_once() -> None:
    scanner = MessageScanner()
    for text in (b"login: ", b"{ not a key", b'{"other": 1}', b"a { b"):
        assert b"".join(piece.data for piece in scanner.feed(text)) == text
        assert not scanner.holds_back


def test_an_endless_line_takes_bounded_memory() -> None:
    """A gigabyte without a line end that begins like a message; fed in chunks, never held as a whole."""
    scanner = MessageScanner()
    chunk = b"A" * (8 * 1024 * 1024)
    seen = sum(len(piece.data) for piece in scanner.feed(b'{"type":"'))
    tracemalloc.start()
    try:
        for _ in range(128):
            for piece in scanner.feed(chunk):
                seen += len(piece.data)
                assert isinstance(piece, Text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen + len(scanner.release()) == 9 + 128 * len(chunk)
    assert peak < 4 * len(chunk)


# -- plain text --------------------------------------------------------------------------------------------------------

ESCAPES = st.sampled_from(
    [b"\x1b[31m", b"\x1b]0;title\x07", b"\x1b]8;;http://x\x1b\\", b"\x1b", b"\x1b[", b"\x1b\x1b[31m[31m", b"\x9b31m",
     b"\xc2\x9b31m", b"\x07", b"\r", b"\r\n", b"\xe2\x80\xae", b"\xe2\x80\xa8", b"\xff", b"\x00", b"\x1b(B", b"\x7f"]
)  # fmt: skip


@given(st.lists(st.one_of(ESCAPES, st.binary(max_size=12), st.text(max_size=6).map(str.encode)), max_size=30))
def test_plain_text_has_no_control_characters(parts: list[bytes]) -> None:
    for letter in to_plain_text(b"".join(parts)):
        assert letter in "\n\t" or (ord(letter) >= 0x20 and not 0x7F <= ord(letter) < 0xA0), hex(ord(letter))
        # Letters that turn the direction of what follows can make a line read as something it is not.
        assert not 0x202A <= ord(letter) <= 0x202E and not 0x2066 <= ord(letter) <= 0x2069, hex(ord(letter))
        assert letter not in "\u2028\u2029"


def test_plain_text_keeps_what_people_read() -> None:
    assert to_plain_text("\x1b[1mnaïve 日本\x1b[0m ok\r\n".encode()) == "naïve 日本 ok\n"


def test_the_tail_is_bounded_and_is_the_end() -> None:
    tail = ConsoleTail()
    for number in range(20000):
        tail.feed(f"line {number}\n".encode())
    assert tail.lines(2) == ("line 19998", "line 19999")
    tail.feed(b"x" * 10_000_000)
    assert len(tail.text_end(1)) <= 2 * KEPT_BYTES
    assert [len(line) for line in tail.lines(5)] == [200]


def test_the_end_of_the_tail_keeps_the_blank_of_a_prompt() -> None:
    tail = ConsoleTail()
    tail.feed(b"Debian\r\nunhinged login: ")
    assert tail.text_end(1) == "unhinged login: "


# -- the escape key ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=20))
def test_keys_are_split_at_the_first_escape(typed: bytes) -> None:
    before, after = split_at_escape(typed)
    assert bytes([ESCAPE_KEY]) not in before
    assert typed == (before if after is None else before + bytes([ESCAPE_KEY]) + after)


# -- the sink ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    try:
        yield read_end, write_end
    finally:
        for descriptor in (read_end, write_end):
            with contextlib.suppress(OSError):
                os.close(descriptor)


class SlowReader(threading.Thread):
    """Reads all there is, waiting for leave before it begins."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.leave = threading.Event()
        self.data = bytearray()
        self._descriptor = descriptor

    def run(self) -> None:
        self.leave.wait(30)
        while True:
            try:
                chunk = os.read(self._descriptor, 65536)
            except OSError:
                return  # EIO: the other end of a terminal was closed
            if not chunk:
                return
            self.data += chunk


DATA = bytes(range(256)) * 4096  # 1 MiB: far more than a pipe holds


async def write_to_slow_reader(reading: int, writing: int) -> bytes:
    """Write `DATA` while nobody reads at first; the event loop must stay alive meanwhile."""
    reader = SlowReader(reading)
    reader.start()
    flags = fcntl.fcntl(writing, fcntl.F_GETFL)
    ticks = 0
    try:
        with open_output_sink(writing) as sink:
            work = asyncio.create_task(sink.write(DATA))
            for _ in range(20):
                await asyncio.sleep(0.001)
                ticks += 1
            assert not work.done()
            assert fcntl.fcntl(writing, fcntl.F_GETFL) == flags
            reader.leave.set()
            await asyncio.wait_for(work, 30)
            assert sink.bytes_written == len(DATA)
    finally:
        reader.leave.set()
        os.close(writing)
        reader.join(30)
    assert ticks == 20
    return bytes(reader.data)


async def test_a_pipe_with_a_slow_reader_gets_every_byte() -> None:
    with opened_pipe() as (read_end, write_end):
        assert await write_to_slow_reader(read_end, write_end) == DATA


async def test_a_socket_with_a_slow_reader_gets_every_byte() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        assert await write_to_slow_reader(theirs.fileno(), ours.detach()) == DATA


async def test_a_terminal_with_a_slow_reader_gets_every_byte() -> None:
    outer, inner = pty.openpty()
    try:
        tty.setraw(inner)
        got = await write_to_slow_reader(outer, inner)
    finally:
        os.close(outer)
    # What follows is what every terminal is left with: no colour, cursor shown.
    assert got[: len(DATA)] == DATA
    assert len(got) - len(DATA) < 64


async def test_a_file_gets_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file, open_output_sink(file.fileno()) as sink:
        await sink.write(DATA)
    assert path.read_bytes() == DATA


async def test_a_file_is_appended_to_where_the_user_stands(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("wb") as file:
        os.write(file.fileno(), b"before ")
        with open_output_sink(file.fileno()) as sink:
            await sink.write(b"after")
    assert path.read_bytes() == b"before after"


async def test_a_closed_output_swallows() -> None:
    with opened_pipe() as (_, write_end):
        os.close(write_end)
        with open_output_sink(write_end) as sink:
            await sink.write(DATA)


async def test_dev_null_swallows() -> None:
    null = os.open("/dev/null", os.O_WRONLY)
    with open_output_sink(null) as sink:
        await sink.write(DATA)
    os.close(null)


async def test_a_reader_that_goes_is_an_error() -> None:
    with opened_pipe() as (read_end, write_end), open_output_sink(write_end) as sink:
        work = asyncio.create_task(sink.write(DATA))
        await asyncio.sleep(0)
        os.close(read_end)
        with pytest.raises(ConsoleError, match="gone"):
            await asyncio.wait_for(work, 10)
        assert 0 <= sink.bytes_written < len(DATA)


async def test_a_reader_that_had_gone_before_is_an_error() -> None:
    with opened_pipe() as (read_end, write_end):
        os.close(read_end)
        with open_output_sink(write_end) as sink, pytest.raises(ConsoleError, match="gone"):
            await asyncio.wait_for(sink.write(b"x"), 10)


async def test_a_full_disk_is_an_error_that_says_so() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with open_output_sink(full) as sink, pytest.raises(ConsoleError, match="No space left"):
        await sink.write(b"x")
    os.close(full)


async def test_a_cancelled_write_lets_go_of_the_descriptor() -> None:
    with opened_pipe() as (_, write_end), open_output_sink(write_end) as sink:
        work = asyncio.create_task(sink.write(DATA))
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work


# -- the channel -------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(tmp_path: Path) -> Iterator[BinaryIO]:
    """What a guest says into."""
    with (tmp_path / "serial").open("ab", buffering=0) as said:
        yield said


@pytest.fixture
def channel(said: BinaryIO) -> Iterator[ConsoleChannel]:
    channel = ConsoleChannel(Path(said.name))
    yield channel
    channel.close()


async def test_a_channel_gives_every_byte_as_it_comes_and_ends_with_the_guest(
    said: BinaryIO, channel: ConsoleChannel
) -> None:
    def play_guest() -> None:
        for start in range(0, len(DATA), 7919):
            said.write(DATA[start : start + 7919])

    guest = threading.Thread(target=play_guest)
    guest.start()
    got = b""
    async with asyncio.timeout(30):
        async for chunk in channel.chunks():
            got += chunk
            if len(got) == len(DATA):
                channel.finish()
    guest.join()
    assert got == DATA


async def test_a_channel_is_told_of_a_single_byte(said: BinaryIO, channel: ConsoleChannel) -> None:
    chunks = channel.chunks()
    async with asyncio.timeout(LOOK_S / 2):  # told, and not found when it looked again
        for number in range(50):
            waiting = asyncio.ensure_future(anext(chunks))
            await asyncio.sleep(0)
            said.write(bytes([number]))
            assert await waiting == bytes([number])
    await chunks.aclose()


async def test_a_channel_may_begin_at_the_end(said: BinaryIO) -> None:
    said.write(b"before")
    late = ConsoleChannel(Path(said.name), position=None)
    said.write(b"after")
    late.finish()
    assert b"".join([chunk async for chunk in late.chunks()]) == b"after"
    late.close()


async def test_a_flood_does_not_stop_the_clock(said: BinaryIO, channel: ConsoleChannel) -> None:
    """A guest that always has more to say, shown more slowly than it speaks, must not keep a deadline from passing."""
    said.truncate(1 << 40)

    async def read() -> None:
        async for _ in channel.chunks():
            time.sleep(0.002)  # noqa: ASYNC251 - showing it takes this long, and is meant to block

    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await read()
    assert loop.time() - started < 2


@contextlib.contextmanager
def opened_fifo(directory: Path) -> Iterator[tuple[Typed, int]]:
    """The way to a console, and the descriptor of whoever reads what is typed."""
    os.mkfifo(directory / "serial.in")
    reading = os.open(directory / "serial.in", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reading, True)
    typed = Typed(directory / "serial.in")
    try:
        yield typed, reading
    finally:
        typed.close()


async def test_what_is_typed_arrives_whole_and_in_order(tmp_path: Path) -> None:
    with opened_fifo(tmp_path) as (typed, reading):
        reader = SlowReader(reading)
        writing = asyncio.gather(*(typed.write(bytes([number]) * 100_000) for number in range(8)))
        await asyncio.sleep(0.01)
        assert not writing.done(), "the FIFO is full, and nobody reads"
        reader.start()
        reader.leave.set()
        await asyncio.wait_for(writing, 30)
    await asyncio.to_thread(reader.join, 30)
    os.close(reading)
    assert bytes(reader.data) == b"".join(bytes([number]) * 100_000 for number in range(8))


async def test_typing_at_a_dead_console_is_an_error(tmp_path: Path) -> None:
    with opened_fifo(tmp_path) as (typed, reading):
        await typed.write(b"x")
        os.close(reading)
        with pytest.raises(ConsoleError):
            await typed.write(b"x")
    with pytest.raises(ConsoleError):
        await Typed(tmp_path / "serial.in").write(b"x")


async def test_two_writers_of_one_full_pipe_both_finish_and_do_not_mix() -> None:
    """An event loop takes one writer for a descriptor: the first of two that wait must not be forgotten."""
    read_end, write_end = os.pipe()
    reader = SlowReader(read_end)
    reader.start()
    first, second = b"a" * len(DATA), b"b" * len(DATA)
    try:
        with open_output_sink(write_end) as sink:
            work = asyncio.gather(sink.write(first), sink.write(second))
            await asyncio.sleep(0.01)
            assert not work.done()
            reader.leave.set()
            await asyncio.wait_for(work, 30)
    finally:
        reader.leave.set()
        os.close(write_end)
        reader.join(30)
    assert bytes(reader.data) == first + second
