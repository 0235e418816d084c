"""The holder's own program: `serial_holder.py PID_FILE` (floor 2), for real machines at the other end of a serial line.

It is to a board what QEMU is to a guest: it has the port, writes what the board says to the file `serial`, types what
comes over the FIFO `serial.in`, does what the lines of the FIFO `holder.orders` say (`NUMBER break SECONDS`, `NUMBER
dtr on`, `NUMBER rts pulse SECONDS`), and outlives whoever started it. What to hold stands in `holder.job`;
`holder.state` says whether the line is there, and how the last order went. A cable that goes is waited for. SIGTERM and
SIGQUIT end it.
"""

import errno
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any

import serial

READ_BYTES = 65536
TYPED_BYTES = 1024
"""At once: an order, or the end, need not wait for more at 9600 baud than for a second."""

FULL_DISK_WAIT_S = 0.2
LOOK_AGAIN_S = 0.25
"""How often a cable that is gone is looked for."""

READ_WAIT_S = 0.5
PARITIES = {"none": "N", "even": "E", "odd": "O", "mark": "M", "space": "S"}


def main() -> int:
    pid_file = sys.argv[1]
    os.chdir(os.path.dirname(pid_file))
    with open("holder.job", encoding="utf-8") as file:
        job = json.load(file)
    write("pid", str(os.getpid()))
    waking, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, frame: None)
    signal.set_wakeup_fd(wakeup)
    try:
        line = Line(job)
    except (OSError, ValueError) as error:
        hint = "is it plugged in? may you read and write it (the group dialout)? does another program have it?"
        write("holder.end", json.dumps({"error": f"{job['port']} cannot be opened: {describe(error)}", "hint": hint}))
        return 1
    orders = os.open("holder.orders", os.O_RDWR | os.O_CLOEXEC)
    for work in (line.read_on, line.type_on):
        threading.Thread(target=work, daemon=True).start()
    while True:
        ready, _, _ = select.select([waking, orders], [], [])
        if orders in ready:
            for order in os.read(orders, 4096).decode("utf-8", "replace").splitlines():
                line.do(order)
        if waking in ready and set(os.read(waking, 4096)) & {signal.SIGTERM, signal.SIGQUIT}:
            write("holder.end", json.dumps({"exit_code": 0, "signal": 0}))
            return 0


def write(name: str, text: str) -> None:
    """Write a whole file; whoever looks sees all of it or nothing."""
    with open(f".{name}", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f".{name}", name)


def describe(error: Exception) -> str:
    """Say it in a few words; pyserial's errors hold those of the system, and their numbers."""
    if "disconnected" in str(error) or isinstance(error, TypeError):
        return "the device was unplugged"
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) else str(error)[:200]


class Line:
    """A serial port, opened again whenever it has gone. Raises OSError, ValueError when it cannot be at first."""

    def __init__(self, job: "dict[str, Any]") -> None:
        self.job = job
        self.has_descriptor = not str(job["port"]).startswith("rfc2217:")
        self.state: dict[str, Any] = {"port": job["port"], "connected": True, "why": "", "outages": 0}
        self.guard = threading.Lock()
        self.is_there = threading.Event()
        self.port = self.open()
        self.tell()
        self.is_there.set()

    def open(self) -> Any:
        port: Any = serial.serial_for_url(str(self.job["port"]), do_not_open=True)
        port.baudrate = self.job["baud"]
        port.bytesize = self.job["data_bits"]
        port.parity = PARITIES[str(self.job["parity"])]
        port.stopbits = self.job["stop_bits"]
        port.rtscts = self.job["flow"] == "rtscts"
        port.xonxoff = self.job["flow"] == "xonxoff"
        port.dsrdtr = self.job["flow"] == "dsrdtr"
        for name in ("dtr", "rts"):
            if self.job[name] is not None:
                setattr(port, name, self.job[name])
        port.timeout = 0 if self.has_descriptor else READ_WAIT_S
        if isinstance(port, serial.Serial):
            port.exclusive = True
        if "://" in str(self.job["port"]):
            # pyserial throws away at its opening what the other side has said by then: here, its greeting.
            port.reset_input_buffer = lambda: None
        port.open()
        return port

    def tell(self, **changes: object) -> None:
        with self.guard:
            self.state.update(changes)
            write("holder.state", json.dumps(self.state))

    # -- what it says ------------------------------------------------------------------------------------------------

    def read_on(self) -> None:
        """Write what the board says, for ever; a thread of its own."""
        log = os.open("serial", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        while True:
            try:
                said = self.read()
            except (OSError, ValueError, TypeError) as error:  # TypeError: pyserial's, of a port that was just closed
                self.wait_for_cable(describe(error))
                continue
            append(log, said)

    def read(self) -> bytes:
        if self.has_descriptor:
            select.select([self.port], [], [], READ_WAIT_S)
            return bytes(self.port.read(READ_BYTES))
        said = bytes(self.port.read(1))
        return said + bytes(self.port.read(self.port.in_waiting))

    def wait_for_cable(self, why: str) -> None:
        self.is_there.clear()
        self.tell(connected=False, why=f"the line is gone: {why}", outages=self.state["outages"] + 1)
        close(self.port)
        while True:
            time.sleep(LOOK_AGAIN_S)
            try:
                self.port = self.open()
            except (OSError, ValueError):
                continue
            break
        self.tell(connected=True, why="")
        self.is_there.set()

    # -- what is typed -------------------------------------------------------------------------------------------------

    def type_on(self) -> None:
        """Type what is to be typed, for ever; a thread of its own."""
        typed = os.open("serial.in", os.O_RDWR | os.O_CLOEXEC)
        while True:
            data = os.read(typed, TYPED_BYTES)
            self.is_there.wait()
            try:
                self.port.write(data)
            except (OSError, ValueError, TypeError):
                # The reader finds out as well, and looks for the cable; what was on its way is lost as on any wire.
                time.sleep(LOOK_AGAIN_S)

    # -- its lines -----------------------------------------------------------------------------------------------------

    def do(self, order: str) -> None:
        number, _, rest = order.partition(" ")
        what, _, how = rest.partition(" ")
        failed = ""
        try:
            if what == "break":
                self.port.break_condition = True
                time.sleep(float(how))
                self.port.break_condition = False
            elif what in ("dtr", "rts") and how in ("on", "off"):
                setattr(self.port, what, how == "on")
            elif what in ("dtr", "rts") and how.startswith("pulse "):
                before = getattr(self.port, what)
                setattr(self.port, what, not before)
                time.sleep(float(how.removeprefix("pulse ")))
                setattr(self.port, what, before)
            else:
                failed = f"{rest[:40]!r} is no order"
        except (OSError, ValueError, TypeError) as error:
            failed = describe(error)
        self.tell(done=int(number), failed=failed)


def close(port: Any) -> None:
    try:
        port.close()
    except (OSError, ValueError, TypeError):
        pass  # it is gone already


def append(log: int, said: bytes) -> None:
    """Write what was said; a full disk is waited for, and the board's driver keeps what comes meanwhile."""
    while said:
        try:
            said = said[os.write(log, said) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            time.sleep(FULL_DISK_WAIT_S)


if __name__ == "__main__":
    sys.exit(main())
