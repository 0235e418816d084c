"""The host's decoders of frames and trees, and its streams, against guests that lie (floor 2)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import socket
import stat
import struct
import tempfile
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.agent import frames
from control.agent.client import AgentClient, serve_agent
from control.agent.connection import ROOM_BYTES
from control.agent.frames import CREDIT, DATA, END, HELLO, RESET, FrameDecoder, FrameError
from control.agent.trees import Copied, Limits, TreeWriter, pack_tree, read_entry
from control.errors import AgentProtocolError, TransferError

SESSION = "0123456789abcdef" * 2


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    return frames.build_header(kind, stream, len(payload)) + payload


FRAMES = st.one_of(
    st.tuples(st.just(DATA), st.integers(1, 9), st.binary(max_size=50)),
    st.tuples(st.just(END), st.integers(1, 9), st.just(b"")),
    st.tuples(st.just(RESET), st.integers(1, 9), st.binary(max_size=20)),
    st.tuples(st.just(CREDIT), st.integers(1, 9), st.binary(min_size=4, max_size=4)),
)


def decode(data: bytes, cuts: list[int]) -> list[tuple[int, int, bytes]]:
    """Decode `data` in pieces; parts of one `DATA` frame are joined, empty ones are left out."""
    decoder = FrameDecoder(SESSION)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    found: list[tuple[int, int, bytes]] = []
    for begin, end in itertools.pairwise(edges):
        for seen in decoder.feed(memoryview(data[begin:end])):
            found.append((seen.kind, seen.stream, bytes(seen.payload)))
            assert len(decoder._held) <= 1100
    return found


def joined(found: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    result: list[tuple[int, int, bytes]] = []
    for kind, stream, payload in found:
        if kind == DATA and result and result[-1][:2] == (DATA, stream):
            result[-1] = (DATA, stream, result[-1][2] + payload)
        elif kind != DATA or payload:
            result.append((kind, stream, payload))
    return result


@given(st.binary(max_size=100), st.lists(FRAMES, max_size=10), st.lists(st.integers(0, 2000), max_size=30))
def test_frames_do_not_depend_on_the_chunks(before: bytes, sent: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    """Whatever comes before the HELLO of the session is thrown away, the HELLO of another one too."""
    data = before + frames.build_hello("f" * 32) + frames.build_hello(SESSION) + b"".join(frame(*one) for one in sent)
    assert joined(decode(data, cuts)) == joined(sent)


@given(FRAMES)
def test_a_frame_as_a_line_comes_back(sent: tuple[int, int, bytes]) -> None:
    line = frames.encode_line(*sent)
    assert line.endswith(b"\n") and not set(line[:-1]) & set(b"\n\x11\x13") and line[0] == frames.LINE_MARK
    found = frames.decode_line(line[:-1])
    assert (found.kind, found.stream, found.payload) == sent


@given(st.binary(max_size=200))
def test_garbage_as_a_line_is_refused_or_a_frame(data: bytes) -> None:
    with contextlib.suppress(FrameError):
        found = frames.decode_line(b"\xf5" + data)
        assert frames.decode_line(frames.encode_line(found.kind, found.stream, found.payload)[:-1]) == found


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=10))
def test_garbage_after_the_hello_is_refused(data: bytes, cuts: list[int]) -> None:
    if data[:4] == frames.MAGIC[: len(data[:4])]:
        return
    with pytest.raises(FrameError):
        decode(frames.build_hello(SESSION) + data.ljust(16, b"x"), cuts)


@pytest.mark.parametrize(
    "header",
    [
        b"x" * 16,
        struct.pack("<4sB3sII", frames.MAGIC, 0, b"\0\0\0", 1, 0),
        struct.pack("<4sB3sII", frames.MAGIC, 6, b"\0\0\0", 1, 0),
        struct.pack("<4sB3sII", frames.MAGIC, DATA, b"\0\1\0", 1, 0),
        struct.pack("<4sB3sII", frames.MAGIC, DATA, b"\0\0\0", 1, 262145),
        struct.pack("<4sB3sII", frames.MAGIC, DATA, b"\0\0\0", 1, 2**32 - 1),
        struct.pack("<4sB3sII", frames.MAGIC, END, b"\0\0\0", 1, 1),
        struct.pack("<4sB3sII", frames.MAGIC, RESET, b"\0\0\0", 1, 1025),
        struct.pack("<4sB3sII", frames.MAGIC, CREDIT, b"\0\0\0", 1, 5),
    ],
)
def test_what_is_no_frame_is_refused(header: bytes) -> None:
    with pytest.raises(FrameError):
        decode(frames.build_hello(SESSION) + header, [])


# -- streams -----------------------------------------------------------------------------------------------------------


class Liar:
    """A guest with both ports, played by the test."""

    def __init__(self, client: AgentClient, port: socket.socket, bulk: socket.socket) -> None:
        self.client, self.port, self.bulk = client, port, bulk
        self._lines = b""

    async def read(self) -> Any:
        while True:
            line, end, rest = self._lines.partition(b"\n")
            if end:
                self._lines = rest
                if line:
                    return json.loads(line)
                continue
            chunk = await asyncio.get_running_loop().sock_recv(self.port, 65536)
            assert chunk
            self._lines += chunk

    async def read_bulk(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await asyncio.get_running_loop().sock_recv(self.bulk, size - len(data))
            assert chunk
            data += chunk
        return data

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.bulk, data)

    async def answer(self, request: Any, **result: Any) -> None:
        line = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode() + b"\n"
        await asyncio.get_running_loop().sock_sendall(self.port, line)

    async def shake_hands(self) -> str:
        """Answer the next `hello` and exchange the HELLOs."""
        request = await self.read()
        assert request["method"] == "hello"
        session = str(request["params"]["session"])
        who = {"version": "1", "protocol": 1, "pid": 1, "boot_id": "b", "transport": "virtio-serial"}
        await self.answer(request, **who, session=session, capabilities=["streams"])
        await self.send(frames.build_hello(session))
        assert (await self.read_bulk(48)) == frames.build_hello(session)
        return session


@pytest.fixture
async def liar() -> AsyncIterator[Liar]:
    pairs = socket.socketpair(), socket.socketpair()

    async def take(method: str, params: object) -> None: ...

    for _, theirs in pairs:
        theirs.setblocking(False)
    with pairs[0][1], pairs[1][1]:
        async with serve_agent(AgentClient(pairs[0][0], take, bulk=pairs[1][0])) as client, asyncio.timeout(30):
            liar = Liar(client, pairs[0][1], pairs[1][1])
            await liar.shake_hands()
            await client.wait_until_ready(5)
            yield liar


async def test_bytes_and_credit_both_ways(liar: Liar) -> None:
    incoming, outgoing = liar.client.streams.open_incoming(), liar.client.streams.open_outgoing()
    assert (incoming.number, outgoing.number) == (1, 2)
    await liar.send(frame(DATA, 1, b"x" * 262144))
    assert len(await incoming.read()) <= 262144
    outgoing.write(b"y" * 300_000)
    outgoing.close()
    outgoing.open()
    granted, sent = 0, 0
    while sent < 262144 or not granted:
        kind, stream, size = frames._read_header(await liar.read_bulk(16), 262144)
        payload = await liar.read_bulk(size)
        if kind == CREDIT:
            granted += int.from_bytes(payload, "little")
        else:
            assert (kind, stream) == (DATA, 2)
            sent += size
    assert sent == 262144, "no more than the credit"
    await liar.send(frame(CREDIT, 2, struct.pack("<I", 100_000)) + frame(DATA, 1, b"z") + frame(END, 1))
    rest = b"".join([chunk async for chunk in incoming])
    assert rest.endswith(b"z")


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (b"garbage that is no frame", "not a frame"),
        (frame(DATA, 1, b"x" * 262144) + frame(DATA, 1, b"x"), "more than the credit"),
        (frame(DATA, 2, b"x"), "the other way"),
        (frame(END, 2), "the other way"),
        (frame(CREDIT, 1, b"\xff\xff\xff\xff"), "the other way"),
        (frame(HELLO, 0, SESSION.encode()), "second HELLO"),
        (struct.pack("<4sB3sII", frames.MAGIC, DATA, b"\0\0\0", 1, 2**31), "a frame of kind 2"),
    ],
)
async def test_a_lie_ends_all_streams_and_a_new_session_begins(liar: Liar, lie: bytes, why: str) -> None:
    incoming, outgoing = liar.client.streams.open_incoming(), liar.client.streams.open_outgoing()
    await liar.send(lie + b"and more of it" * 100)
    await liar.shake_hands()
    with pytest.raises(AgentProtocolError, match=why):
        while await incoming.read():
            pass
    with pytest.raises(AgentProtocolError, match=why):
        outgoing.write(b"x")
    await liar.client.wait_until_ready(5)
    again = liar.client.streams.open_incoming()
    await liar.send(frame(DATA, again.number, b"well") + frame(END, again.number))
    assert [chunk async for chunk in again] == [b"well"]


async def test_frames_for_streams_that_are_not_open_are_dropped(liar: Liar) -> None:
    incoming = liar.client.streams.open_incoming()
    await liar.send(frame(DATA, 77, b"x" * 262144) * 20 + frame(END, 78) + frame(DATA, 0, b"x") + frame(END, 1))
    assert await incoming.read() == b""


async def test_a_stream_that_the_guest_gives_up(liar: Liar) -> None:
    incoming = liar.client.streams.open_incoming()
    await liar.send(frame(DATA, 1, b"before") + frame(RESET, 1, b"no \x1b[2Jmore\xff"))
    assert await incoming.read() == b"before"
    with pytest.raises(AgentProtocolError, match=r"no \?\[2Jmore"):
        await incoming.read()


async def test_a_stream_that_the_host_gives_up(liar: Liar) -> None:
    incoming = liar.client.streams.open_incoming()
    incoming.give_up("enough")
    assert await liar.read_bulk(22) == frame(RESET, 1, b"enough")
    await liar.send(frame(DATA, 1, b"late") + frame(END, 1))
    with pytest.raises(AgentProtocolError, match="enough"):
        await incoming.read()


async def test_what_waits_for_a_guest_that_does_not_read_is_bounded(liar: Liar) -> None:
    outgoing = liar.client.streams.open_outgoing()
    outgoing.open()
    await liar.send(frame(CREDIT, 1, struct.pack("<I", 2**32 - 1)) * 3)

    async def write() -> None:
        while True:
            outgoing.write(bytes(100_000))
            await outgoing.drain()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await write()
    assert liar.client._bulk_outbox.waiting_bytes < ROOM_BYTES
    assert outgoing.waiting_bytes < 1_200_000


async def test_a_bulk_port_that_ends_fails_streams_and_not_calls(liar: Liar) -> None:
    incoming = liar.client.streams.open_incoming()
    liar.bulk.close()
    with pytest.raises(AgentProtocolError, match="has ended"):
        await incoming.read()
    call = asyncio.create_task(liar.client.call("ping"))
    await liar.answer(await liar.read())
    assert await call == {}


async def test_too_many_streams_are_an_error_here(liar: Liar) -> None:
    for _ in range(1024):
        liar.client.streams.open_incoming()
    with pytest.raises(AgentProtocolError, match="open already"):
        liar.client.streams.open_outgoing()


# -- trees -------------------------------------------------------------------------------------------------------------


def line(**entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def file_entry(path: str, content: bytes = b"x", **more: Any) -> bytes:
    head = line(**{"path": path, "type": "file", "mode": 0o644, "mtime_ns": 0, "size": len(content), **more})
    pieces = struct.pack("<QI", 0, len(content)) + content if content else b""
    return head + pieces + struct.pack("<QII", len(content), 0, zlib.crc32(content))


def directory_entry(path: str) -> bytes:
    return line(path=path, type="directory", mode=0o755, mtime_ns=0)


def unpack(directory: Path, data: bytes, cut: int = 7, **how: Any) -> Copied:
    writer = TreeWriter(directory, "copy", **how)
    try:
        for begin in range(0, len(data), cut):
            writer.feed(data[begin : begin + cut])
        return writer.finish()
    finally:
        writer.close()


TREE = directory_entry("")
LIES = {
    "no JSON": b"what\n",
    "not an object": b"[]\n",
    "deep nesting": b"[" * 100_000 + b"\n",
    "an endless line": b"x" * 200_000,
    "an unknown type": line(path="", type="device", mode=0, mtime_ns=0),
    "no mode": line(path="", type="directory", mtime_ns=0),
    "a mode that is none": line(path="", type="directory", mode=-1, mtime_ns=0),
    "a mode that is true": line(path="", type="directory", mode=True, mtime_ns=0),
    "a time without bounds": line(path="", type="directory", mode=0, mtime_ns=2**70),
    "a name above": TREE + file_entry("../evil"),
    "an absolute name": TREE + file_entry("/tmp/evil"),
    "a name with a part that is empty": TREE + file_entry("a//b"),
    "a name with a dot": TREE + file_entry("./evil"),
    "a name with a NUL": TREE + file_entry("a\0b"),
    "a name that is no text": TREE + line(path=[], type="directory", mode=0, mtime_ns=0),
    "a name too long": TREE + file_entry("x" * 300),
    "half a surrogate pair": TREE + file_entry("\ud800"),
    "two roots": TREE + TREE,
    "no directory before it": TREE + file_entry("nowhere/evil"),
    "through a link": TREE + line(path="l", type="symlink", target="/tmp", mtime_ns=0) + file_entry("l/evil"),
    "a link that becomes a directory": TREE
    + line(path="l", type="symlink", target="/tmp", mtime_ns=0)
    + directory_entry("l"),
    "a hard link out of the tree": TREE + line(path="h", type="hardlink", target="../../etc/passwd"),
    "a hard link to what was there before": TREE + line(path="h", type="hardlink", target="kept"),
    "a file of a file": file_entry("") + file_entry("x"),
    "a wrong checksum": file_entry("")[:-1] + b"\xff",
    "a piece too large": line(path="", type="file", mode=0, mtime_ns=0, size=1) + struct.pack("<QI", 0, 2**31),
    "a piece beyond all": line(path="", type="file", mode=0, mtime_ns=0, size=1) + struct.pack("<QI", 2**64 - 1, 9),
    "pieces that go back": line(path="", type="file", mode=0, mtime_ns=0, size=1)
    + struct.pack("<QI", 9, 1)
    + b"x"
    + struct.pack("<QI", 0, 1),
    "an offset nobody agreed on": file_entry("", offset=5),
    "an end with other counts": TREE + line(end=True, entries=2, bytes=0),
    "an end without counts": TREE + line(end=True),
    "an end of nothing": line(end=True, entries=0, bytes=0),
    "more after the end": TREE + line(end=True, entries=1, bytes=0) + b"x",
    "no end": TREE + file_entry("x"),
    "half a file": file_entry("")[:-5],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_tree_that_lies_is_one_error_and_leaves_nothing_outside(tmp_path: Path, lie: bytes) -> None:
    into = tmp_path / "into"
    into.mkdir()
    for cut in (1, 1000) if len(lie) < 2000 else (100_000,):
        with pytest.raises(TransferError) as caught:
            unpack(into, lie, cut)
        assert len(str(caught.value)) < 500 and str(caught.value).isprintable()
        names = {path.name for path in tmp_path.rglob("*")}
        assert not any("evil" in name or "part" in name for name in names), names
        if not lie.startswith(TREE):
            assert not (into / "copy").exists()
        elif (into / "copy").exists():
            shutil.rmtree(into / "copy")


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """What lies in the destination already may be a link; a guest must not write through it."""
    (tmp_path / "copy").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "copy" / "sub").symlink_to("../outside")
    (tmp_path / "copy" / "file").symlink_to("../outside/file")
    end = line(end=True, entries=2, bytes=1)
    unpack(tmp_path, TREE + file_entry("file") + end)
    assert not (tmp_path / "copy" / "file").is_symlink()
    with pytest.raises(TransferError, match="is no directory"):
        unpack(tmp_path, TREE + directory_entry("sub") + file_entry("sub/evil"))
    assert not list((tmp_path / "outside").iterdir())


def test_setuid_and_wide_modes(tmp_path: Path) -> None:
    data = file_entry("", mode=0o7777) + line(end=True, entries=1, bytes=1)
    unpack(tmp_path, data)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o777
    unpack(tmp_path, data, keep_special=True)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o7777


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(TransferError, match="more than 2 files"):
        unpack(tmp_path, TREE + directory_entry("a") + directory_entry("b"), limits=Limits(entries=2))
    hole = line(path="", type="file", mode=0, mtime_ns=0, size=0) + struct.pack("<QI", 2**50, 0)
    with pytest.raises(TransferError, match="more than 100 bytes"):
        unpack(tmp_path, hole, limits=Limits(content_bytes=100))
    deep = TREE + b"".join(directory_entry("/".join("d" * n)) for n in range(1, 300))
    with pytest.raises(TransferError, match="in each other"):
        unpack(tmp_path, deep, 10_000)


@given(st.binary(max_size=300))
def test_garbage_is_no_entry(data: bytes) -> None:
    with contextlib.suppress(TransferError):
        read_entry(data)


@given(st.integers(0, 319), st.integers(1, 255), st.integers(1, 5000))
def test_content_that_was_tampered_with_never_gets_its_name(at: int, change: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "a").write_bytes(b"the content of a" * 20)
        data = bytearray(b"".join(pack_tree(directory / "a", Copied())))
        data[data.index(b"the content") + at] ^= change
        with pytest.raises(TransferError, match="checksums differ"):
            unpack(directory, bytes(data), cut)
        assert [path.name for path in directory.iterdir()] == ["a"]


@given(st.integers(0, 100_000), st.integers(0, 255), st.integers(1, 5000))
def test_whatever_a_byte_of_a_tree_becomes_nothing_is_left_outside(at: int, byte: int, cut: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "a").mkdir()
        (directory / "a" / "b").write_bytes(b"content")
        (directory / "a" / "c").symlink_to("b")
        data = bytearray(b"".join(pack_tree(directory / "a", Copied())))
        data[at % len(data)] = byte
        with contextlib.suppress(TransferError):
            unpack(directory, bytes(data), cut, limits=Limits(content_bytes=1000, entries=10))
        assert {path.name for path in directory.iterdir()} <= {"a", "copy"}
        assert not list(directory.rglob("*part"))
