"""Makes a file that a running QEMU can go back to of a state that another way than `snapshot-save` wrote (floor 3).

`snapshot-load` takes memory and devices out of a qcow2 image: they are its *VM state*, which belongs to a snapshot in
it. A state that was written as for a move to another host is the same stream. So it is written to where an image has
its data, and what makes an image of the file is written around it; nothing is copied.

Source: QEMU, docs/interop/qcow2.txt (header, refcounts, cluster mapping, snapshots); block/qcow2.h,
`qcow2_vm_state_offset`: the VM state begins behind the disk, at the next entry of the first table.
"""

from __future__ import annotations

import os
import struct
from datetime import datetime

_CLUSTER_BITS = 16
_CLUSTER = 1 << _CLUSTER_BITS
_POINTERS = _CLUSTER // 8
"""How many clusters a table of one cluster can point to."""

_COUNTS = _CLUSTER // 2
"""How many clusters a block of reference counts, 16 bits each, is about."""

_DISK_BYTES = 1 << 20
"""Of the disk that the state lies beside; it holds nothing."""

STREAM_AT = 2 * _CLUSTER
"""Where in the file the stream is to begin: behind the header, and the first table of that empty disk."""

_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")


def finish_state_file(descriptor: int, end: int, tag: str, taken_at: datetime) -> None:
    """Make the file an image with the snapshot `tag`, whose state the stream is that lies from `STREAM_AT` to `end`.

    Raises:
        OSError: It cannot be written; it is no image then.
    """
    size = end - STREAM_AT
    states = -(-size // _CLUSTER)
    tables = -(-states // _POINTERS)
    first = STREAM_AT // _CLUSTER
    second_tables = first + states
    first_table = second_tables + tables
    snapshots = first_table + 1
    counts_table = snapshots + 1
    counts = counts_table + 1
    blocks = 1
    while counts + blocks > blocks * _COUNTS:
        blocks += 1
    total = counts + blocks
    os.ftruncate(descriptor, total * _CLUSTER)
    for table in range(tables):
        pointed = range(table * _POINTERS, min((table + 1) * _POINTERS, states))
        _write_pointers(descriptor, second_tables + table, [first + index for index in pointed])
    # No entry for the disk, whose part of the table is one; then those of the state.
    _write_pointers(descriptor, first_table, [0, *range(second_tables, first_table)])
    _write(descriptor, snapshots, _build_snapshot(tag, taken_at, size, first_table * _CLUSTER, 1 + tables))
    _write_pointers(descriptor, counts_table, list(range(counts, total)))
    for block in range(blocks):
        used = min(_COUNTS, total - block * _COUNTS)
        _write(descriptor, counts + block, b"\0\1" * used)
    header = _HEADER.pack(
        b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, _DISK_BYTES, 0, 1, _CLUSTER, counts_table * _CLUSTER, 1, 1,
        snapshots * _CLUSTER, 0, 0, 0, 4, _HEADER.size,
    )  # fmt: skip
    _write(descriptor, 0, header)


def _build_snapshot(tag: str, taken_at: datetime, state_bytes: int, table_at: int, table_size: int) -> bytes:
    name, number = tag.encode(), b"1"
    seconds, microseconds = int(taken_at.timestamp()), taken_at.microsecond
    # The size again, in 64 bits; that of the disk; and that no instructions are counted.
    more = struct.pack(">QQQ", state_bytes, _DISK_BYTES, (1 << 64) - 1)
    entry = struct.pack(
        ">QIHHIIQII", table_at, table_size, len(number), len(name), seconds, microseconds * 1000, 0,
        min(state_bytes, (1 << 32) - 1), len(more),
    )  # fmt: skip
    return entry + more + number + name


def _write_pointers(descriptor: int, cluster: int, pointed: list[int]) -> None:
    _write(descriptor, cluster, struct.pack(f">{len(pointed)}Q", *(each * _CLUSTER for each in pointed)))


def _write(descriptor: int, cluster: int, data: bytes) -> None:
    view, at = memoryview(data), cluster * _CLUSTER
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written
