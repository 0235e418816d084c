"""The session with one host: its streams and jobs, and their end (guest floor).

Made by `main` at the first `hello`, so that an agent nobody talks to does not carry it. Handlers reach its parts as
`agent.streams` and `agent.jobs`.
"""

from .jobs import Jobs
from .port import BULK_NAME, find_port, open_port
from .streams import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .carriers.bulk import BulkCarrier
    from .loop import Timer
    from .main import Agent

# A host that reconnects is seen as gone and back, and its first request may come before the notice of either. So only
# a host that stays away ends its session by that.
_GONE_S = 1.0


class Sessions:
    """The one session there is at a time, and what carries its streams.

    Attributes:
        streams, jobs: What handlers open streams and begin jobs with.
    """

    def __init__(self, agent: "Agent") -> None:
        self._agent = agent
        self._loop = agent.loop
        self.streams = Streams(agent.loop, self._say_broken)
        self.jobs = Jobs(lambda outcome: agent.notify("job_done", outcome))
        self._bulk: "BulkCarrier | None" = None
        self._timers: "dict[str, Timer]" = {}

    @property
    def has_bulk(self) -> bool:
        """Whether the port for streams is in use; it stays, whoever is at its other end."""
        return self._bulk is not None

    def begin(self, session: str) -> None:
        """Ends the session there was and begins this one."""
        self.end("a new session began")
        self._agent.session = session
        self.find_wire()
        if self._bulk is not None:
            self._bulk.begin_again()
        self.streams.begin(session)

    def end(self, reason: str) -> None:
        """Ends the session: its calls, its jobs and its streams."""
        if self._agent.session is not None:
            self._agent.session = None
            self._agent.cancel_requests()
            self.jobs.hang_up()
            self.streams.end(reason)

    def hear_host(self, wire: str, connected: bool) -> None:
        """The host has come to, or gone from, a wire (`port` or `bulk`) that stays when it goes."""
        timer = self._timers.pop(wire, None)
        if timer is not None:
            timer.cancel()
        if not connected:
            gone = self._lose_host if wire == "port" else self._lose_bulk_host
            self._timers[wire] = self._loop.later(_GONE_S, gone)

    def find_wire(self) -> None:
        """Looks for what can carry streams, and takes it into use."""
        port = self._agent.port
        if port is None:
            return
        if port.stays:
            if self._bulk is None:
                self._open_bulk()
        else:
            port.carry(self.streams.take_line)
            self.streams.attach(port)

    def lose_port(self, reason: str) -> None:
        """The port itself has gone, not only the host at its end."""
        self.end(reason)
        if self._bulk is None:
            self.streams.attach(None)

    def _open_bulk(self) -> None:
        path = find_port(BULK_NAME)
        if path is None:
            return
        try:
            fd, _ = open_port(path)
        except OSError as error:
            if error.errno not in (2, 6, 19):  # ENOENT, ENXIO, ENODEV: it went away again
                self._agent.report("failed", "%s cannot be opened: %s" % (path, error.strerror))
            return
        from .carriers.bulk import BulkCarrier

        self._bulk = BulkCarrier(self._loop, fd, self.streams, self._lose_bulk, self._hear_bulk_host)
        self.streams.attach(self._bulk)
        self._bulk.start()
        if self._agent.session is not None:
            self.streams.resume()

    def _lose_bulk(self, reason: str) -> None:
        self._bulk = None
        self.streams.fail(reason)
        self.streams.attach(None)

    def _hear_bulk_host(self, connected: bool) -> None:
        self.hear_host("bulk", connected)

    def _lose_host(self) -> None:
        self.end("the host has gone")

    def _lose_bulk_host(self) -> None:
        self.streams.fail("the host has gone from the bulk port")

    def _say_broken(self, reason: str) -> None:
        self._agent.notify("bulk_broken", {"reason": reason[:1024]})
