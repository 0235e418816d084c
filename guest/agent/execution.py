"""A program whose input and outputs are streams, with or without a terminal (guest floor); made by `exec_start`.

A slow reader holds up the program, never the agent: while the host gives no credit for an output, the agent does not
read it, and its pipe fills up.
"""

import _signal  # type: ignore[import-not-found] # `signal` itself imports `enum`, which is slow
import fcntl
import os
import termios
from struct import pack

from .loop import HANGUP, IN, OUT
from .process import LINGER_S, Child, Result, open_null, open_pipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop
    from .streams import Streams

# What a program that was hung up may still do before it is killed.
_HANGUP_S = 5.0
# As much as a frame holds, and a pipe is made to hold: fewer and larger steps. Source: fcntl(2), F_SETPIPE_SZ.
_READ_BYTES = 262144
_F_SETPIPE_SZ = 1031
_READS_PER_TURN = 4
# What the terminal takes for the end of the input, at the beginning of a line. Source: termios(3), VEOF.
_END_OF_INPUT = b"\x04"


class Input:
    """What the program reads, on its way from the host; the descriptor `fd` is its own.

    At most what the host has credit for waits here.
    """

    def __init__(self, loop: "Loop", fd: int, streams: "Streams", number: int, terminal: bool) -> None:
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._waiting: "list[memoryview]" = []
        self._last = b"\n"
        self._ended = False
        self._reader = streams.open_reader(number, self._take, self._end, lambda _reason: self.close())

    def close(self) -> None:
        """The program takes no more."""
        if self._fd >= 0:
            if self._waiting:
                self._loop.remove(self._fd)
                self._waiting.clear()
            os.close(self._fd)
            self._fd = -1
            self._reader.reset("the program takes no more input")

    def abandon(self) -> None:
        """The program was never started: as if this had not been."""
        os.close(self._fd)
        self._reader.close()

    def _take(self, piece: memoryview) -> None:
        written = 0 if self._waiting else self._write(piece)
        if self._fd >= 0 and written < len(piece):
            if not self._waiting:
                self._loop.add(self._fd, OUT, lambda _events: self._go_on())
            self._waiting.append(memoryview(bytes(piece[written:])))

    def _end(self) -> None:
        self._ended = True
        if not self._waiting and self._fd >= 0:
            self._end_now()

    def _go_on(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            written = self._write(piece)
            if self._fd < 0:
                return
            if written < len(piece):
                self._waiting[0] = piece[written:]
                return
            self._waiting.pop(0)
        self._loop.remove(self._fd)
        if self._ended:
            self._end_now()

    def _write(self, piece: memoryview) -> int:
        try:
            written = os.write(self._fd, piece)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()  # EPIPE, or EIO of a terminal: nobody reads any more, as `head` does not
            return 0
        if written:
            self._last = bytes(piece[written - 1 : written])
            self._reader.grant(written)
        return written

    def _end_now(self) -> None:
        if not self._terminal:
            self.close()
            return
        # A terminal has no end; what stands for it first ends the line that was begun.
        self._ended = False
        self._take(memoryview(_END_OF_INPUT if self._last == b"\n" else _END_OF_INPUT * 2))


class Output:
    """What the program writes, on its way to the host; the descriptor `fd` is its own.

    Args:
        on_end: Called when all of it has been read.
        on_reset: Called when the host does not want it any more.
    """

    def __init__(
        self,
        loop: "Loop",
        fd: int,
        streams: "Streams",
        number: int,
        on_end: "Callable[[Output], Any]",
        on_reset: "Callable[[Output], Any]",
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._watched = False
        # How much there still is to read once the program has ended, None before.
        self._left: "int | None" = None
        self._writer = streams.open_writer(number, lambda _reason: on_reset(self))

    def watch(self) -> None:
        """Begins to read, or goes on reading."""
        if self._fd >= 0:
            self._loop.add(self._fd, IN | HANGUP, lambda _events: self._read())
            self._watched = True

    def finish(self) -> bool:
        """Sends what is there and then ends, whoever else holds it open; False when that cannot be told apart yet."""
        if self._fd >= 0:
            if not self._watched and os.isatty(self._fd):
                return False  # a terminal does not tell how much of it the host has yet to take
            self._left = int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), "little")
            if not self._left:
                self.close()
        return True

    def close(self) -> None:
        """Ends it after what was read; a program that still writes hears of it."""
        if self._fd >= 0:
            self._pause()
            os.close(self._fd)
            self._fd = -1
            self._writer.end()
            self._on_end(self)

    def abandon(self) -> None:
        """The program was never started: as if this had not been."""
        os.close(self._fd)
        self._writer.close()

    def _pause(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove(self._fd)

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""  # EIO: nobody has the terminal open any more
            more = self._writer.write(data)
            if self._left is not None:
                self._left -= len(data)
            if not data or (self._left is not None and self._left <= 0):
                self.close()
                return
            if not more:
                self._pause()
                self._writer.when_ready(self.watch)
                return


class Execution(Child):
    """A running program with streams. `done(Result)` is called once, when it has ended and its outputs have been read.

    Args:
        start: What to run, as `Child` takes it.
        stdin, stdout, stderr: Numbers of streams, or None for none; `stderr` may be `stdout` to go where that goes.
        size: Rows and columns of its terminal, None when it is to have none. With one it needs `stdout` and has no
            `stderr`.

    Raises:
        CallError: A stream cannot be opened.
        OSError: It could not be started; nothing is left behind.
    """

    def __init__(
        self,
        loop: "Loop",
        start: "dict[str, Any]",
        done: "Callable[[Result], Any]",
        streams: "Streams",
        stdin: "int | None",
        stdout: "int | None",
        stderr: "int | str | None",
        size: "tuple[int, int] | None",
    ) -> None:
        Child.__init__(self, loop, **start)
        self.keeps_number = True
        self._hung_up = False
        self._finished = False
        self._done = done
        self._streams = streams
        self._terminal = -1
        self._has_session = size is not None
        self._input: "Input | None" = None
        self._outputs: "list[Output]" = []
        theirs: "list[int]" = []
        try:
            if size is None:
                self._open_pipes(theirs, stdin, stdout, stderr)
                self.start(theirs)
            else:
                self.start([], self._open_terminal(theirs, stdin, stdout, size))
        except BaseException:
            for part in (self._input, *self._outputs):
                if part is not None:
                    part.abandon()
            if self._terminal >= 0:
                os.close(self._terminal)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        for output in self._outputs:
            output.watch()

    def resize(self, rows: int, columns: int) -> bool:
        """Gives its terminal another size, which it hears of by SIGWINCH; False when it has none."""
        if self._terminal < 0:
            return False
        _set_size(self._terminal, rows, columns)
        return True

    def hang_up(self) -> None:
        """Nobody is there any more: tells the program so, and kills what is left of it a little later."""
        self._hung_up = True
        self._tell_all(_signal.SIGHUP)
        self._tell_all(_signal.SIGCONT)  # a program that is stopped would not hear of it
        self._close_terminal()
        self._loop.later(_HANGUP_S, self._kill_rest)

    def kill(self) -> None:
        """Kills what it has started with it: its process group, and with a terminal all groups of its session."""
        self._signal_all(_signal.SIGKILL)

    def end(self) -> None:
        if self._input is not None:
            self._input.close()
        if self._outputs:
            # Somebody else may hold them open; as with `exec_command`, that is not waited for.
            self._loop.later(LINGER_S, self._finish_outputs)
        else:
            self._finish()

    def _open_pipes(
        self, theirs: "list[int]", stdin: "int | None", stdout: "int | None", stderr: "int | str | None"
    ) -> None:
        ours: "list[int]" = []
        if stdin is None:
            theirs.append(open_null(os.O_RDONLY))
        else:
            theirs.append(open_pipe(ours, 1))
            self._open_input(ours.pop(), stdin, False)
        for number in (stdout, stderr):
            if number is None:
                theirs.append(open_null(os.O_WRONLY))
            elif number == "stdout":
                theirs.append(os.dup(theirs[1]))
            else:
                theirs.append(open_pipe(ours, 0))
                _enlarge(ours[-1])
                self._open_output(ours.pop(), int(number))

    def _open_terminal(
        self, theirs: "list[int]", stdin: "int | None", stdout: "int | None", size: "tuple[int, int]"
    ) -> str:
        self._terminal, slave = os.openpty()
        theirs.append(slave)
        os.set_blocking(self._terminal, False)
        _set_size(self._terminal, *size)
        # Each of them has a descriptor of its own, so that each can wait for it by itself.
        if stdin is not None:
            self._open_input(os.dup(self._terminal), stdin, True)
        if stdout is not None:
            self._open_output(os.dup(self._terminal), stdout)
        return os.ttyname(slave)

    def _open_input(self, fd: int, number: int, terminal: bool) -> None:
        try:
            self._input = Input(self._loop, fd, self._streams, number, terminal)
        except BaseException:
            os.close(fd)
            raise

    def _open_output(self, fd: int, number: int) -> None:
        try:
            output = Output(self._loop, fd, self._streams, number, self._lose_output, self._reset_output)
        except BaseException:
            os.close(fd)
            raise
        self._outputs.append(output)

    def _lose_output(self, output: Output) -> None:
        self._outputs.remove(output)
        if not self._outputs and self.status is not None:
            self._finish()

    def _reset_output(self, output: Output) -> None:
        """The host does not want it any more: the program finds its pipe closed, or its terminal hung up."""
        output.close()
        self._close_terminal()

    def _close_terminal(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1
            if self._input is not None:
                self._input.close()
            for output in list(self._outputs):
                output.close()

    def _finish_outputs(self) -> None:
        for output in list(self._outputs):
            if not output.finish():
                self._loop.later(LINGER_S, self._finish_outputs)
                return

    def _finish(self) -> None:
        self._close_terminal()
        self._finished = True
        if not self._hung_up:
            self.release()
        self._done(Result(self.status or 0, b"", b"", False, self.timed_out, self.seconds))

    def _kill_rest(self) -> None:
        self._tell_all(_signal.SIGKILL)
        self._hung_up = False
        if self._finished:
            self.release()

    def _tell_all(self, number: int) -> None:
        try:
            self._signal_all(number)
        except PermissionError:
            # It has become another user's, as with sudo. What else belongs to the session has to end all the same.
            pass

    def _signal_all(self, number: int) -> None:
        if self._finished and not self._hung_up:
            return  # its number may be another's by now
        for group in {self.pid, *(_find_groups(self.pid) if self._has_session else ())}:
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                pass  # nobody is left in it


def _enlarge(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, _READ_BYTES)
    except OSError:
        pass  # an unprivileged user has a limit on this: the pipe stays as it is


def _set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, pack("HHHH", rows, columns, 0, 0))


def _find_groups(session: int) -> "set[int]":
    """The process groups of a session: a shell gives each of its jobs one of its own. Source: proc_pid_stat(5)."""
    groups = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open("/proc/%s/stat" % name, "rb", 0) as file:
                    fields = file.read(1024).rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            if int(fields[3]) == session:
                groups.add(int(fields[2]))
    return groups
