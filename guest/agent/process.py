"""Runs a program and collects what it writes, without ever blocking the loop (guest floor).

Called by the `exec_command` method, by services and by power; `execution` builds on the same `Child`. A program starts
through posix_spawn in a session of its own, so that a time limit can kill it with everything it started; its end is
heard through a pidfd, not through SIGCHLD.
"""

import _signal  # type: ignore[import-not-found] # `signal` itself imports `enum`, which is slow
import os
from time import monotonic

from .loop import HANGUP, IN, OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .account import Account
    from .loop import Loop, Timer

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How long somebody else may hold a finished program's outputs open before the answer goes out without their end.
LINGER_S = 1.0
# Most programs end so soon that their outputs need not be watched until then: what they write waits in the pipes.
_WATCH_AFTER_S = 0.005
_READ_BYTES = 65536
_READS_PER_TURN = 8
_REAP_INTERVAL_S = 0.02
# A program expects its signals as the kernel gives them: Python ignores some for itself, and whoever started the agent
# may have ignored others. SIGKILL and SIGSTOP cannot be set; 32 and 33 belong to the C library. Source: signal(7).
SIGNALS = [number for number in range(1, _signal.NSIG) if number not in (9, 19, 32, 33)]


_own_environment: "dict[str, str]" = {}


class Result:
    """How a program ended, and what it wrote.

    Attributes:
        exit_code, signal: One of them is None.
        stdout, stderr: At most the limit each; `truncated` says that there was more.
    """

    __slots__ = ("exit_code", "seconds", "signal", "stderr", "stdout", "timed_out", "truncated")

    def __init__(
        self, status: int, stdout: bytes, stderr: bytes, truncated: bool, timed_out: bool, seconds: float
    ) -> None:
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.exit_code = None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        self.stdout = stdout
        self.stderr = stderr
        self.truncated = truncated
        self.timed_out = timed_out
        self.seconds = seconds


def build_environment(changes: "dict[str, str] | None" = None, account: "Account | None" = None) -> "dict[str, str]":
    """The agent's own environment, with what a program may rely on and what its user has, and `changes` over it."""
    environment = dict(_get_own_environment())
    if account is not None:
        environment.update(account.environment)
    if changes:
        environment.update(changes)
    return environment


def _get_own_environment() -> "dict[str, str]":
    """What every program is given. The agent never changes its own, so it is decoded once."""
    if not _own_environment:
        _own_environment.update({"PATH": DEFAULT_PATH, "HOME": "/root", "LANG": "C.UTF-8"})
        _own_environment.update(os.environ)
    return _own_environment


def find_program(name: str, environment: "dict[str, str]", cwd: str = "/") -> "str | None":
    """Where the program `name` is, by the PATH it will itself see; None when there is none that can be executed."""
    if "/" in name:
        return name
    for directory in environment.get("PATH", DEFAULT_PATH).split(":"):
        # Joined by hand where it can be: os.path.join takes longer than the question that follows.
        path = "%s/%s" % (directory, name) if directory[:1] == "/" else os.path.join(cwd, directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None


def get_program(name: str, environment: "dict[str, str]", cwd: str) -> str:
    """As `find_program`, but raises FileNotFoundError when there is none."""
    program = find_program(name, environment, cwd)
    if program is None:
        raise FileNotFoundError(2, "no such program in PATH", name)
    return program


class Child:
    """A running program: started, bounded in time, and its end heard. What its descriptors are is for a subclass.

    Args:
        timeout_s: After this its whole process group is killed; 0 for no limit.
        account: The user it runs as; None for the agent's own.
        program: Where the program is, when it has been looked for already.

    Raises:
        OSError: There is no such program.
    """

    def __init__(
        self,
        loop: "Loop",
        argv: "list[str]",
        environment: "dict[str, str] | None" = None,
        cwd: str = "/",
        timeout_s: float = 0,
        account: "Account | None" = None,
        program: "str | None" = None,
    ) -> None:
        self._loop = loop
        self._argv = argv
        self._environment = build_environment(None, account) if environment is None else environment
        self._cwd = cwd
        self._account = account
        self._timeout_s = timeout_s
        self._timer: "Timer | None" = None
        self._pidfd = -1
        self._begin = monotonic()
        self.timed_out = False
        self.status: "int | None" = None
        self.seconds = 0.0
        self.pid = 0
        # Whether its number stays its own after its end; the subclass then calls `release`.
        self.keeps_number = False
        self._program = program or get_program(argv[0], self._environment, cwd)

    def start(self, descriptors: "list[int]", terminal: "str | None" = None) -> None:
        """Starts it with these as 0, 1 and 2, which stay the caller's, or with a terminal as its own and as all three.

        Raises:
            OSError: It could not be started; nothing is left behind.
            ValueError: A string holds a zero byte or cannot be encoded.
        """
        start = (self._program, self._argv, self._environment, self._cwd)
        if self._account is None:
            self.pid = _spawn(*start, descriptors, terminal)
        else:
            self.pid = self._account.spawn(*start, descriptors, terminal)
        self._watch_end()
        if self._timeout_s:
            self._timer = self._loop.later(self._timeout_s, self._time_out)

    def signal(self, number: int, group: bool = True) -> None:
        """Sends a signal to its process group, or to it alone, if it still runs."""
        if self.status is None:
            try:
                if group:
                    os.killpg(self.pid, number)
                else:
                    os.kill(self.pid, number)
            except ProcessLookupError:
                pass  # it has ended this moment; the pidfd tells

    def kill(self) -> None:
        """Kills the program and all of its process group."""
        self.signal(_signal.SIGKILL)

    def end(self) -> None:
        """The program has ended; a subclass says what follows."""
        raise NotImplementedError

    def _watch_end(self) -> None:
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._loop.later(_REAP_INTERVAL_S, self._reap_by_time)  # Linux before 5.3
        else:
            self._loop.add(self._pidfd, IN, lambda _events: self._reap())

    def _reap_by_time(self) -> None:
        if not self._reap():
            self._loop.later(_REAP_INTERVAL_S, self._reap_by_time)

    def release(self) -> None:
        """Gives its number back: from now on it may be that of another program."""
        os.waitpid(self.pid, 0)

    def _reap(self) -> bool:
        if self.keeps_number:
            # It stays a zombie, so nobody else can have its number while its group may still have to be killed.
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end is None:
                return False
            status = end.si_status << 8 if end.si_code == os.CLD_EXITED else end.si_status
        else:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return False
        self.status = status
        self.seconds = monotonic() - self._begin
        if self._pidfd >= 0:
            self._loop.remove(self._pidfd)
            os.close(self._pidfd)
        if self._timer is not None:
            self._timer.cancel()
        self.end()
        return True

    def _time_out(self) -> None:
        self.timed_out = True
        self.kill()


class Process(Child):
    """A running program whose outputs are collected. `done(Result)` is called once, when it and its outputs have ended.

    Args:
        stdin: Bytes it reads before the end of its input.
        timeout_s: After this its whole process group is killed; 0 for no limit.
        limit: How many bytes of each output are kept; what comes after is read and thrown away.
        account, program: As for `Child`.

    Raises:
        OSError: It could not be started; nothing is left behind.
        ValueError: A string holds a zero byte or cannot be encoded.
    """

    def __init__(
        self,
        loop: "Loop",
        argv: "list[str]",
        done: "Callable[..., Any]",
        environment: "dict[str, str] | None" = None,
        cwd: str = "/",
        stdin: bytes = b"",
        timeout_s: float = 0,
        limit: int = 262144,
        account: "Account | None" = None,
        program: "str | None" = None,
    ) -> None:
        Child.__init__(self, loop, argv, environment, cwd, timeout_s, account, program)
        self._done = done
        self._limit = limit
        self._input = memoryview(stdin)
        self._outputs: "dict[int, bytearray]" = {}
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._truncated = False
        self._stdin_fd = -1
        # Either until the outputs are watched, or until no more of them is waited for.
        self._delay: "Timer | None" = None
        self._watched = False
        self._open_and_start()
        if self._stdin_fd >= 0:
            loop.add(self._stdin_fd, OUT, self._write_input)
        self._delay = loop.later(_WATCH_AFTER_S, self._watch_outputs)

    def _open_and_start(self) -> None:
        ours: "list[int]" = []
        theirs: "list[int]" = []
        try:
            theirs.append(open_null(os.O_RDONLY) if not self._input else open_pipe(ours, 1))
            for _ in range(2):
                theirs.append(open_pipe(ours, 0))
            self.start(theirs)
        except BaseException:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        if self._input:
            self._stdin_fd = ours.pop(0)
        self._outputs = {ours[0]: self._stdout, ours[1]: self._stderr}

    def end(self) -> None:
        self._close_input()
        if not self._outputs:
            self._finish()
            return
        for fd in list(self._outputs):
            self._read_output(fd)
        if self._outputs:
            self._watch_outputs()
            self._stop_delay()
            self._delay = self._loop.later(LINGER_S, self._finish)

    def _watch_outputs(self) -> None:
        if not self._watched:
            self._watched = True
            for fd in self._outputs:
                self._loop.add(fd, IN | HANGUP, self._build_reader(fd))

    def _build_reader(self, fd: int) -> "Callable[[int], None]":
        return lambda _events: self._read_output(fd)

    def _stop_delay(self) -> None:
        if self._delay is not None:
            self._delay.cancel()

    def _read_output(self, fd: int) -> None:
        kept = self._outputs[fd]
        for _ in range(_READS_PER_TURN):
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self._close_output(fd)
                if not self._outputs and self.status is not None:
                    self._finish()
                return
            room = self._limit - len(kept)
            kept += data[:room] if room < len(data) else data
            self._truncated = self._truncated or room < len(data)

    def _close_output(self, fd: int) -> None:
        del self._outputs[fd]
        if self._watched:
            self._loop.remove(fd)
        os.close(fd)

    def _write_input(self, _events: int) -> None:
        try:
            self._input = self._input[os.write(self._stdin_fd, self._input[:_READ_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._input = self._input[:0]  # it does not want the rest, as `head` does not
        if not self._input:
            self._close_input()

    def _close_input(self) -> None:
        if self._stdin_fd >= 0:
            self._loop.remove(self._stdin_fd)
            os.close(self._stdin_fd)
            self._stdin_fd = -1

    def _finish(self) -> None:
        self._stop_delay()
        for fd in list(self._outputs):
            self._close_output(fd)
        status = self.status or 0
        result = Result(status, bytes(self._stdout), bytes(self._stderr), self._truncated, self.timed_out, self.seconds)
        self._done(result)


def open_null(flags: int) -> int:
    return os.open("/dev/null", flags | os.O_CLOEXEC)


def open_pipe(ours: "list[int]", end: int) -> int:
    """Makes a pipe: adds our end of it (0 to read, 1 to write) to `ours`, not blocking, and gives the other end."""
    ends = os.pipe2(os.O_CLOEXEC)
    ours.append(ends[end])
    os.set_blocking(ends[end], False)
    return ends[1 - end]


def _spawn(
    program: str,
    argv: "list[str]",
    environment: "dict[str, str]",
    cwd: str,
    descriptors: "list[int]",
    terminal: "str | None",
) -> int:
    if terminal is None:
        actions: "list[Any]" = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors)]
    else:
        # The first terminal that the leader of a session opens becomes its controlling one. Source: tty_ioctl(4);
        # glibc, sysdeps/unix/sysv/linux/spawni.c calls setsid before it carries out the file actions.
        actions = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
    # posix_spawn knows no working directory. There is one thread only, so the agent goes there and comes back.
    os.chdir(cwd)
    try:
        return _posix_spawn(program, argv, environment, actions, terminal is None)
    finally:
        os.chdir("/")


def _posix_spawn(
    program: str, argv: "list[str]", environment: "dict[str, str]", actions: "list[Any]", group_is_enough: bool
) -> int:
    try:
        return os.posix_spawn(
            program, argv, environment, file_actions=actions, setsid=True, setsigmask=(), setsigdef=SIGNALS
        )
    except NotImplementedError:
        if not group_is_enough:
            raise OSError(95, "this C library cannot give a program a terminal") from None
        # A C library without POSIX_SPAWN_SETSID: a process group of its own is all that killing needs.
        return os.posix_spawn(
            program, argv, environment, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=SIGNALS
        )
