"""What the guest has to say of its own accord (guest floor): services, logins, memory, disks, shutdown.

Made by `main` once the host has its first answer. What the guest's own scripts know comes as lines through a FIFO, one
event each; they write with `echo … 1<>FIFO`, which never blocks, not even where no agent runs. The kernel and systemd
tell what they know themselves (`kernellog`, `systemd`); full disks and logins are looked for now and then (`patrol`).
"""

import os
import stat
from time import monotonic

from . import parameters, system
from .loop import IN
from .services import is_name
from .wire import LineDecoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .main import Agent

_MAX_LINE_BYTES = 512
_STATES = ("started", "stopped", "failed")
# Two that know of one shutdown say so within this time.
_SAME_SHUTDOWN_S = 60.0
ACTIONS = ("poweroff", "reboot", "halt", "kexec", "unknown")


class Events:
    """Hears of everything the host is to be told, and tells it."""

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._shutdown_said = -_SAME_SHUTDOWN_S

    def listen(self) -> None:
        agent = self._agent
        if agent.config["events"] is not None:
            _Fifo(self, agent, agent.config["events"])
        from .kernellog import KernelLog
        from .patrol import Patrol

        KernelLog(agent.loop, self.say_out_of_memory)
        Patrol(self, agent).begin()
        if system.has_systemd():
            from .systemd import Systemd

            Systemd(agent.loop, self.say_failed_service, self.say_shutdown)

    def say_failed_service(self, name: str) -> None:
        if is_name(name):
            self._say("service %s failed" % name, {"service": name, "state": "failed"})

    def say_shutdown(self, action: str) -> None:
        """The guest is going down; said once, whoever notices first."""
        now = monotonic()
        if now - self._shutdown_said >= _SAME_SHUTDOWN_S:
            self._shutdown_said = now
            self._say("shutdown begins", {"action": action if action in ACTIONS else "unknown"})

    def say_out_of_memory(self, pid: int, name: str, in_group: bool) -> None:
        self._say("out of memory", {"pid": pid, "process": name[:64], "control_group": in_group})

    def say_login(self, user: str, terminal: str, host: str) -> None:
        self._say("login", {"user": user[:256], "terminal": terminal[:64], "host": host[:256]})

    def say_disk(self, full: bool, path: str, used_percent: int, available_bytes: int, total_bytes: int) -> None:
        details = {
            "path": path[:4096],
            "used_percent": used_percent,
            "available_bytes": available_bytes,
            "total_bytes": total_bytes,
        }
        self._say("disk nearly full" if full else "disk has room again", details)

    def say_line(self, text: str) -> bool:
        """Tells what a line of the FIFO says; False when it says nothing known."""
        words = text.split(" ")
        if text == "boot finished":
            self._say(text, {"uptime_s": system.read_uptime_s()})
        elif len(words) == 3 and words[0] == "service" and is_name(words[1]) and words[2] in _STATES:
            self._say(text, {"service": words[1], "state": words[2]})
        elif words[:2] == ["shutdown", "begins"] and len(words) <= 3:
            self.say_shutdown(words[2] if len(words) == 3 else "unknown")
        elif words[0] == "login" and 3 <= len(words) <= 4 and all(map(_is_word, words)):
            self.say_login(words[1], words[2], words[3] if len(words) == 4 else "")
        else:
            return False
        return True

    def _say(self, text: str, details: "dict[str, object]") -> None:
        self._agent.emit("status", text, details)


class _Fifo:
    """Makes the FIFO at `path` and hears its lines; a directory it needs is made too."""

    def __init__(self, events: Events, agent: "Agent", path: str) -> None:
        self._events = events
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
            if not self._events.say_line(text):
                self._agent.report("bad-message", "an event of the guest was not understood: %s" % text[:80])


def _is_word(word: str) -> bool:
    return parameters.is_text(word, 1, 256) and word.isprintable()


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
