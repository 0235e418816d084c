"""Hears what the guest's own start-up scripts have to say (guest floor): one line each into a FIFO.

`service NAME STATE` and `boot finished` become status messages. A script writes with `echo … 1<>FIFO`, which never
blocks, not even where no agent runs.
"""

import os
import stat

from . import system
from .loop import IN
from .services import is_name
from .wire import LineDecoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .main import Agent

_MAX_LINE_BYTES = 512
_STATES = ("started", "stopped", "failed")


class Events:
    """Makes the FIFO at `path` and turns its lines into messages; a directory it needs is made too."""

    def __init__(self, agent: "Agent", path: str) -> None:
        self._agent = agent
        self._decoder = LineDecoder(_MAX_LINE_BYTES)
        try:
            self._fd = _open_fifo(path)
        except OSError as error:
            agent.report("failed", "%s cannot be made: %s" % (path, error.strerror))
            return
        agent.loop.add(self._fd, IN, self._read)

    def _read(self, _events: int) -> None:
        try:
            data = os.read(self._fd, 4096)
        except BlockingIOError:
            return
        for line in self._decoder.feed(data):
            text = "" if line is None else line.decode("utf-8", "replace").strip()
            if not self._say(text):
                self._agent.report("bad-message", "an event of the guest was not understood: %s" % text[:80])

    def _say(self, text: str) -> bool:
        words = text.split(" ")
        if text == "boot finished":
            self._agent.emit("status", text, {"uptime_s": system.read_uptime_s()})
            return True
        if len(words) == 3 and words[0] == "service" and is_name(words[1]) and words[2] in _STATES:
            self._agent.emit("status", text, {"service": words[1], "state": words[2]})
            return True
        return False


def _open_fifo(path: str) -> int:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass  # left by an agent before this one; whether it is a FIFO is looked at once it is open
    # Open for both directions: then it never ends, however many scripts come and go.
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise FileExistsError(17, "something else has this name", path)
    return fd
