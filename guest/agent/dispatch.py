"""JSON-RPC 2.0: requests, notifications, batches and errors (guest floor); fed with lines by `main`.

A handler is found by name, imported when it is first called, and answers at once or later. Nothing that the host
sends ends the agent: what a handler lets escape becomes the error -32603, and a line on the console.
"""

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .jobs import Job
    from .main import Agent

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
LINE_TOO_LONG = -32001
NOT_FOUND = -32002
NOT_PERMITTED = -32003
BUSY = -32004
FAILED = -32005
CANCELLED = -32006
TOO_LARGE = -32007
EXISTS = -32008
NOT_SUPPORTED = -32009
CORRUPTED = -32010

MAX_BATCH = 1000
_MAX_SAFE_INTEGER = 2**53 - 1

# method: the module of handlers/ that has it
HANDLERS = {
    "ping": "agent",
    "get_agent_info": "agent",
    "hello": "session",
    "cancel": "session",
    "job_list": "session",
    "job_cancel": "session",
    "get_system_info": "system",
    "get_network_info": "system",
    "get_disk_usage": "system",
    "get_time": "machine",
    "set_time": "machine",
    "set_hostname": "machine",
    "get_identity": "renewal",
    "renew_identity": "renewal",
    "cpu_list": "machine",
    "cpu_set_online": "machine",
    "memory_list": "machine",
    "memory_set_online": "machine",
    "process_list": "processes",
    "process_signal": "processes",
    "service_list": "services",
    "service_status": "services",
    "service_start": "services",
    "service_stop": "services",
    "service_restart": "services",
    "log_follow": "logs",
    "cloud_init_apply": "cloud_init",
    "filesystem_freeze": "filesystem",
    "filesystem_thaw": "filesystem",
    "filesystem_status": "filesystem",
    "filesystem_trim": "filesystem",
    "get_metrics": "metrics",
    "metrics_watch": "metrics",
    "package_list": "packages",
    "package_install": "packages",
    "package_remove": "packages",
    "package_update": "packages",
    "user_list": "users",
    "user_create": "users",
    "user_delete": "users",
    "user_set_password": "users",
    "ssh_key_list": "ssh",
    "ssh_key_add": "ssh",
    "ssh_key_remove": "ssh",
    "file_read": "file",
    "file_write": "file",
    "file_stat": "file",
    "file_list": "file",
    "file_mkdir": "file",
    "file_rename": "file",
    "file_remove": "file",
    "file_watch": "watch",
    "file_put": "transfer",
    "file_get": "transfer",
    "exec_command": "command",
    "exec_start": "execution",
    "exec_signal": "execution",
    "exec_resize": "execution",
    "shutdown": "power",
    "reboot": "power",
    "message": "message",
    "share_changed": "message",
}


class CallError(Exception):
    """A call that is answered with an error."""

    def __init__(self, code: int, message: str, data: "dict[str, Any] | None" = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class Call:
    """One request under way. A handler ends it with exactly one `done` or `fail`, or by what it returns or raises.

    Attributes:
        on_cancel: Set by a handler that can stop what it has begun. Called once, when the host gives the call up or its
            session ends; the handler then ends the call as soon as it can, with the error CANCELLED.
        answered: Whether the call has ended; what is said after that goes nowhere.
    """

    __slots__ = (
        "_job", "_reply", "_running", "_when_sent", "agent", "answered", "id", "method", "notification", "on_cancel",
        "record",
    )  # fmt: skip

    def __init__(
        self,
        agent: "Agent",
        request: "dict[str, Any]",
        reply: "Callable[..., Any]",
        when_sent: "Callable[..., Any] | None" = None,
    ) -> None:
        self.agent = agent
        self.id = request.get("id")
        self.method = request["method"]
        self.notification = "id" not in request
        self.on_cancel: "Callable[[], Any] | None" = None
        self.answered = False
        # Takes the answer into the audit log, where there is one.
        self.record: "Callable[[dict[str, Any]], Any] | None" = None
        self._reply = reply
        # Calls back when the answer has been sent, where that is not at once.
        self._when_sent = when_sent
        self._job: "Job | None" = None
        self._running: "list[Call] | None" = None

    def done(self, result: "dict[str, Any]") -> None:
        if not self.answered:
            self._end({"jsonrpc": "2.0", "id": self.id, "result": result})
            if self._job is not None:
                if self._when_sent is None:
                    self._job.answered()
                else:
                    self._when_sent(self._job.answered)

    def fail(self, code: int, message: str, data: "dict[str, Any] | None" = None) -> None:
        if not self.answered:
            if self._job is not None:
                self.agent.jobs.forget(self._job)
            self._end(_build_error(self.id, code, message, data))

    def start_job(self) -> "Job":
        """Begins work that outlives the answer; see `jobs`.

        Raises:
            CallError: There is no session, or there are too many jobs.
        """
        if self.agent.session is None:
            raise CallError(INVALID_REQUEST, "there is no session: begin with hello")
        self._job = self.agent.jobs.start(self)
        return self._job

    def cancel(self) -> None:
        """Stops the call if it can be stopped."""
        stop, self.on_cancel = self.on_cancel, None
        if stop is not None and not self.answered:
            stop()

    def run_on(self, running: "list[Call]") -> None:
        """The handler has returned without an answer: the call is one of those that are `running` until it has."""
        if not self.answered:
            self._running = running
            running.append(self)

    def _end(self, answer: "dict[str, Any]") -> None:
        if self._running is not None:
            self._running.remove(self)
            self._running = None
        if self.record is not None:
            self.record(answer)
        self._reply(None if self.notification else answer)
        self.answered = True


class Dispatcher:
    """Turns lines into calls and calls into lines.

    Args:
        agent: Handed to every handler.
        send: Takes the line of an answer.
        on_error: Told of exceptions that a handler let escape.
    """

    def __init__(self, agent: "Agent", send: "Callable[..., Any]", on_error: "Callable[..., Any]") -> None:
        self._agent = agent
        self._send = send
        self._on_error = on_error
        self._methods: "dict[str, tuple[Any, ...]]" = {}
        self._running: "list[Call]" = []

    def cancel(self, id_: object) -> None:
        """Stops the requests with this id that still run and can be stopped."""
        for call in list(self._running):
            if not call.notification and call.id == id_:
                call.cancel()

    def cancel_all(self) -> None:
        """Stops everything that still runs and can be stopped."""
        for call in list(self._running):
            call.cancel()

    def handle_line(self, line: "bytes | None") -> None:
        """Handles one line, None for one that was too long."""
        if line is None:
            message = "a line is at most %d bytes" % wire.MAX_LINE_BYTES
            self._send_answer(_build_error(None, LINE_TOO_LONG, message))
            return
        try:
            value = wire.decode(line)
        except wire.WireError as error:
            self._send_answer(_build_error(None, PARSE_ERROR, str(error)))
            return
        if isinstance(value, list):
            self._handle_batch(value)
        else:
            self._handle_request(value, self._send_answer)

    def _handle_batch(self, requests: "list[Any]") -> None:
        if not 1 <= len(requests) <= MAX_BATCH:
            message = "a batch holds 1 to %d requests" % MAX_BATCH
            self._send_answer(_build_error(None, INVALID_REQUEST, message))
            return
        answers: "list[Any]" = []
        waiting = [len(requests)]
        followers: "list[Callable[[], Any]]" = []

        def collect(answer: "dict[str, Any] | None") -> None:
            if answer is not None:
                answers.append(answer)
            waiting[0] -= 1
            if not waiting[0]:
                if answers:
                    self._send(_encode_batch(answers))
                for follower in followers:
                    self._agent.loop.soon(follower)

        def follow(callback: "Callable[[], Any]") -> None:
            # The end of a job must not overtake the answer that names it, which waits for the slowest of the batch.
            if waiting[0]:
                followers.append(callback)
            else:
                callback()

        for request in requests:
            self._handle_request(request, collect, follow)

    def _handle_request(
        self, request: "Any", reply: "Callable[..., Any]", when_sent: "Callable[..., Any] | None" = None
    ) -> None:
        fault = _find_fault(request)
        if fault is not None:
            reply(_build_error(_id_of(request), INVALID_REQUEST, fault))
            return
        call = Call(self._agent, request, reply, when_sent)
        params = request.get("params")
        guard = self._agent.guard
        try:
            if guard.active:
                call.record = guard.follow(call.method, params)
                guard.admit(call.method)
            function, parameters = self._find_method(call.method)
            params = {} if params is None else params
            if params or parameters:
                _check_params(params, parameters)
            result = function(call, params)
            if result is None:
                call.run_on(self._running)
            else:
                call.done(result)
        except CallError as error:
            call.fail(error.code, str(error), error.data)
        except Exception as error:
            self._on_error(error)
            call.fail(INTERNAL_ERROR, "%s: %s" % (type(error).__name__, error))

    def _find_method(self, name: str) -> "tuple[Any, ...]":
        method = self._methods.get(name)
        if method is None:
            module = HANDLERS.get(name)
            if module is None:
                raise CallError(METHOD_NOT_FOUND, "there is no method %s" % name[:64])
            handlers = __import__(__package__ + ".handlers." + module, fromlist=("METHODS",))
            self._methods.update(handlers.METHODS)
            method = self._methods[name]
        return method

    def _send_answer(self, answer: "dict[str, Any] | None") -> None:
        if answer is not None:
            self._send(_encode_answer(answer))


def _encode_answer(answer: "dict[str, Any]") -> bytes:
    line = wire.encode(answer)
    if len(line) > wire.MAX_ANSWER_BYTES:
        message = "the answer has %d bytes, more than the %d of a line" % (len(line), wire.MAX_ANSWER_BYTES)
        line = wire.encode(_build_error(answer["id"], FAILED, message))
    return line


def _encode_batch(answers: "list[Any]") -> bytes:
    """A batch is answered in one line; an answer that no longer fits on it becomes an error."""
    room = wire.MAX_ANSWER_BYTES - len(answers) * 256 - 3  # so much that each of them has room for its error
    parts = []
    for answer in answers:
        part = wire.encode(answer)[:-1]
        if len(part) > 256:
            room -= len(part)
            if room < 0:
                room += len(part)
                text = "the answers of this batch do not fit on a line"
                part = wire.encode(_build_error(answer["id"], FAILED, text))[:-1]
        parts.append(part)
    return b"[" + b",".join(parts) + b"]\n"


def _build_error(id_: "object", code: int, message: str, data: "dict[str, Any] | None" = None) -> "dict[str, Any]":
    return {"jsonrpc": "2.0", "id": id_, "error": build_error_object(code, message, data)}


def build_error_object(code: int, message: str, data: "dict[str, Any] | None" = None) -> "dict[str, Any]":
    error: "dict[str, Any]" = {"code": code, "message": message[:1024]}
    if data is not None:
        error["data"] = data
    return error


def _id_of(request: "object") -> "object":
    """The id to answer under: null when there is none that can be given back."""
    id_ = request.get("id") if isinstance(request, dict) else None
    return id_ if is_id(id_) else None


def is_id(value: object) -> bool:
    if isinstance(value, str):
        return 1 <= len(value) <= 128 and (value.isascii() or _is_text(value))
    return value is None or (type(value) is int and -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER)


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False  # a lone surrogate: it could not be given back unchanged
    return True


def _find_fault(request: "object") -> "str | None":
    if not isinstance(request, dict):
        return "a request is an object"
    if request.get("jsonrpc") != "2.0":
        return 'jsonrpc is not "2.0"'
    method = request.get("method")
    if not isinstance(method, str) or not 1 <= len(method) <= 64:
        return "method is not a string of 1 to 64 characters"
    if "id" in request and not is_id(request["id"]):
        return "id is not null, a string of 1 to 128 characters or an integer of at most 53 bits"
    for key in request:
        if key not in ("jsonrpc", "method", "params", "id"):
            return "%s is not a key of a request" % key[:64]
    return None


def _check_params(params: "object", parameters: "dict[str, Any]") -> None:
    if not isinstance(params, dict):
        raise CallError(INVALID_PARAMS, "params is an object: parameters go by name")
    for key, value in params.items():
        if key not in parameters:
            raise CallError(INVALID_PARAMS, "%s is not a parameter" % key[:64], {"key": key[:64]})
        reason = parameters[key][1](value)
        if reason is not None:
            raise CallError(INVALID_PARAMS, "%s %s" % (key, reason), {"key": key})
    for key, (required, _) in parameters.items():
        if required and key not in params:
            raise CallError(INVALID_PARAMS, "%s is missing" % key, {"key": key})
