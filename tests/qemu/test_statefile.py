"""The image that is made around a state, as QEMU's tools see it; that a guest goes on from it, others show."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from control.vm.statefile import STREAM_AT, finish_state_file

WHEN = datetime(2026, 12, 1, 9, 30, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "size",
    [1, 65536, 65537, 512 << 20, (512 << 20) + 1, 3 << 30, (4 << 30) + 5],
    ids=["byte", "cluster", "and one", "table", "table and one", "two blocks of counts", "more than 32 bits"],
)
def test_an_image_of_any_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "state.qcow2"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, STREAM_AT + size)  # all of it a hole, but for what is in the last sector
    last = (size - 1) // 512 * 512
    os.pwrite(descriptor, b"Z" * (size - last), STREAM_AT + last)
    finish_state_file(descriptor, STREAM_AT + size, "before-the-update", WHEN)
    os.close(descriptor)
    checked = subprocess.run(["qemu-img", "check", "--output=json", str(path)], capture_output=True, check=True)
    told = json.loads(checked.stdout)
    assert {key: told.get(key, 0) for key in ("corruptions", "leaks", "check-errors")} == dict.fromkeys(
        ("corruptions", "leaks", "check-errors"), 0
    )
    looked = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True)
    (snapshot,) = json.loads(looked.stdout)["snapshots"]
    assert (snapshot["name"], snapshot["vm-state-size"]) == ("before-the-update", size)
    assert (snapshot["date-sec"], snapshot["date-nsec"]) == (int(WHEN.timestamp()), 250_000_000)
    # As QEMU reads it: the snapshot is made the active layer, and its state lies behind the disk.
    subprocess.run(["qemu-img", "snapshot", "-a", "before-the-update", str(path)], check=True)
    look = f"read -b -P {ord('Z')} -l {size - last} {last} 512"
    read = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", look, str(path)], capture_output=True, text=True, check=True
    )
    assert f"read 512/512 bytes at offset {last}" in read.stdout and "failed" not in read.stdout
    wrong = look.replace(str(ord("Z")), str(ord("Y")))
    read = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", wrong, str(path)], capture_output=True, text=True, check=False
    )
    assert "verification failed" in read.stdout + read.stderr
