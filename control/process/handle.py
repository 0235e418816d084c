"""A long-lived process, ours or adopted, watched through a pidfd (floor 2); the VM holds QEMU by one of these.

A pidfd cannot come to mean another process when the number is used again, so every signal goes through it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from control.errors import HostError
from control.log import LOG

if TYPE_CHECKING:
    import subprocess

_KEEPER = Path(__file__).with_name("keeper.py")


class ProcessHandle:
    """One process. Close it (it is a context manager) to give back its descriptor.

    A child of ours that still runs is then killed, unless it was released; an adopted process is left alone.

    Attributes:
        pid: Its number.
        start_ticks: When it started, in clock ticks after boot; with `pid` it names the process for good
            (proc(5), field 22 of /proc/PID/stat).
    """

    def __init__(self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self.start_ticks = read_start_ticks(pid) or 0
        self._pidfd = pidfd
        self._child = child
        self._ended = False
        self._released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def release(self) -> None:
        """Let a child of ours run on after this handle is closed."""
        self._released = True

    def close(self) -> None:
        """Give back the descriptor, and kill a child that was not released: nothing of ours is left by accident."""
        if self._child is not None and self._child.poll() is None:
            if self._released:
                self._child.returncode = 0  # Popen warns of children left running; this one is meant to
            else:
                self._child.kill()
                self._child.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def fileno(self) -> int:
        """Its pidfd, which becomes readable when the process ends (pidfd_open(2))."""
        return self._pidfd

    @property
    def return_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs, and for an adopted process."""
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        if not self._ended:
            # A pidfd of a process that is no child of ours becomes readable when it ends (pidfd_open(2)).
            import select

            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            self._ended = bool(poller.poll(0))
        return not self._ended

    async def wait(self) -> int | None:
        """Wait until the process has ended; return its exit code, or None when it was not our child."""
        if self.running:
            import asyncio  # commands that only look at a process do not pay for it

            loop = asyncio.get_running_loop()
            ended = asyncio.Event()
            # A duplicate, because several may wait at once and an event loop takes one reader for a descriptor.
            watched = os.dup(self._pidfd)
            loop.add_reader(watched, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        self._ended = True
        return self._child.wait() if self._child is not None else None

    def send_signal(self, number: int) -> None:
        """Send a signal; a process that has ended already is fine."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def cpu_seconds(self) -> float:
        """CPU time it has used so far, user and system (proc(5), fields 14 and 15); 0.0 once it is gone."""
        fields = _read_stat_fields(self.pid)
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def start_process(
    argv: Sequence[str], *, output: Path, errors: Path, cwd: Path, env: Mapping[str, str] | None = None
) -> ProcessHandle:
    """Start `argv` in a session of its own, stdin empty, stdout and stderr going to the fresh files `output`, `errors`.

    Raises:
        HostError: It cannot be started, or a file cannot be written; nothing is left running.
    """
    import subprocess  # commands that only look at a process do not pay for it

    LOG.debug("start: %s", " ".join(argv))
    try:
        for path in (output, errors):
            path.unlink(missing_ok=True)
        with output.open("ab") as stdout, errors.open("ab") as stderr:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env=env,
                start_new_session=True,
                umask=0o077,
            )
    except OSError as error:
        raise HostError(f"{argv[0]} cannot be started: {error.strerror}", hint="make doctor") from error
    return ProcessHandle(child.pid, os.pidfd_open(child.pid), child)


def find_process(pid: int, start_ticks: int) -> ProcessHandle | None:
    """Adopt the process `pid` if it is still the one that started at `start_ticks`; None when it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return None
    # Looked at after the pidfd is held: from here on the number cannot come to mean another process.
    if read_start_ticks(pid) != start_ticks:
        os.close(pidfd)
        return None
    return ProcessHandle(pid, pidfd, None)


def read_start_ticks(pid: int) -> int | None:
    """Read when the process started, in clock ticks after boot; None when there is none, or only its zombie."""
    fields = _read_stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in ("Z", "X") else None


def _read_stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second may hold blanks and parentheses."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


class Keeper:
    """Ends a process when we are killed outright, so that `kill -9` of a launcher leaves no orphan.

    A second small process waits on a pipe of ours: its end means that we are gone. See `keeper.py`.
    """

    def __init__(self, pipe: int, child: subprocess.Popen[bytes]) -> None:
        self._pipe = pipe
        self._child = child

    def release(self) -> None:
        """Let the kept process run on without us; the keeper goes on bounding its logs, and ends with it."""
        self._finish(b"release\n")

    def dismiss(self) -> None:
        """End the keeper after the kept process has ended."""
        self._finish(b"ended\n")

    def _finish(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe, word)
        os.close(self._pipe)
        self._child.wait()


@contextlib.contextmanager
def start_keeper(pid_file: Path, logs: Sequence[Path] = ()) -> Iterator[Keeper]:
    """Start the keeper for the process that will write its number to `pid_file`.

    Started before that process, so that there is no moment at which it could be orphaned. On leaving, the keeper is
    dismissed unless it was released.
    """
    import subprocess

    read_end, write_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_KEEPER), str(read_end), str(pid_file), *map(str, logs)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(read_end,),
            start_new_session=True,
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    keeper = Keeper(write_end, child)
    try:
        yield keeper
    finally:
        if child.returncode is None:
            keeper.dismiss()
