"""Watches whether the guest comes up (floor 3): console, QMP events and CPU time together lead to one verdict.

The console is judged only once it has fallen silent, so a burst costs nothing and an old log that is printed is no
failure.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from control.console.tail import ConsoleTail
from control.errors import EXIT_GUEST_PANICKED, BootError
from control.units import format_duration
from control.vm.causes import PANIC, Cause, find_cause, looks_like_prompt

EVIDENCE_LINES = 12
KERNEL_NAME = b"Linux version "
END_LINES = 40
BUSY_SHARE = 0.6
"""A guest that waits for something halts its CPUs; one that spins uses more than this share of one."""


@dataclass(frozen=True)
class WatchTimes:
    """How long a silence means something, in seconds.

    Attributes:
        quiet_s: After it, the end of the console is read for a known failure.
        hang_s: After it, a guest that is not up and does not wait at a prompt counts as hung.
    """

    quiet_s: float
    hang_s: float


TIMES = {"kvm": WatchTimes(quiet_s=1.0, hang_s=30.0), "tcg": WatchTimes(quiet_s=1.5, hang_s=60.0)}
"""Software emulation is 10 to 30 times slower; the longest silence of a healthy boot under it was some ten seconds."""


class BootWatch:
    """Collects what is seen of a boot and gives the verdict; `control.vm.vm` feeds and asks it.

    Attributes:
        up: The guest has come up: its agent answered, or its console shows a login.
        kernel_spoke: Linux has said its name.
    """

    def __init__(self, times: WatchTimes) -> None:
        self._times = times
        self._tail = ConsoleTail()
        self._spoke = asyncio.Event()
        self._before = b""
        self._bytes = 0
        self.up = False
        self.kernel_spoke = False

    def start_clock(self) -> None:
        """Let the time of silence begin: the guest's CPUs run from now on, and may never say a word."""
        self._spoke.set()

    def feed(self, chunk: bytes) -> None:
        """Take in console bytes."""
        self._tail.feed(chunk)
        if not self.kernel_spoke:
            seen = self._before + chunk
            self.kernel_spoke = KERNEL_NAME in seen
            self._before = seen[1 - len(KERNEL_NAME) :]  # it may come in pieces
        self._bytes += len(chunk)
        self._spoke.set()

    def last_lines(self, count: int = EVIDENCE_LINES) -> tuple[str, ...]:
        """The console's last lines, safe to print."""
        return self._tail.lines(count)

    async def wait_for_silence(self) -> None:
        """Return when the console has been silent for `quiet_s`, once for each silence."""
        await self._spoke.wait()
        while self._spoke.is_set():
            self._spoke.clear()
            try:
                async with asyncio.timeout(self._times.quiet_s):
                    await self._spoke.wait()
            except TimeoutError:
                return

    async def stays_silent_until_hung(self) -> bool:
        """Wait out the rest of `hang_s`; False as soon as the guest speaks again."""
        try:
            async with asyncio.timeout(self._times.hang_s - self._times.quiet_s):
                await self._spoke.wait()
        except TimeoutError:
            return True
        return False

    def judge_silence(self) -> Cause | None:
        """Say which known failure the end of the console shows, now that it is silent."""
        end = self._tail.text_end(END_LINES)
        cause = find_cause(end)
        if cause is not None and cause.waits_for_person and self.up:
            return None
        if cause is None and looks_like_prompt(end) and "login:" in end.rpartition("\n")[2].lower():
            self.up = True
        return cause

    def judge_hang(self, *, cpu_share: float, screen: tuple[str, ...]) -> BootError | None:
        """Say what a guest that has been silent for `hang_s` suffers from; None when it is merely waiting."""
        if self.up:
            return None
        end = self._tail.text_end(END_LINES)
        silent_for = format_duration(self._times.hang_s)
        busy = cpu_share >= BUSY_SHARE
        load = f"the VM used {cpu_share:.0%} of a CPU meanwhile"
        if "Linux version" not in end and not self._kernel_has_spoken(end):
            return BootError(
                f"nothing came over the serial console for {silent_for}",
                code="wrong-console",
                seen=(load, *(f"screen: {line}" for line in screen[-EVIDENCE_LINES:]), *self.last_lines(4)),
                hint="does the guest speak on ttyS0? Add console=ttyS0 to its kernel command line "
                "(KERNEL=: ARGS=\"--append 'console=ttyS0'\"), or use --no-boot-watch if silence is right",
            )
        if busy and not looks_like_prompt(end):
            return BootError(
                f"the boot hangs: the guest has said nothing for {silent_for} and keeps a CPU busy",
                code="hung",
                seen=(load, *self.last_lines()),
                hint="the last lines say how far it came; --no-boot-watch lets it go on",
            )
        return None

    def _kernel_has_spoken(self, end: str) -> bool:
        return len(end) > 400 or looks_like_prompt(end)

    def panic_error(self) -> BootError:
        """Make the error of a panic that QEMU reported, whatever the console shows of it."""
        cause = find_cause(self._tail.text_end(END_LINES))
        return self.to_error(cause if cause is not None and cause.exit_code == EXIT_GUEST_PANICKED else PANIC)

    def to_error(self, cause: Cause) -> BootError:
        """Make the error of a cause, with the line that shows it and the console's last lines as its evidence."""
        seen = self.last_lines()
        match = re.search(cause.pattern, self._tail.text_end(END_LINES))
        telling = match[0].partition("\n")[0].strip()[:200] if match else ""
        if not any(telling in line for line in seen):
            seen = (telling, *seen[1:])  # a panic ends with a call trace, longer than what is shown
        return BootError(cause.sentence, code=cause.code, seen=seen, hint=cause.hint, exit_code=cause.exit_code)
