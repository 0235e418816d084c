"""What the configuration lets a host do (guest floor); made by `main`, asked by `dispatch`, `commands` and handlers.

Nothing here costs anything while the configuration has no rules: the parts are imported for a rule only.
"""

from time import monotonic

from . import config, dispatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .audit import AuditLog
    from .identity import Identity
    from .main import Agent
    from .pathpolicy import Policy
    from .ratelimit import RateLimit

# Without these there is no session, and work could not even be stopped.
_ALWAYS = frozenset(("hello", "ping", "get_agent_info", "cancel", "job_list", "job_cancel"))
# Beginning anew, and stopping what runs, is never put off.
_UNLIMITED = frozenset(("hello", "cancel", "job_cancel"))
# The method whose rules hold for a message command as well; any other verb has rules under its own name.
_VERBS = {
    "shutdown": "shutdown",
    "restart": "reboot",
    "start service": "service_start",
    "stop service": "service_stop",
}
# What a program may be told by the environment when only some programs are allowed.
_HARMLESS = ["LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLUMNS", "LINES", "NO_COLOR"]


class Guard:
    """The rules of one configuration.

    Attributes:
        active: Whether calls have to be asked about at all.
        identity: The user of `run_as`, None for the agent's own.
        flows: How many transfers run; counted by `flows`.
        watched: How many directories are watched; counted by `watcher`.

    Raises:
        ConfigError: `run_as` cannot be had.
    """

    def __init__(self, agent: "Agent", settings: "dict[str, Any]") -> None:
        self._agent = agent
        self._allow = settings["method_allow"]
        self._deny = settings["method_deny"]
        self._settings = settings
        self._rate: "RateLimit | None" = None
        self._audit: "AuditLog | None" = None
        self._paths: "Policy | None" = None
        self._frozen = False
        self.flows = self.watched = 0
        self.identity: "Identity | None" = None
        if settings["calls_per_second"]:
            from .ratelimit import RateLimit

            self._rate = RateLimit(settings["calls_per_second"], settings["calls_burst"])
        if settings["audit_log"] is not None:
            from .audit import AuditLog

            self._audit = AuditLog(
                agent.loop,
                settings["audit_log"],
                settings["audit_log_bytes"],
                settings["audit_log_files"],
                lambda text: agent.report("failed", text),
            )
        if settings["run_as"] is not None:
            self.identity = _find_identity(settings["run_as"])
            _load_modules()
        if settings["read_paths"] is not None or settings["write_paths"] is not None or settings["denied_paths"]:
            self.paths  # noqa: B018 # from now on, not from the first call on, it is known what is denied
        self._has_rules = self.active = bool(self._rate or self._audit or self._allow is not None or self._deny)

    def hold(self, frozen: bool) -> None:
        """While the file systems are frozen nothing is let through that might write, and the audit log waits."""
        self._frozen = frozen
        self.active = frozen or self._has_rules
        if self._audit is not None:
            self._audit.held = frozen
            self._audit.flush()

    @property
    def paths(self) -> "Policy":
        """The rules about paths."""
        if self._paths is None:
            from . import pathpolicy

            self._paths = pathpolicy.build(self._settings)
        return self._paths

    # Calls

    def allows(self, method: str) -> bool:
        """Whether the rules about methods let this one be called."""
        if method in _ALWAYS:
            return True
        return not _matches(method, self._deny) and (self._allow is None or _matches(method, self._allow))

    def admit(self, method: str) -> None:
        """Refuses a call that is not allowed, or one too many.

        Raises:
            CallError: As the call is to be answered.
        """
        if not self.allows(method):
            key = "method_deny" if _matches(method, self._deny) else "method_allow"
            text = "%s is not permitted by %s of the agent's configuration" % (method, key)
            raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": key})
        if self._frozen:
            from . import freezer

            freezer.check_allowed(method)
        if self._rate is not None and method not in _UNLIMITED:
            wait_s = self._rate.take()
            if wait_s:
                text = "too many calls: more than calls_per_second of the agent's configuration"
                raise dispatch.CallError(dispatch.BUSY, text, {"retry_after_s": round(wait_s, 3)})

    def admit_verb(self, verb: str) -> None:
        """As `admit`, for a message command from whichever carrier; also needs the method `message`."""
        for name in ("message", _VERBS.get(verb, verb.replace(" ", "_"))):
            if not self.allows(name):
                text = "%s is not permitted by the agent's configuration" % verb[:64]
                raise dispatch.CallError(dispatch.NOT_PERMITTED, text)
        if self._frozen and verb != "diagnostics":
            raise dispatch.CallError(dispatch.BUSY, "the file systems are frozen")

    def follow(self, method: str, params: "object") -> "Callable[[dict[str, Any]], None] | None":
        """Gives what takes the answer of this call, to write both into the audit log; None without one."""
        log = self._audit
        if log is None:
            return None
        from . import audit

        begin = monotonic()
        summary = audit.summarise(params)
        session = self._agent.session

        def take(answer: "dict[str, Any]") -> None:
            error = answer.get("error")
            code = error["code"] if error is not None else 0
            log.write(self._agent.session or session, method, summary, code, monotonic() - begin)

        return take

    def record(self, method: str, params: "object", code: int, seconds: float) -> None:
        """Writes something that is not an answer to a call into the audit log."""
        if self._audit is not None:
            from . import audit

            self._audit.write(self._agent.session, method, audit.summarise(params), code, seconds)

    def flush(self) -> None:
        """Writes what the audit log still holds, before the agent ends."""
        if self._audit is not None:
            self._audit.flush()

    # Commands

    def check_program(self, path: str, environment: "dict[str, str] | None") -> None:
        """Refuses a program, or an environment for it, that the rules do not allow.

        Args:
            path: The program as it will be executed, after the search in PATH.
            environment: What the host adds to the agent's own.

        Raises:
            CallError: As the call is to be answered.
        """
        programs = self._settings["command_allow"]
        if programs is None and self._settings["command_env"] is None:
            return
        if programs is not None and path not in programs:
            text = "%s is not permitted by command_allow of the agent's configuration" % path[:4096]
            raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": "command_allow"})
        names = self._settings["command_env"]
        names = _HARMLESS if names is None else names
        for name in environment or {}:
            if not _matches(name, names):
                text = "%s is not permitted by command_env of the agent's configuration" % name[:256]
                raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": "command_env"})

    def limit_time(self, timeout_s: float) -> float:
        """The time limit of a command that asked for this one (0 for none)."""
        greatest: float = self._settings["exec_max_timeout_s"]
        return min(timeout_s, greatest) if timeout_s and greatest else timeout_s or greatest

    def choose_user(self, user: "str | None") -> "str | None":
        """As whom a command runs that asked for `user`; None for the agent's own.

        Raises:
            CallError: `run_as` says otherwise.
        """
        own: "str | None" = self._settings["run_as"]
        if own is None or user is None or user == own:
            return own or user
        text = "commands run as %s only, by run_as of the agent's configuration" % own
        raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": "run_as"})

    # Files

    def as_user(self) -> "Identity | _Own":
        """A context in which files are touched as the user of `run_as`."""
        return _OWN if self.identity is None else self.identity

    def run_as(self, work: "Generator[Any, Any, Any]") -> "Generator[Any, Any, Any]":
        """Gives the same work, each step of which is done as the user of `run_as`."""
        return work if self.identity is None else _run_as(self.identity, work)


class _Own:
    """The context that changes nothing."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_error: object) -> None:
        pass


_OWN = _Own()


def _run_as(identity: "Identity", work: "Generator[Any, Any, Any]") -> "Generator[Any, Any, Any]":
    value = error = None
    while True:
        with identity:
            try:
                wish = work.send(value) if error is None else work.throw(error)
            except StopIteration as end:
                return end.value
        value = error = None
        try:
            value = yield wish
        except GeneratorExit:
            with identity:
                work.close()
            raise
        except Exception as thrown:
            error = thrown


def _matches(name: str, patterns: "list[str]") -> bool:
    """Whether `name` is one of the names, or begins with one of those that end in `*`."""
    return any(name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])) for pattern in patterns)


def _load_modules() -> None:
    """Imports what work on files imports as it goes: by then the agent may not be able to read it."""
    from . import remover  # noqa: F401
    from .handlers import file, transfer, watch  # noqa: F401

    for name in ("binascii", "ctypes", "fcntl"):
        try:
            __import__(name)
        except (ImportError, MemoryError):
            continue  # what needs it says so


def _find_identity(name: str) -> "Identity":
    import os

    from .identity import Identity

    try:
        identity = Identity(name)
    except LookupError:
        raise config.ConfigError("run_as: there is no user %s" % name) from None
    if not identity.is_own and os.geteuid() != 0:
        raise config.ConfigError("run_as: the agent has to be root to work as %s" % name)
    return identity
