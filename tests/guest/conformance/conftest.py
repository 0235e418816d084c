"""The guests that every test of this directory runs on: one boot of each for a module."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.paths import IMAGE
from tests.guest.agentvm import AgentVM

BOOT_S = 240.0
Json = dict[str, Any]


class Guest:
    """A running guest with a session; `AgentVM` holds what it takes and says against the schemas."""

    def __init__(self, vm: AgentVM, kind: str) -> None:
        self.vm = vm
        self.kind = kind

    @property
    def has_systemd(self) -> bool:
        return self.kind == "debian"

    def result(self, method: str, /, **params: Any) -> Json:
        return self.vm.call(method, **params)

    def error(self, method: str, /, **params: Any) -> Json:
        id_ = f"error-{os.urandom(8).hex()}"
        self.vm.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n")
        answer = self.vm.wait_for(id_)
        assert "error" in answer, answer
        return dict(answer["error"])

    def wait_for_job(self, job: int) -> Json:
        while (done := self.vm.wait_for_notification("job_done"))["job"] != job:
            pass
        return done

    def wait_for_event(self, message: str, **details: Any) -> Json:
        """The details of the next message with this text and, among its details, these."""
        while True:
            envelope = self.vm.wait_for_notification("message")
            data = envelope["data"]
            if data["message"] == message and details.items() <= data["details"].items():
                return dict(data["details"])

    def run(self, script: str) -> str:
        return self.vm.run(script)


def _boot_of(kind: str) -> list[str] | None:
    if kind == "built-in":
        return None
    disk = IMAGE / "debian.qcow2"
    if not disk.is_file():
        pytest.skip("there is no Debian guest: run 'make image-debian'")
    drive = f"file={disk},format=qcow2,if=none,id=system,snapshot=on"
    return ["-drive", drive, "-device", "virtio-blk-pci,drive=system,bootindex=0"]


@pytest.fixture(scope="module", params=["built-in", pytest.param("debian", marks=pytest.mark.slow)])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    boot = _boot_of(request.param)
    directory = Path(tempfile.mkdtemp(prefix="uh-", dir="/tmp"))
    data = directory / "data.img"
    with data.open("wb") as file:
        file.truncate(64 << 20)
    extra = [
        "-drive",
        f"file={data},format=raw,if=none,id=data",
        "-device",
        "virtio-blk-pci,drive=data,serial=conformance",
    ]
    with AgentVM(directory, boot=boot, extra=extra) as vm:
        vm.qmp("cont")
        # A Debian boots for a minute on a busy host, longer than anything else may take here.
        end = time.monotonic() + BOOT_S
        while "agent ready" not in vm.read_console():
            assert time.monotonic() < end and vm.process.poll() is None, vm.read_console()[-2000:]
            time.sleep(0.1)
        vm.wait_for(vm.connect())
        vm.hello()
        yield Guest(vm, request.param)
    # Kept when the guest did not come up: its console says why.
    shutil.rmtree(directory)
