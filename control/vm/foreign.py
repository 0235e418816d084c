"""VMs of this configuration that qqmgr has started (floor 3): seen, not started a second time, and brought down.

They are known by what that tool puts on their command line (its design document, "Auto-Injected QEMU Arguments"), so
that a number which means another process by now is never taken for one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

from control.paths import InstanceFiles
from control.process.handle import ProcessHandle, find_process, read_start_ticks

MONITOR_WAIT_S = 5.0
KILL_WAIT_S = 10.0
NOTE = "qqmgr started it"


def find_foreign(directory: Path) -> ProcessHandle | None:
    """Find the QEMU that qqmgr has started with `directory` as its instance's. The handle is the caller's to close."""
    try:
        pid = int((directory / "pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    start_ticks = read_start_ticks(pid)
    process = find_process(pid, start_ticks) if start_ticks is not None else None
    if process is not None and not _is_qqmgrs(pid, directory):
        process.close()
        return None
    return process


def _is_qqmgrs(pid: int, directory: Path) -> bool:
    """Whether its command line is one of qqmgr: its console goes to a file of that instance, where ours are sockets."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    paths = (directory, directory.resolve())
    return any(b"file:" + os.fsencode(path / "serial") in words for path in paths)


def end_foreign(directory: Path, *, patience_s: float | None) -> None:
    """End it, and remove what it left; one that has ended meanwhile is fine.

    Args:
        patience_s: How long it may take after its power button was pressed; None to pull the plug at once.
    """
    process = find_foreign(directory)
    if process is not None:
        with process:
            if patience_s is None:
                process.send_signal(signal.SIGKILL)
                select.select([process], [], [], KILL_WAIT_S)
            else:
                import asyncio

                asyncio.run(_stop(process, directory, patience_s))
    for name in ("pid", "qmp.socket", "monitor.socket"):
        (directory / name).unlink(missing_ok=True)


async def _stop(process: ProcessHandle, directory: Path, patience_s: float) -> None:
    import asyncio

    from control.errors import ControlError
    from control.log import LOG
    from control.monitor import open_monitor
    from control.vm.shutdown import shut_down
    from control.vm.sockets import connect_socket

    async with contextlib.AsyncExitStack() as stack:
        monitor = None
        try:
            path = InstanceFiles(directory, directory).qmp_socket
            connection = await connect_socket(path, process, timeout_s=MONITOR_WAIT_S)
            monitor = await stack.enter_async_context(open_monitor(connection))
        except (ControlError, OSError) as error:
            LOG.debug("qqmgr's VM: %s", error)  # then it is ended by a signal
        await shut_down(process, monitor, None, gently=True, hurry=asyncio.Event(), patience_s=max(patience_s, 0.05))
