"""Looks now and then at what sends no event (guest floor): how full the disks are, and who has logged in.

It goes at the heartbeat's pace and costs a few system calls each time. Made by `events`.
"""

from . import logins, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .events import Events
    from .main import Agent

# The pace where there is no heartbeat.
_PACE_S = 5.0
# A disk has room again when it is this much emptier than where it counted as full: so one at the edge says it once.
_HYSTERESIS_PERCENT = 5
_MAX_DISKS = 256


class Patrol:
    """Goes its round for as long as the agent runs."""

    def __init__(self, events: "Events", agent: "Agent") -> None:
        self._events = events
        self._agent = agent
        self._full: "dict[str, str]" = {}
        self._logins = logins.find_source()

    def begin(self) -> None:
        self._look()

    def _look(self) -> None:
        self._agent.loop.later(max(1.0, self._agent.config["heartbeat_s"] or _PACE_S), self._look)
        self._look_at_disks()
        if self._logins is not None:
            for user, terminal, host in self._logins.read_new():
                self._events.say_login(user, terminal, host)

    def _look_at_disks(self) -> None:
        limit = self._agent.config["disk_full_percent"]
        seen: "set[str]" = set()
        for mount in mounts.read_mounts() if limit else []:
            if mount.read_only or mount.device in seen or len(seen) >= _MAX_DISKS:
                continue
            sizes = mounts.measure(mount)
            if sizes is None:
                continue
            seen.add(mount.device)
            used = sizes["total_bytes"] - sizes["free_bytes"]
            room = used + sizes["available_bytes"]
            percent = 100 * used // room if room else 0
            full = percent >= limit - (_HYSTERESIS_PERCENT if mount.device in self._full else 0)
            if full != (mount.device in self._full):
                if full:
                    self._full[mount.device] = mount.path
                else:
                    del self._full[mount.device]
                self._events.say_disk(full, mount.path, percent, sizes["available_bytes"], sizes["total_bytes"])
        for device in [device for device in self._full if device not in seen]:
            del self._full[device]  # it is no longer mounted
