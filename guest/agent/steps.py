"""Runs work of several steps without blocking the loop (guest floor); used by handlers that run programs one by one.

The work is a generator. It yields a `Run` and gets the `process.Result` of that program, yields a function and gets
what that returns in a process of its own, yields a number and goes on after so many seconds, or yields None and lets
others have their turn. What it returns is the result.
"""

from time import monotonic

from . import dispatch, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .dispatch import Call
    from .jobs import Job
    from .loop import Loop, Timer
    from .transcript import Transcript

    Work = Generator[Any, Any, Any]

_TURN_S = 0.01
# What is done in a process of its own may wait for the kernel, but not for ever.
_FORKED_S = 30.0


class Run:
    """A program to run.

    Args:
        secret: What it reads on standard input; it never goes into an argument or into a message.
        limit: How many bytes of each output are kept.
        environment: Variables over the agent's own.
        transcript: Where its output goes instead of into the result.
        start: What it is to be started with instead, as `Spoken` takes it.
        stoppable: Whether a cancellation ends it. One that must not be cut in half is waited for.
    """

    def __init__(
        self,
        argv: "list[str]",
        secret: bytes = b"",
        timeout_s: float = 60.0,
        limit: int = 65536,
        environment: "dict[str, str] | None" = None,
        transcript: "Transcript | None" = None,
        stoppable: bool = True,
        start: "dict[str, Any] | None" = None,
    ) -> None:
        self.argv = argv
        self.secret = secret
        self.timeout_s = timeout_s
        self.limit = limit
        self.environment = environment
        self.transcript = transcript
        self.stoppable = stoppable
        self.start = start


class Steps:
    """The work under way; `done(value, error)` is called once, when it has ended."""

    def __init__(self, loop: "Loop", work: "Work", done: "Callable[..., Any]") -> None:
        self._loop = loop
        self._work = work
        self._done = done
        self._stop: "Callable[[], Any] | None" = None
        self._timer: "Timer | None" = None
        self._cancelled = False
        self._ended = False
        loop.soon(self._begin)

    def cancel(self) -> None:
        """Ends the program that runs and throws `CallError` (cancelled) into the work, which may clear up."""
        if self._ended:
            return
        self._cancelled = True
        if self._stop is not None:
            self._stop()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.soon(self._begin)

    def _begin(self) -> None:
        self._go_on(None, None)

    def _go_on(self, value: "Any", error: "Exception | None") -> None:
        until = monotonic() + _TURN_S
        self._stop = self._timer = None
        try:
            while True:
                if self._cancelled:
                    self._cancelled = False  # once is enough: the work may go on to clear up
                    error = dispatch.CallError(dispatch.CANCELLED, "it was cancelled")
                wish = self._work.send(value) if error is None else self._work.throw(error)
                value = error = None
                if isinstance(wish, Run) or callable(wish):
                    try:
                        self._start(wish)
                    except OSError as failure:
                        error = failure
                    else:
                        return
                elif wish is not None:
                    self._timer = self._loop.later(wish, self._begin)
                    return
                elif monotonic() > until:
                    self._loop.soon(self._begin)
                    return
        except StopIteration as end:
            self._end(end.value, None)
        except Exception as failure:
            self._end(None, failure)

    def _start(self, run: "Run | Callable[[], Any]") -> None:
        if not isinstance(run, Run):
            from .forked import Forked

            self._stop = Forked(self._loop, run, self._go_on, _FORKED_S).kill
            return

        def ended(result: "process.Result") -> None:
            self._go_on(result, None)

        environment = process.build_environment(run.environment)
        child: "process.Child"
        if run.transcript is None:
            child = process.Process(
                self._loop,
                run.argv,
                ended,
                environment,
                stdin=run.secret,
                timeout_s=run.timeout_s,
                limit=run.limit,
            )
        else:
            from .transcript import Spoken

            start = {"argv": run.argv, "environment": environment, "timeout_s": run.timeout_s}
            child = Spoken(self._loop, ended, run.transcript, run.start or start)
        self._stop = child.kill if run.stoppable else _leave

    def _end(self, value: "Any", error: "Exception | None") -> None:
        self._ended = True
        self._done(value, error)


def answer(call: "Call", work: "Work") -> None:
    """Answers the call with what the work returns, or with what it raises."""

    def done(value: "Any", error: "Exception | None") -> None:
        if error is None:
            call.done(value)
        else:
            fail(call, error)

    call.on_cancel = Steps(call.agent.loop, work, done).cancel


def follow(job: "Job", loop: "Loop", work: "Work") -> None:
    """Ends the job with what the work returns, or with what it raises."""

    def done(value: "Any", error: "Exception | None") -> None:
        if error is None:
            job.done(value)
        else:
            fail(job, error)

    job.on_cancel = Steps(loop, work, done).cancel


def _leave() -> None:
    """What must not be cut in half goes on to its end, and is cancelled after that."""


def fail(call: "Call | Job", error: Exception) -> None:
    """Answers the call, or ends the job, with the error that stands for the exception."""
    refusal = error if isinstance(error, dispatch.CallError) else None
    if isinstance(error, OSError):
        refusal = refuse(error)
    if refusal is None:
        call.fail(dispatch.INTERNAL_ERROR, "%s: %s" % (type(error).__name__, error))
        raise error  # a fault of the agent itself: the loop reports it
    call.fail(refusal.code, str(refusal), refusal.data)


def refuse(error: OSError, path: "str | None" = None) -> "dispatch.CallError":
    """The error of a call that stands for what the kernel said."""
    import errno

    codes = {
        errno.ENOENT: dispatch.NOT_FOUND,
        errno.ENOTDIR: dispatch.NOT_FOUND,
        errno.ESRCH: dispatch.NOT_FOUND,
        errno.EPERM: dispatch.NOT_PERMITTED,
        errno.EACCES: dispatch.NOT_PERMITTED,
        errno.EROFS: dispatch.NOT_PERMITTED,
        errno.EBUSY: dispatch.BUSY,
        errno.EEXIST: dispatch.EXISTS,
        errno.EOPNOTSUPP: dispatch.NOT_SUPPORTED,
        errno.ENOTTY: dispatch.NOT_SUPPORTED,
    }
    number = error.errno or 0
    data = {"errno": errno.errorcode.get(number, str(number))}
    name = path or error.filename
    if isinstance(name, str):
        data["path"] = name[:4096]
    text = "%s: %s" % (name, error.strerror) if name else str(error.strerror or error)
    return dispatch.CallError(codes.get(number, dispatch.FAILED), text, data)


def check_success(result: "process.Result", what: str) -> None:
    """Raises what a program that failed said, in one sentence."""
    if result.timed_out:
        raise dispatch.CallError(dispatch.FAILED, "%s took too long and was ended" % what)
    if result.exit_code != 0:
        said = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
        how = "exit code %s" % result.exit_code if result.signal is None else "signal %d" % result.signal
        raise dispatch.CallError(dispatch.FAILED, "%s: %s" % (what, said[-400:] or how))
