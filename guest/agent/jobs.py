"""Jobs: work that outlives the answer of the call that began it (guest floor). `docs/protocol.md`, section Sessions.

Made by `main` when a session begins; started by handlers like this:

    job = call.start_job()          # raises the CallError to answer with: no session, or too many jobs
    job.on_cancel = stop_the_work   # called once, when the host gives up or the session ends
    return {"job": job.id, ...}     # the answer; the end of the job is told after it, however early it comes
    ...
    job.done({...})                 # or job.fail(code, message, data)

What comes after the first `done` or `fail` is ignored. After `on_cancel` the handler ends the job as soon as it can,
normally by `job.fail(dispatch.CANCELLED, "cancelled")`; a job without `on_cancel` is ended for it. If the call fails
after `start_job`, the job is forgotten without a word.
"""

from time import monotonic

from . import dispatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .dispatch import Call

MAX_JOBS = 256


class Job:
    """One job under way.

    Attributes:
        id: Its number, used once.
        on_cancel: Called when the host gives the job up.
        on_hangup: Called instead of `on_cancel` when the session ends, where that is to be another thing.
        target: Whatever other calls about this job need to find; None when it is none of theirs.
    """

    def __init__(self, jobs: "Jobs", id_: int, method: str) -> None:
        self.id = id_
        self.method = method
        self.begin = monotonic()
        self.on_cancel: "Callable[[], Any] | None" = None
        self.on_hangup: "Callable[[], Any] | None" = None
        self.target: "Any" = None
        self.cancelled = False
        self._jobs = jobs
        self._answered = False
        self._outcome: "dict[str, Any] | None" = None

    def done(self, result: "dict[str, Any]") -> None:
        self._end({"job": self.id, "result": result})

    def fail(self, code: int, message: str, data: "dict[str, Any] | None" = None) -> None:
        self._end({"job": self.id, "error": dispatch.build_error_object(code, message, data)})

    def cancel(self) -> None:
        """Stops the work because the host gave it up."""
        self._stop(self.on_cancel)

    def hang_up(self) -> None:
        """Stops the work because the session has ended; nobody is told of its end any more."""
        self._stop(self.on_hangup or self.on_cancel)

    def answered(self) -> None:
        """The call has been answered: from now on the end of the job may be told."""
        self._answered = True
        if self._outcome is not None:
            self._jobs.tell(self, self._outcome)

    def _stop(self, stop: "Callable[[], Any] | None") -> None:
        if self.cancelled or self._outcome is not None:
            return
        self.cancelled = True
        if stop is None:
            self.fail(dispatch.CANCELLED, "cancelled")
        else:
            stop()

    def _end(self, outcome: "dict[str, Any]") -> None:
        if self._outcome is None:
            self._outcome = outcome
            if self._answered:
                self._jobs.tell(self, outcome)


class Jobs:
    """The jobs of the session.

    Args:
        notify: Takes the parameters of a `job_done`.
    """

    def __init__(self, notify: "Callable[[dict[str, Any]], Any]") -> None:
        self._notify = notify
        self._running: "dict[int, Job]" = {}
        self._count = 0

    def start(self, call: "Call") -> Job:
        """Begins a job for this call.

        Raises:
            CallError: There are too many.
        """
        if len(self._running) >= MAX_JOBS:
            raise dispatch.CallError(dispatch.BUSY, "%d jobs are running already" % len(self._running))
        self._count += 1
        job = self._running[self._count] = Job(self, self._count, call.method)
        return job

    def find(self, id_: int) -> "Job | None":
        return self._running.get(id_)

    def get(self, id_: int) -> Job:
        """The running job with this number.

        Raises:
            CallError: There is none.
        """
        job = self._running.get(id_)
        if job is None:
            raise dispatch.CallError(dispatch.NOT_FOUND, "there is no job %d" % id_)
        return job

    def list(self) -> "list[Job]":
        return list(self._running.values())

    def forget(self, job: Job) -> None:
        self._running.pop(job.id, None)

    def tell(self, job: Job, outcome: "dict[str, Any]") -> None:
        if self._running.pop(job.id, None) is not None:
            self._notify(outcome)

    def hang_up(self) -> None:
        """Ends all of them, because the session has ended: nobody is told."""
        jobs, self._running = self._running, {}
        for job in jobs.values():
            job.hang_up()
