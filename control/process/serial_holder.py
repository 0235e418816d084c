"""The holder's own program: `serial_holder.py PID_FILE` (floor 2), for real machines at the other end of a serial line.

It is to a board what QEMU is to a guest: it has the port, writes what the board says to the file `serial`, types what
comes over the FIFO `serial.in`, does what the lines of the FIFO `holder.orders` say (`NUMBER break SECONDS`, `NUMBER
dtr on`, `NUMBER rts pulse SECONDS`), and outlives whoever started it. What to hold stands in `holder.job`;
`holder.state` says whether the line is there, and how the last order went. A cable that goes is waited for. SIGTERM and
SIGQUIT end it.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from typing import Any

import serial

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from control.process import holding

READ_BYTES = 65536
TYPED_BYTES = 1024
"""At once: an order, or the end, need not wait for more at 9600 baud than for a second."""

LOOK_AGAIN_S = 0.25
"""How often a cable that is gone is looked for."""

READ_WAIT_S = 0.5
PORT_ERRORS = (OSError, ValueError, TypeError)
"""What pyserial raises: of the system, of its own, and (TypeError) of a port that was just closed."""

PARITIES = {"none": "N", "even": "E", "odd": "O", "mark": "M", "space": "S"}


def main() -> int:
    job = holding.take_job(sys.argv[1])
    waking = holding.catch_signals(signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGINT)
    log, typed, orders = holding.open_files()
    try:
        line = Line(job)
    except (OSError, ValueError) as error:
        hint = "is it plugged in? may you read and write it (the group dialout)? does another program have it?"
        holding.tell_end(error=f"{job['port']} cannot be opened: {describe(error)}", hint=hint)
        return 1
    threading.excepthook = end_with_thread
    threading.Thread(target=line.read_on, args=(log,), daemon=True).start()
    threading.Thread(target=line.type_on, args=(typed,), daemon=True).start()
    while True:
        ready, _, _ = select.select([waking, orders], [], [])
        if waking in ready and set(os.read(waking, 4096)) & {signal.SIGTERM, signal.SIGQUIT}:
            holding.tell_end(exit_code=0, signal=0)
            return 0
        if orders in ready:
            for order in os.read(orders, 4096).decode("utf-8", "replace").splitlines():
                line.do(order, waking)


def end_with_thread(failed: threading.ExceptHookArgs) -> None:
    """End all of us when what reads or types has failed: half a holder is worse than none."""
    holding.tell_end(error=f"the holder failed: {failed.exc_value!r}"[:400], hint="is its directory still there?")
    os._exit(1)


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
        self.telling = threading.Lock()
        self.using = threading.Lock()
        self.write_error: Exception | None = None
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
        with self.telling:
            self.state.update(changes)
            holding.write("holder.state", json.dumps(self.state))

    # -- what it says ------------------------------------------------------------------------------------------------

    def read_on(self, log: int) -> None:
        """Write what the board says, for ever; a thread of its own."""
        while True:
            try:
                said = self.read()
            except PORT_ERRORS as error:
                self.wait_for_cable(error)
                continue
            while said := holding.log_said(log, said):
                time.sleep(holding.FULL_DISK_WAIT_S)  # the board's driver keeps what comes meanwhile, as far as it can

    def read(self) -> bytes:
        if self.has_descriptor:
            select.select([self.port], [], [], READ_WAIT_S)
            return bytes(self.port.read(READ_BYTES))
        said = bytes(self.port.read(1))
        return said + bytes(self.port.read(self.port.in_waiting))

    def wait_for_cable(self, error: Exception) -> None:
        with self.using:
            self.is_there.clear()
            why = self.write_error or error
            self.write_error = None
        self.tell(connected=False, why=f"the line is gone: {describe(why)}", outages=self.state["outages"] + 1)
        close(self.port)
        while True:
            # Whoever puts a cable back tells nobody: a device may be anywhere, and the other end of a socket is far.
            time.sleep(LOOK_AGAIN_S)
            try:
                port = self.open()
            except (OSError, ValueError):
                continue
            break
        with self.using:
            self.port = port
        self.tell(connected=True, why="")
        self.is_there.set()

    # -- what is typed -------------------------------------------------------------------------------------------------

    def type_on(self, typed: int) -> None:
        """Type what is to be typed, for ever; a thread of its own."""
        while True:
            data = os.read(typed, TYPED_BYTES)
            self.is_there.wait()
            port = self.port
            try:
                port.write(data)
            except PORT_ERRORS as error:
                self.lose(port, error)  # what was on its way is lost, as on any wire

    def lose(self, port: Any, error: Exception) -> None:
        """Let the reader find out that a port cannot be written to, unless it has by itself."""
        with self.using:
            if port is self.port and self.is_there.is_set():
                self.is_there.clear()
                self.write_error = error
                close(port)

    # -- its lines -----------------------------------------------------------------------------------------------------

    def do(self, order: str, waking: int) -> None:
        """Do what a line of orders says; a signal ends what lasts, and the line is put back."""
        number, _, rest = order.partition(" ")
        what, _, how = rest.partition(" ")
        failed = ""
        try:
            if what == "break":
                self.port.break_condition = True
                select.select([waking], [], [], float(how))
                self.port.break_condition = False
            elif what in ("dtr", "rts") and how in ("on", "off"):
                setattr(self.port, what, how == "on")
            elif what in ("dtr", "rts") and how.startswith("pulse "):
                before = getattr(self.port, what)
                setattr(self.port, what, not before)
                select.select([waking], [], [], float(how.removeprefix("pulse ")))
                setattr(self.port, what, before)
            else:
                failed = f"{rest[:40]!r} is no order"
        except PORT_ERRORS as error:
            failed = describe(error)
        self.tell(done=int(number), failed=failed)


def close(port: Any) -> None:
    with contextlib.suppress(*PORT_ERRORS):  # there may be nothing left to close
        port.close()


if __name__ == "__main__":
    sys.exit(main())
