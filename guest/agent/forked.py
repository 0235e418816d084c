"""Does a piece of the agent's own work in a process of its own (guest floor): what may block in the kernel for long."""

import os

from .loop import HANGUP, IN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .loop import Loop

_READ_BYTES = 65536


class Forked:
    """The work under way; `done(result, error)` is called once.

    Args:
        work: Called in the other process; what it returns must have a form in JSON. An OSError comes through as one.
        timeout_s: After this it is ended; 0 for no limit.

    Raises:
        OSError: There is no process or pipe to be had.
    """

    def __init__(
        self, loop: "Loop", work: "Callable[[], Any]", done: "Callable[..., Any]", timeout_s: float = 0
    ) -> None:
        self._loop = loop
        self._done = done
        self._data = b""
        self._killed = False
        self._fd, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._pid = os.fork()
        except OSError:
            os.close(self._fd)
            os.close(write_end)
            raise
        if not self._pid:
            _work(work, write_end)
        os.close(write_end)
        loop.add(self._fd, IN | HANGUP, self._read)
        self._timer = loop.later(timeout_s, self._time_out) if timeout_s else None

    def kill(self) -> None:
        """Ends it; what it has done stays done."""
        self._killed = True
        os.kill(self._pid, 9)

    def _time_out(self) -> None:
        os.kill(self._pid, 9)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._data += data
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove(self._fd)
        os.close(self._fd)
        os.waitpid(self._pid, 0)
        self._finish()

    def _finish(self) -> None:
        from . import dispatch, wire

        if self._killed:
            self._done(None, dispatch.CallError(dispatch.CANCELLED, "it was cancelled"))
            return
        whole = self._data.endswith(b"\n")  # it may have been ended in the middle of what it had to say
        report: "Any" = wire.decode(self._data) if whole else {"error": "it took too long and was ended"}
        if "errno" in report:
            self._done(None, OSError(report["errno"], report["error"], report["path"]))
        elif "error" in report:
            self._done(None, dispatch.CallError(dispatch.FAILED, report["error"]))
        else:
            self._done(report["result"], None)


def _work(work: "Callable[[], Any]", write_end: int) -> None:
    from . import wire

    try:
        os.setsid()
        os.set_blocking(write_end, True)
        os.dup2(write_end, 3)
        os.closerange(4, 65536)
        report: "dict[str, Any]"
        try:
            report = {"result": work()}
        except OSError as error:
            report = {"errno": error.errno or 5, "error": error.strerror or "it failed", "path": error.filename}
        except Exception as error:
            report = {"error": "%s: %s" % (type(error).__name__, str(error)[:400])}
        data = wire.encode(report)
        while data:
            data = data[os.write(3, data) :]
    finally:
        os._exit(0)
