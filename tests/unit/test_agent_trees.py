"""Trees of files on this host: a guest that lies costs little, and what was planted here is not written to."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.agent.trees import Copied, TreeWriter, pack_tree
from control.errors import TransferError
from tests.guest import treeform


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory of a file system that knows every time that there is."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def unpack(parent: Path, sent: bytes, *, resume: bool = False) -> Copied:
    writer = TreeWriter(parent, "copy", resume=resume)
    try:
        if resume:
            writer.find_resumable()
        writer.feed(sent)
        return writer.finish()
    finally:
        writer.close()


def test_long_paths_cost_no_memory(memory: Path) -> None:
    sent = treeform.encode_entry("", "directory")
    path = ""
    for _ in range(40):
        path = f"{path}/{'d' * 250}".lstrip("/")
        sent += treeform.encode_entry(path, "directory")
    for number in range(1000):
        sent += treeform.encode_file(f"{path}/{number}", b"")
    sent += treeform.encode_end(1041, 0)
    tracemalloc.start()
    try:
        writer = TreeWriter(memory, "copy")
        before = tracemalloc.get_traced_memory()[0]
        writer.feed(sent)
        kept = tracemalloc.get_traced_memory()[0] - before
        assert writer.finish().entries == 1041
        writer.close()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000, f"{kept} bytes are kept of 1000 files"


def test_a_planted_part_is_not_gone_on_with(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".copy.unhinged-part").hardlink_to(victim)
    with pytest.raises(TransferError, match="not the part of an earlier copy"):
        unpack(tmp_path, treeform.encode_file("", b"new") + treeform.encode_end(1, 3), resume=True)
    assert victim.read_text() == "precious" and not (tmp_path / "copy").exists()


def test_a_time_after_2262_can_be_copied(memory: Path) -> None:
    path = memory / "file"
    path.write_text("x")
    os.utime(path, (2**34, 2**34))
    sent = b"".join(bytes(piece) for piece in pack_tree(path, Copied()))
    entries, _ = treeform.decode_tree(sent)
    assert entries[""].line["mtime_ns"] == 2**63 - 1
    unpack(memory, sent)
    assert (memory / "copy").stat().st_mtime_ns == 2**63 - 1


@pytest.mark.parametrize("owner", [False, True])
def test_setuid_goes_with_the_owner_only(tmp_path: Path, owner: bool) -> None:
    path = tmp_path / "tool"
    path.write_text("x")
    path.chmod(0o6755)
    sent = b"".join(bytes(piece) for piece in pack_tree(path, Copied(), owner=owner))
    entries, _ = treeform.decode_tree(sent)
    assert entries[""].line["mode"] == (0o6755 if owner else 0o755)


def test_files_of_the_kernel_are_read_to_their_end() -> None:
    """They say that they have no bytes."""
    copied = Copied()
    sent = b"".join(bytes(piece) for piece in pack_tree(Path("/proc/version"), copied))
    entries, _ = treeform.decode_tree(sent)
    assert entries[""].content == Path("/proc/version").read_bytes()
    assert copied.changed == []
