"""A host process that adopts a VM and works with its guest, for `test_agent_survival` to kill.

Run as `python -m tests.boot.adopter RUNTIME NAME SOURCE TARGET`; says `running PID` of its program in the guest, and
then how many bytes of SOURCE have gone to TARGET.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from control.paths import find_instance_files
from control.vm.instance import find_running, read_record
from control.vm.vm import adopt_vm
from tests.qemu.ear import Ear


async def work(runtime: Path, name: str, source: Path, target: str) -> None:
    files = find_instance_files(runtime, name)
    record = read_record(files)
    process = find_running(files, record)
    assert record is not None and process is not None
    async with adopt_vm(record, files, process, Ear()) as vm:
        vm.detach()
        await vm.agent.wait_until_ready(60)
        async with await vm.guest.exec(["sleep", "3000"]) as running:
            print(f"running {running.pid}", flush=True)
            await vm.guest.put(source, target, resume=True, progress=lambda count: print(count, flush=True))


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
