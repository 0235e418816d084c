"""`exec_start`, `exec_signal` and `exec_resize` (guest floor): programs with streams, which outlive their call."""

import _signal  # type: ignore[import-not-found] # `signal` itself imports `enum`, which is slow

from .. import dispatch, execution, parameters, process
from ..streams import check_number
from .command import PARAMETERS, build_end, build_refusal, count_command, prepare
from .session import check_job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call

_DEFAULT_TERM = "xterm-256color"
_TERM_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")


def exec_start(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    agent = call.agent
    pty = params.get("pty")
    if pty is not None and (params.get("stdout") is None or params.get("stderr") is not None):
        text = "a program with a terminal has stdout, and no stderr beside it"
        raise dispatch.CallError(dispatch.INVALID_PARAMS, text, {"key": "pty"})
    start = prepare(agent, params)
    if pty is not None and "TERM" not in params.get("env", {}):
        start["environment"]["TERM"] = pty.get("term", _DEFAULT_TERM)
    job = call.start_job()

    def done(result: "process.Result") -> None:
        agent.end_command()
        if job.cancelled:
            job.fail(dispatch.CANCELLED, "cancelled", build_end(result))
        else:
            job.done(build_end(result))

    try:
        program = execution.Execution(
            agent.loop,
            start,
            done,
            agent.streams,
            params.get("stdin"),
            params.get("stdout"),
            params.get("stderr"),
            None if pty is None else (pty["rows"], pty["columns"]),
        )
    except OSError as error:
        raise build_refusal(error) from None
    job.target = program
    job.on_cancel = program.kill
    job.on_hangup = program.hang_up
    count_command(agent)
    return {"job": job.id, "pid": program.pid}


def exec_signal(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    number = params["signal"]
    if isinstance(number, str):
        number = _find_signal(number)
    try:
        _find_program(call, params["job"]).signal(number, params.get("group", True))
    except PermissionError:
        raise dispatch.CallError(dispatch.NOT_PERMITTED, "the kernel does not let the agent send this signal") from None
    return {}


def exec_resize(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    if not _find_program(call, params["job"]).resize(params["rows"], params["columns"]):
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this program has no terminal")
    return {}


def _find_program(call: "Call", number: int) -> "execution.Execution":
    target = call.agent.jobs.get(number).target
    if not isinstance(target, execution.Execution):
        raise dispatch.CallError(dispatch.NOT_FOUND, "job %d is no program" % number)
    return target


def _check_stream(value: object) -> "str | None":
    return None if value is None else check_number(value)


def _check_stderr(value: object) -> "str | None":
    return None if value == "stdout" else _check_stream(value)


def _check_pty(value: object) -> "str | None":
    if value is None:
        return None
    if not isinstance(value, dict) or not {"rows", "columns"} <= set(value) <= {"rows", "columns", "term"}:
        return "is not an object with rows, columns and perhaps term"
    if _check_side(value["rows"]) or _check_side(value["columns"]):
        return "has a size that is not two integers from 1 to 65535"
    term = value.get("term", _DEFAULT_TERM)
    if not parameters.is_text(term, 1, 64) or not _TERM_CHARACTERS.issuperset(term):
        return "has a term that is not the name of a terminal"
    return None


def _check_signal(value: object) -> "str | None":
    if type(value) is int and 1 <= value < _signal.NSIG:
        return None
    if isinstance(value, str) and _find_signal(value) is not None:
        return None
    return "is neither the number of a signal nor its name"


def _find_signal(name: str) -> "int | None":
    """The number of the signal `name`, with or without its SIG."""
    # SIG_BLOCK and its like are no signals.
    number = None if "_" in name else getattr(_signal, "SIG" + name.removeprefix("SIG"), None)
    return number if isinstance(number, int) else None


_check_side = parameters.integer(1, 65535)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "exec_start": (
        exec_start,
        {
            **PARAMETERS,
            "stdin": (False, _check_stream),
            "stdout": (False, _check_stream),
            "stderr": (False, _check_stderr),
            "pty": (False, _check_pty),
        },
    ),
    "exec_signal": (
        exec_signal,
        {"job": (True, check_job), "signal": (True, _check_signal), "group": (False, parameters.boolean)},
    ),
    "exec_resize": (
        exec_resize,
        {"job": (True, check_job), "rows": (True, _check_side), "columns": (True, _check_side)},
    ),
}
