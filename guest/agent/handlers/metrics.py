"""`get_metrics` and `metrics_watch` (guest floor)."""

from .. import metrics, parameters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call
    from ..jobs import Job
    from ..loop import Timer
    from ..main import Agent


def get_metrics(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    return metrics.read_metrics()


def metrics_watch(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    job = call.start_job()
    _Watch(call.agent, job, params["interval_s"], params.get("count"))
    return {"job": job.id}


class _Watch:
    """Sends metrics at an interval. Where the host does not keep up, what it missed is left out, not kept."""

    def __init__(self, agent: "Agent", job: "Job", interval_s: float, count: "int | None") -> None:
        self._agent = agent
        self._job = job
        self._interval_s = interval_s
        self._count = count
        self._sent = 0
        self._timer: "Timer" = agent.loop.later(0, self._send)
        job.on_cancel = self._stop

    def _send(self) -> None:
        self._sent += 1
        last = self._count is not None and self._sent >= self._count
        if not last:
            self._timer = self._agent.loop.later(self._interval_s, self._send)
        values = {"job": self._job.id, "sequence": self._sent, "metrics": metrics.read_metrics()}
        self._agent.notify("metrics", values, keep=False)
        if last:
            self._job.done({"sent": self._sent})

    def _stop(self) -> None:
        from .. import dispatch

        self._timer.cancel()
        self._job.fail(dispatch.CANCELLED, "cancelled")


METHODS: "dict[str, tuple[Any, ...]]" = {
    "get_metrics": (get_metrics, {}),
    "metrics_watch": (
        metrics_watch,
        {
            "interval_s": (True, parameters.number(0.1, 3600)),
            "count": (False, parameters.integer(1, 2**31 - 1)),
        },
    ),
}
