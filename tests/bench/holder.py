"""A process that holds one VM and does nothing else: the least a supervisor will need. Run by `memory`.

`python -m tests.bench.holder DIRECTORY`: the first line of stdin is the VM as JSON. It is booted, and `ready` goes to
stdout. Each further line is a command for the guest, as JSON, and answered with its exit code. The end of stdin is the
end.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from control.console.sink import OutputSink, open_output_sink
from control.paths import InstanceFiles
from control.spec.vm_spec import DirectBoot, Disk, VMSpec
from control.vm.listener import Carrier, Listener
from control.vm.vm import open_vm
from control.wire import Message

TIMEOUT_S = 180.0


class Sink(Listener):
    """Writes the console's text, as a log would be."""

    def __init__(self, sink: OutputSink) -> None:
        self._sink = sink

    async def on_console(self, chunk: bytes) -> None: ...

    async def on_text(self, text: bytes) -> None:
        await self._sink.write(text)

    async def on_message(self, message: Message, carrier: Carrier) -> None: ...

    def on_phase(self, phase: str, seconds: float) -> None: ...

    def on_note(self, note: str) -> None: ...


def encode_spec(spec: VMSpec) -> bytes:
    """Write down what `decode_spec` reads back: one line. Only a guest that is booted directly, from one disk."""
    if not isinstance(spec.boot, DirectBoot):
        raise TypeError("the holder boots a kernel, and nothing else")
    boot = {name: str(value) for name, value in vars(spec.boot).items()}
    fields = {"qemu": spec.qemu, "accelerator": spec.accelerator, "extra_args": spec.extra_args, "name": spec.name}
    return json.dumps({"boot": boot, "disk": str(spec.disks[0].path), **fields}).encode() + b"\n"


def decode_spec(line: bytes) -> VMSpec:
    fields: dict[str, Any] = json.loads(line)
    boot = fields.pop("boot")
    disk = Disk(Path(fields.pop("disk")), "qcow2", serial="unhinged-data")
    extra_args = tuple(fields.pop("extra_args"))
    kernel = DirectBoot(Path(boot["kernel"]), Path(boot["initrd"]), boot["command_line"])
    return VMSpec(boot=kernel, disks=(disk,), extra_args=extra_args, **fields)


async def hold(directory: Path) -> None:
    loop = asyncio.get_running_loop()
    spec = decode_spec(sys.stdin.buffer.readline())
    with open_output_sink(os.open(os.devnull, os.O_WRONLY)) as sink:
        async with open_vm(spec, InstanceFiles(directory, directory), Sink(sink)) as vm:
            await vm.resume()
            await vm.agent.wait_until_ready(TIMEOUT_S)
            print("ready", flush=True)
            while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
                done = await vm.agent.call("exec_command", {"argv": json.loads(line)}, timeout_s=TIMEOUT_S)
                print(done["exit_code"], flush=True)


if __name__ == "__main__":
    asyncio.run(hold(Path(sys.argv[1])))
