"""Every decoder of both sides, as a function of bytes that raises when something is wrong with the decoder.

Used by `run` (coverage-guided) and by `tests/guest/test_agent_fuzz.py` (hypothesis). The first byte of an input says
how the rest is cut into the pieces in which it arrives, so that no decoder depends on where a read ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from control.agent import frames as host_frames
from control.agent import lines as host_lines
from control.agent import trees as host_trees
from control.errors import TransferError
from guest.agent import files as guest_files
from guest.agent import frames as guest_frames
from guest.agent import treewriter as guest_trees
from guest.agent import wire as guest_wire
from guest.agent.pathpolicy import WRITE, Policy

SESSION = "0123456789abcdef" * 2
_LIMIT_BYTES = 65536


def cut(data: bytes) -> Iterator[bytes]:
    """The pieces: whole, byte by byte, or of a length between."""
    if not data:
        return
    size, rest = data[0] or len(data), data[1:]
    for at in range(0, len(rest), size):
        yield rest[at : at + size]


def take_guest_lines(data: bytes) -> None:
    decoder = guest_wire.LineDecoder(256)
    seen = [line for piece in cut(data) for line in decoder.feed(piece)]
    whole = guest_wire.LineDecoder(256).feed(data[1:])
    assert [line for line in seen if line is not None] == [line for line in whole if line is not None]
    for line in seen:
        if line is not None:
            assert len(line) <= 256 and b"\n" not in line


def take_guest_json(data: bytes) -> None:
    try:
        value = guest_wire.decode(data)
    except guest_wire.WireError:
        return
    for encode in (guest_wire.encode, guest_wire.encode_exactly):
        line = encode(value)
        line.decode("utf-8")
        assert line.count(b"\n") == 1
    assert repr(guest_wire.decode(guest_wire.encode_exactly(value))) == repr(value)


def take_host_lines(data: bytes) -> None:
    seen = []
    decoder = host_lines.LineDecoder()
    for piece in cut(data):
        seen += list(decoder.feed(piece))
    assert seen == list(host_lines.LineDecoder().feed(data[1:]))


def take_guest_frames(data: bytes) -> None:
    """Whatever the pieces, the same frames come out and the same input is refused."""

    def run(pieces: Iterator[bytes]) -> tuple[list[tuple[int, int, bytes]], bool]:
        seen: list[tuple[int, int, bytes]] = []

        def on_data(stream: int, piece: memoryview) -> None:
            if seen and seen[-1][:2] == (guest_frames.DATA, stream):
                seen[-1] = (guest_frames.DATA, stream, seen[-1][2] + bytes(piece))
            else:
                seen.append((guest_frames.DATA, stream, bytes(piece)))

        decoder = guest_frames.FrameDecoder(on_data, lambda *frame: seen.append(frame))
        decoder.expect(SESSION)
        decoder.feed(guest_frames.build_hello(SESSION))
        try:
            for piece in pieces:
                decoder.feed(piece)
        except guest_frames.FrameError:
            return seen, True
        return seen, False

    assert run(cut(data)) == run(iter([data[1:]]))


def take_host_frames(data: bytes) -> None:
    def run(pieces: Iterator[bytes]) -> tuple[list[tuple[int, int, bytes]], bool]:
        seen: list[tuple[int, int, bytes]] = []
        decoder = host_frames.FrameDecoder(SESSION)
        list(decoder.feed(memoryview(host_frames.build_hello(SESSION))))
        try:
            for piece in pieces:
                for frame in decoder.feed(memoryview(piece)):
                    if seen and frame.kind == host_frames.DATA and seen[-1][:2] == (frame.kind, frame.stream):
                        seen[-1] = (frame.kind, frame.stream, seen[-1][2] + bytes(frame.payload))
                    else:
                        seen.append((frame.kind, frame.stream, bytes(frame.payload)))
        except host_frames.FrameError:
            return seen, True
        return seen, False

    assert run(cut(data)) == run(iter([data[1:]]))


def take_frame_lines(data: bytes) -> None:
    """A line that both sides take for a frame is the same frame to both."""
    line = b"\xf5" + data.replace(b"\n", b"")
    guest: tuple[int, int, bytes] | None = None
    host: tuple[int, int, bytes] | None = None
    with contextlib.suppress(guest_frames.FrameError):
        guest = guest_frames.decode_line(line)
    with contextlib.suppress(host_frames.FrameError):
        frame = host_frames.decode_line(line)
        host = (frame.kind, frame.stream, bytes(frame.payload))
    if guest is not None and host is not None:
        assert guest == host


def _build_place() -> Path:
    place = Path(tempfile.mkdtemp(prefix="fuzz-"))
    (place / "outside").write_text("outside")
    (place / "inside").mkdir()
    return place


def _check_place(place: Path) -> None:
    try:
        assert sorted(path.name for path in place.iterdir()) == ["inside", "outside"]
        assert (place / "outside").read_text() == "outside"
        for directory, _, names in os.walk(place):
            assert not [name for name in names if name.endswith("unhinged-part")], f"half a file in {directory}"
    finally:
        for directory, names, _ in os.walk(place):
            for name in names:
                path = Path(directory, name)
                if not path.is_symlink():
                    path.chmod(0o700)
        shutil.rmtree(place)


def take_guest_tree(data: bytes) -> None:
    place = _build_place()
    policy = Policy(None, None, [])
    target = policy.find(os.fsencode(place / "inside/target"), WRITE)
    writer = guest_trees.TreeWriter(target, policy, False, False, (_LIMIT_BYTES, 64), None)
    work = writer.run()
    pieces = cut(data)
    ending = False
    try:
        while True:
            if ending and not writer.view:
                work.throw(EOFError())
            else:
                next(work)
            if not writer.view and not ending:
                piece = next(pieces, None)
                ending = piece is None
                writer.view = memoryview(piece or b"")
    except (StopIteration, guest_files.Corrupted, guest_files.TooLarge, EOFError, OSError):
        pass
    finally:
        work.close()
        _check_place(place)


def take_host_tree(data: bytes) -> None:
    place = _build_place()
    limits = host_trees.Limits(content_bytes=_LIMIT_BYTES, entries=64)
    writer = host_trees.TreeWriter(place / "inside", "target", limits=limits)
    try:
        for piece in cut(data):
            writer.feed(piece)
        writer.finish()
    except TransferError:
        pass
    finally:
        writer.close()
        _check_place(place)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "guest-lines": take_guest_lines,
    "guest-json": take_guest_json,
    "host-lines": take_host_lines,
    "guest-frames": take_guest_frames,
    "host-frames": take_host_frames,
    "frame-lines": take_frame_lines,
    "guest-tree": take_guest_tree,
    "host-tree": take_host_tree,
}
