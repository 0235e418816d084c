"""`hello`, `cancel`, `job_list` and `job_cancel` (guest floor): the session and what runs in it."""

from time import monotonic

from .. import dispatch
from .agent import get_agent_info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call

_DIGITS = frozenset("0123456789abcdef")


def hello(call: "Call", params: "dict[str, Any]") -> None:
    sessions = call.agent.sessions
    sessions.begin(params["session"])
    call.done(get_agent_info(call, {}))
    sessions.streams.say_hello()


def cancel(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    call.agent.cancel_request(params["id"])
    return {}


def job_list(call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    now = monotonic()
    jobs = call.agent.jobs.list()
    return {
        "jobs": [{"job": job.id, "method": job.method, "seconds": round(now - job.begin, 3)} for job in jobs],
    }


def job_cancel(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    call.agent.jobs.get(params["job"]).cancel()
    return {}


def _check_session(value: object) -> "str | None":
    if isinstance(value, str) and len(value) == 32 and _DIGITS.issuperset(value):
        return None
    return "is not 32 hexadecimal digits in lower case"


def _check_id(value: object) -> "str | None":
    return None if dispatch.is_id(value) else "is not the id of a request"


def check_job(value: object) -> "str | None":
    return None if type(value) is int and 1 <= value <= 2**53 - 1 else "is not the number of a job"


METHODS: "dict[str, tuple[Any, ...]]" = {
    "hello": (hello, {"session": (True, _check_session)}),
    "cancel": (cancel, {"id": (True, _check_id)}),
    "job_list": (job_list, {}),
    "job_cancel": (job_cancel, {"job": (True, check_job)}),
}
