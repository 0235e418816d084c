"""Starts the agent and holds it together (guest floor); called by `__main__` only.

The order matters: the port first, because the host is waiting for it; what nobody waits for comes after that.
"""

import os

from . import VERSION, config, dispatch, message, system, wire
from .carriers.console import ConsoleCarrier
from .carriers.port import ANSWER, HEARTBEAT, STATUS, PortCarrier
from .guard import Guard
from .loop import Loop
from .port import BULK_NAME, find_port, open_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .carriers.share import ShareCarrier
    from .carriers.vsock import VsockListener
    from .display.screen import Screen
    from .events import Events
    from .freezer import Freezer
    from .jobs import Jobs
    from .loop import Timer
    from .sessions import Sessions
    from .streams import Streams
    from .uevent import Uevents

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2

USAGE = "usage: agent [--port PATH | --fd NUMBER | --vsock PORT] [--config PATH] [--console PATH]"
# A program that was told that its session has ended has this long to end, and the agent behind it.
_LEAVE_S = 6.0
# The first byte of a line that is a frame.
_FRAME = 0xF5


class Agent:
    """The carriers, the configuration and the counters, as handlers and commands see them.

    Args:
        port_path, port_fd, vsock: What to talk over instead of the virtio-serial port `org.unhinged.agent.0`.

    Attributes:
        session: The session there is, None before the first `hello`.
        transport: What the host is reached over: `virtio-serial`, `vsock`, `terminal`, `socket` or `descriptor`.
    """

    def __init__(
        self,
        settings: "dict[str, Any]",
        port_path: "str | None" = None,
        port_fd: "int | None" = None,
        vsock: "int | None" = None,
    ) -> None:
        self.config = settings
        self.loop = Loop(self._report_exception)
        self.counters = {
            "host_connections": 0,
            "lines": 0,
            "messages": 0,
            "messages_refused": 0,
            "commands": 0,
            "answers_dropped": 0,
            "status_dropped": 0,
            "heartbeats_dropped": 0,
            "console_dropped": 0,
            "share_failures": 0,
            "exceptions": 0,
        }
        self.commands_running = 0
        self.session: "str | None" = None
        self.transport = "virtio-serial"
        self.display: "Screen | None" = None
        self.freezer: "Freezer | None" = None
        self._events: "Events | None" = None
        self.console = ConsoleCarrier(self.loop, settings["console"], self.counters)
        self.guard = Guard(self, settings)
        self.share: "ShareCarrier | None" = None
        self.port: "PortCarrier | None" = None
        self._vsock = vsock
        self._listener: "VsockListener | None" = None
        self._sessions: "Sessions | None" = None
        self._leaving = False
        self._port_path = port_path
        self._port_fd = port_fd
        # A port that was named is opened once; the virtio-serial port is waited for, and opened again when it is back.
        self._fixed = port_fd is not None or port_path is not None or vsock is not None
        self._unsent: "list[bytes]" = []
        self._dispatcher = dispatch.Dispatcher(self, self._send_answer, self._report_exception)
        self._heartbeats = 0
        self._heartbeat_timer: "Timer | None" = None
        self._uevents: "Uevents | None" = None
        self._display_was_up = False
        self._ready_id = ""
        self._capabilities: "list[str]" = []

    def run(self) -> int:
        """Serves the host until there is nobody left to serve; gives the exit code."""
        if self._vsock is not None:
            self._listen(self._vsock)
        elif not self._open_port():
            self._watch_devices()
        self._say_ready()
        self.loop.soon(self._start_the_rest)
        exit_code = self.loop.run()
        self.guard.flush()
        return exit_code

    # What handlers and commands use

    def emit(self, type_: str, text: str, details: "dict[str, Any]") -> None:
        """Says something to whoever listens, on the console and on the port under one id."""
        envelope = message.build(type_, text, details)
        self.console.send(wire.encode(envelope))
        self.send_message(envelope)

    def report(self, code: str, text: str) -> None:
        """Says that something went wrong."""
        self.emit("error", text, {"code": code})

    def send_message(self, envelope: "dict[str, Any]", kind: int = STATUS) -> None:
        """Sends one message over the port; one that does not fit on a line becomes an error that says so."""
        line = _encode_notification(envelope)
        if len(line) > wire.MAX_ANSWER_BYTES:
            text = "a message of %d bytes does not fit on a line" % len(line)
            answered = envelope.get("in_reply_to")
            line = _encode_notification(message.build("error", text, {"code": "line-too-long"}, answered))
        if self.port is not None:
            self.port.send(line, kind)
        elif kind == STATUS and len(self._unsent) < 64:
            self._unsent.append(line)

    def notify(self, method: str, params: "dict[str, Any]", keep: bool = True) -> None:
        """Sends a notification to the host that is there, or to the next one.

        With `keep` it is never dropped while a host is connected, so it is for what comes a bounded number of times.
        Without, it is dropped with no host there, and the oldest first when 256 KiB of such wait.
        """
        if self.port is not None:
            line = wire.encode({"jsonrpc": "2.0", "method": method, "params": params})
            self.port.send(line, ANSWER if keep else HEARTBEAT)

    @property
    def events(self) -> "Events":
        """What the host is told of its own accord; see `events`."""
        if self._events is None:
            from .events import Events

            self._events = Events(self)
        return self._events

    @property
    def sessions(self) -> "Sessions":
        if self._sessions is None:
            from .sessions import Sessions

            self._sessions = Sessions(self)
        return self._sessions

    @property
    def streams(self) -> "Streams":
        """Where handlers open streams; see `streams`."""
        return self.sessions.streams

    @property
    def jobs(self) -> "Jobs":
        """The jobs of the session; handlers begin one with `call.start_job()`."""
        return self.sessions.jobs

    def cancel_request(self, id_: object) -> None:
        self._dispatcher.cancel(id_)

    def cancel_requests(self) -> None:
        self._dispatcher.cancel_all()

    def end_command(self) -> None:
        """One of the `commands_running` has ended."""
        self.commands_running -= 1
        if self._leaving and not self.commands_running:
            self.loop.stop(EXIT_OK)

    def when_flushed(self, callback: "Callable[..., Any]") -> None:
        """Calls `callback()` when everything said on the port so far is on its way."""
        if self.port is None:
            self.loop.soon(callback)
        else:
            self.port.when_flushed(callback)

    def look_at_share(self) -> None:
        if self.share is not None:
            self.share.look()

    def list_carriers(self) -> "list[str]":
        carriers = []
        if self.console.works:
            carriers.append("console")
        if self.port is not None:
            carriers.append("port")
        if self.share is not None and self.share.mounted:
            carriers.append("share")
        return carriers

    def list_capabilities(self) -> "list[str]":
        """The names of all methods that may be called, and `streams` where something can carry them."""
        if not self._capabilities:
            self._capabilities = [name for name in sorted(dispatch.HANDLERS) if self.guard.allows(name)]
        has_line = self.port is not None and not self.port.stays
        has_wire = (
            has_line or (self._sessions is not None and self._sessions.has_bulk) or find_port(BULK_NAME) is not None
        )
        return [*self._capabilities, "streams"] if has_wire else list(self._capabilities)

    def set_heartbeat(self) -> None:
        """Starts the heartbeat at the configured interval, or ends it when that is 0."""
        if self._heartbeat_timer is not None:
            self._heartbeat_timer.cancel()
            self._heartbeat_timer = None
        if self.config["heartbeat_s"]:
            self._heartbeat_timer = self.loop.later(self.config["heartbeat_s"], self._beat)

    # The port

    def _open_port(self) -> bool:
        fd, stays = self._port_fd, False
        if fd is None:
            path = self._port_path or find_port()
            if path is None:
                return False
            try:
                fd, self.transport = open_port(path)
            except OSError as error:
                if self._port_path is None and error.errno in (2, 6, 19):
                    return False  # ENOENT, ENXIO, ENODEV: it went away again
                raise SystemExit("%s cannot be opened: %s" % (path, error.strerror)) from None
            stays = self.transport == "virtio-serial"
        else:
            self.transport = "descriptor"
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)  # it came by inheritance; the commands we run shall not have it
        self._use_port(fd, stays)
        return True

    def _use_port(self, fd: int, stays: bool) -> None:
        port = PortCarrier(self.loop, fd, stays, self._handle_line, self._lose_port, self._hear_host, self.counters)
        self.port = port
        for line in self._unsent:
            port.send(line, STATUS)
        self._unsent = []
        port.start()

    def _listen(self, number: int) -> None:
        from .carriers.vsock import VsockListener

        self.transport = "vsock"
        try:
            self._listener = VsockListener(self.loop, number, self._replace_connection)
        except OSError as error:
            raise SystemExit("vsock port %d cannot be listened on: %s" % (number, error.strerror)) from None

    def _replace_connection(self, fd: int) -> None:
        """A new connection takes the place of the one there was."""
        if self.port is not None:
            self.port.close()
            self._leave_port("a new connection came")
        self.counters["host_connections"] += 1
        self._use_port(fd, False)

    def _lose_port(self, reason: str) -> None:
        self._leave_port(reason)
        if self._listener is not None:
            return
        if self._fixed:
            self._leave()
            return
        self.console.send(wire.encode(message.build("error", "the port was lost: " + reason, {"code": "failed"})))
        self._watch_devices()

    def _leave_port(self, reason: str) -> None:
        lost, self.port = self.port, None
        self._unsent = lost.take_status() if lost is not None else []
        if self._sessions is not None:
            self._sessions.lose_port(reason)

    def _leave(self) -> None:
        """Nobody is left to serve: ends the agent, after the commands it has stopped by that."""
        if self.commands_running:
            self._leaving = True
            self.loop.later(_LEAVE_S, lambda: self.loop.stop(EXIT_OK))
        else:
            self.loop.stop(EXIT_OK)

    def _hear_host(self, connected: bool) -> None:
        if self._sessions is not None:
            self._sessions.hear_host("port", connected)

    def _handle_line(self, line: "bytes | None") -> None:
        self.counters["lines"] += 1
        if line is not None and line[0] == _FRAME and self.port is not None and not self.port.stays:
            self.streams.receive_line(line)
        else:
            self._dispatcher.handle_line(line)

    def _send_answer(self, line: bytes) -> None:
        if self.port is not None:
            self.port.send(line, ANSWER)

    # Devices

    def _watch_devices(self) -> None:
        if self._uevents is None:
            from .uevent import Uevents

            self._uevents = Uevents(self.loop, self._hear_device)
        if self.port is None and not self._fixed:
            self._open_port()  # it may have come before the socket was there

    def _hear_device(self, event: "dict[str, str]") -> None:
        subsystem = event.get("SUBSYSTEM")
        if subsystem in (None, "virtio-ports"):
            if self.port is None and not self._fixed:
                self._open_port()
            if self._sessions is not None:
                self._sessions.find_wire()
        if not self._display_was_up and subsystem in (None, "drm", "graphics"):
            self._say_display_up()

    def _say_display_up(self) -> None:
        from .display import find_display

        display = find_display()
        if display is not None:
            self._display_was_up = True
            self.emit("graphics", "display up", display)

    # What the agent says of its own accord

    def build_ready(self) -> "dict[str, Any]":
        """The message `agent ready`, under the same id on whichever carrier it goes out."""
        from . import network

        details = {
            "version": VERSION,
            "os": system.read_os_name(),
            "kernel": system.read_kernel(),
            "hostname": system.read_hostname(),
            "carriers": self.list_carriers(),
            "uptime_s": system.read_uptime_s(),
            "addresses": network.list_addresses(),
            "capabilities": self.list_capabilities(),
        }
        ready = message.build("status", "agent ready", details)
        self._ready_id = ready["id"] = self._ready_id or ready["id"]
        return ready

    def _say_ready(self) -> None:
        ready = self.build_ready()
        self.console.send(wire.encode(ready))
        self.send_message(ready)

    def _start_the_rest(self) -> None:
        self.set_heartbeat()
        try:
            self._watch_devices()
        except OSError as error:
            self.report("failed", "devices cannot be watched: %s" % error.strerror)  # a container, for one
        self._say_display_up()
        self.events.listen()
        if self.config["share"] is not None:
            from .carriers.share import ShareCarrier

            self.share = ShareCarrier(self, self.config["share"])

    def _beat(self) -> None:
        self._heartbeats += 1
        details = {
            "sequence": self._heartbeats,
            "uptime_s": system.read_uptime_s(),
            "load_1": system.read_load()[0],
            "memory_available_bytes": system.read_memory()["MemAvailable"],
        }
        self.send_message(message.build("heartbeat", "alive", details), HEARTBEAT)
        self.set_heartbeat()

    def _report_exception(self, error: Exception) -> None:
        self.counters["exceptions"] += 1
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = ""
        if frame is not None:
            where = " (%s:%d)" % (os.path.basename(frame.tb_frame.f_code.co_filename), frame.tb_lineno)
        self.report("failed", "the agent caught %s: %s%s" % (type(error).__name__, str(error)[:400], where))


def _encode_notification(envelope: "dict[str, Any]") -> bytes:
    return wire.encode({"jsonrpc": "2.0", "method": "message", "params": envelope})


def _parse_arguments(arguments: "list[str]") -> "dict[str, str]":
    options = {}
    words = iter(arguments)
    for word in words:
        if word not in ("--port", "--fd", "--vsock", "--config", "--console"):
            raise config.ConfigError("%s is not an option; %s" % (word, USAGE))
        value = next(words, None)
        if not value or (word in ("--fd", "--vsock") and not (value.isascii() and value.isdigit())):
            raise config.ConfigError("%s needs a value; %s" % (word, USAGE))
        options[word] = value
    return options


def _hold_standard_descriptors() -> None:
    """Makes sure 0, 1 and 2 are open, so that no port or pipe is ever mistaken for them."""
    fd = os.open("/dev/null", os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


def _say_fault(text: str, console: str) -> None:
    """One line on standard error and on the console: why the agent does not run."""
    line = ("unhinged-agent: %s\n" % text).encode("utf-8", "replace")
    os.write(2, line)
    try:
        # When standard error is the console already, once is enough.
        if os.fstat(2).st_rdev == os.stat(console).st_rdev and os.isatty(2):
            return
        fd = os.open(console, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_APPEND)
    except OSError:
        return  # no console: standard error has it
    try:
        os.write(fd, line)
    except OSError:
        pass  # nobody drains the console: standard error has it
    os.close(fd)


def main(arguments: "list[str]") -> int:
    """Runs the agent with these command-line arguments; gives its exit code (0 ended, 1 no port, 2 wrong settings)."""
    import _signal  # type: ignore[import-not-found] # `signal` itself imports `enum`, which is slow

    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    _hold_standard_descriptors()
    console = "/dev/console"
    try:
        options = _parse_arguments(arguments)
        console = options.get("--console", console)
        settings = config.load(options.get("--config", config.PATH), "--config" in options)
        if "--console" in options:
            settings["console"] = console
        console = settings["console"] or "/dev/null"
        fd, vsock = (int(options[name]) if name in options else None for name in ("--fd", "--vsock"))
        agent = Agent(settings, options.get("--port"), fd, vsock)
        os.chdir("/")
        return agent.run()
    except config.ConfigError as error:
        _say_fault(str(error), console)
        return EXIT_USAGE
    except SystemExit as error:
        _say_fault(str(error), console)
        return EXIT_ERROR
    except OSError as error:
        _say_fault(str(error), console)
        return EXIT_ERROR
