"""The holder's own program: `pty_holder.py PID_FILE` (floor 2), for machines that are a program on a terminal here.

It is to a program what QEMU is to a guest: it has the terminal, writes what the program says to the file `serial`,
types what comes over the FIFO `serial.in`, does what the lines of the FIFO `holder.orders` say (`size ROWS COLUMNS`),
and outlives whoever started it. What to run stands in `holder.job`, that it runs in `holder.state`, and how it ended in
`holder.end`. SIGTERM asks the program, and all that it started on that terminal, to end; SIGQUIT ends them.
"""

import fcntl
import json
import os
import select
import signal
import struct
import sys
import termios
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from control.process import holding

READ_BYTES = 65536
TYPED_BYTES = 4096
"""What a terminal takes while nobody reads (N_TTY_BUF_SIZE, Linux's n_tty.c)."""

LAST_WORDS_S = 1.0
"""How long what the program has said is still read, should something it started hold the terminal open."""

ROWS, COLUMNS = 24, 80
PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def main() -> int:
    job = holding.take_job(sys.argv[1])
    waking = holding.catch_signals(signal.SIGCHLD, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGINT)
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    log, typed, orders = holding.open_files()
    child, failure = start(job, slave)
    os.close(slave)
    if failure:
        os.waitpid(child, 0)
        holding.tell_end(error=failure)
        return 1
    holding.write("holder.state", json.dumps({"pid": child}))
    status = Holder(child, master, log, typed, orders, waking).hold()
    end_session(child, signal.SIGHUP, signal.SIGCONT, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    holding.tell_end(exit_code=code if code >= 0 else 128 - code, signal=max(0, -code))
    return 0


def start(job: "dict[str, object]", slave: int) -> "tuple[int, str]":
    """Start the program on the terminal; return its number, and why it could not be started."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    holder = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            become(job, slave, holder)
        except OSError as error:
            os.write(writing, f"{error.filename} cannot be used: {error.strerror}".encode())
        finally:
            os._exit(127)
    os.close(writing)
    failure = b""
    while piece := os.read(reading, 4096):  # ends when the program has taken our place
        failure += piece
    os.close(reading)
    return child, failure.decode("utf-8", "replace")


def become(job: "dict[str, object]", slave: int, holder: int) -> None:
    """In the child: be the program. Raises OSError."""
    import ctypes

    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(slave, descriptor)
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    # Killed outright, the holder must leave nothing behind that nobody knows of.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != holder:
        os._exit(127)
    command = [str(word) for word in job["command"]]  # type: ignore[attr-defined]
    environment = {"TERM": "xterm-256color", **os.environ, **job["env"]}  # type: ignore[dict-item]
    try:
        os.chdir(str(job["directory"]))
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"the directory {job['directory']}") from error
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"the program {command[0]}") from error


class Holder:
    """Carries bytes between a terminal and files, until the program on it has ended."""

    def __init__(self, child: int, master: int, log: int, typed: int, orders: int, waking: int) -> None:
        self.child = child
        self.master = master
        self.log = log
        self.typed = typed
        self.orders = orders
        self.waking = waking
        self.said = b""
        self.keys = b""
        self.is_open = True
        self.status = -1
        os.set_blocking(master, False)

    def hold(self) -> int:
        """Carry until the end; return the program's wait status."""
        while self.status < 0:
            self.turn()
        deadline = time.monotonic() + LAST_WORDS_S
        while self.is_open and time.monotonic() < deadline:
            self.turn()
        return self.status

    def turn(self) -> None:
        poller = select.poll()
        poller.register(self.waking, select.POLLIN)
        poller.register(self.orders, select.POLLIN)
        if self.is_open:
            # What cannot be written yet is not read either: a full disk holds the program up, and loses nothing.
            poller.register(self.master, (0 if self.said else select.POLLIN) | (select.POLLOUT if self.keys else 0))
        if not self.keys:
            poller.register(self.typed, select.POLLIN)
        wait_s = holding.FULL_DISK_WAIT_S if self.said or self.status >= 0 else None
        for descriptor, events in poller.poll(None if wait_s is None else wait_s * 1000):
            if descriptor == self.waking:
                self.take_signals()
            elif descriptor == self.orders:
                self.take_orders()
            elif descriptor == self.typed:
                self.keys = os.read(self.typed, TYPED_BYTES)
            elif events & select.POLLOUT:
                self.type()
            else:
                self.read()
        self.said = holding.log_said(self.log, self.said)

    def read(self) -> None:
        try:
            self.said = os.read(self.master, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: nobody has the terminal open any more
            self.is_open = False

    def type(self) -> None:
        try:
            self.keys = self.keys[os.write(self.master, self.keys) :]
        except BlockingIOError:
            return
        except OSError:
            self.keys = b""

    def take_orders(self) -> None:
        for line in os.read(self.orders, 4096).splitlines():
            _, rows, columns = line.split()
            fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", int(rows), int(columns), 0, 0))

    def take_signals(self) -> None:
        for number in os.read(self.waking, 4096):
            if number == signal.SIGCHLD:
                pid, status = os.waitpid(self.child, os.WNOHANG) if self.status < 0 else (0, 0)
                if pid:
                    self.status = status
            elif number == signal.SIGQUIT:
                end_session(self.child, signal.SIGKILL)
            elif number == signal.SIGTERM:
                end_session(self.child, signal.SIGTERM, signal.SIGHUP, signal.SIGCONT)


def end_session(session: int, *numbers: int) -> None:
    """Send signals to each process of the session: what the program started on its terminal belongs to it."""
    for number in numbers:
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                    if int(file.read().rpartition(")")[2].split()[3]) == session:
                        os.kill(int(entry), number)
            except OSError:
                continue  # it has just ended


if __name__ == "__main__":
    sys.exit(main())
