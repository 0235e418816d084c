"""`log_follow` (guest floor): a file or the journal, line by line as it grows, into a stream."""

import time

from .. import dispatch, files, parameters, process, services, steps, streams
from ..follower import Follower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call

_DEFAULT_LINES = 10


def log_follow(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    journal = params.get("journal", False)
    if ("path" in params) == journal:
        text = "give a path, or journal: true; exactly one of them"
        raise dispatch.CallError(dispatch.INVALID_PARAMS, text, {"key": "path"})
    if "unit" in params and not journal:
        raise dispatch.CallError(dispatch.INVALID_PARAMS, "a unit belongs to the journal", {"key": "unit"})
    return _follow_journal(call, params) if journal else _follow_file(call, params)


def _follow_file(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    job = call.start_job()

    def reset(_reason: str) -> None:
        job.cancel()

    writer = call.agent.streams.open_writer(params["output"], reset)
    lines, follow = params.get("lines", _DEFAULT_LINES), params.get("follow", True)

    def done(error: "OSError | None") -> None:
        if error is not None:
            steps.fail(job, error)
        else:
            job.done({"bytes": follower.sent_bytes, "rotations": follower.rotations})

    def cancel() -> None:
        follower.close()
        job.fail(dispatch.CANCELLED, "cancelled", {"bytes": follower.sent_bytes, "rotations": follower.rotations})

    try:
        follower = Follower(call.agent, files.encode(params["path"]), lines, follow, writer, done)
    except OSError as error:
        writer.close()
        raise steps.refuse(error, params["path"]) from None
    job.on_cancel = cancel
    return {"job": job.id}


def _follow_journal(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    from ..transcript import Spoken, Transcript

    environment = process.build_environment()
    if process.find_program("journalctl", environment) is None:
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no journal")
    argv = ["journalctl", "--no-pager", "--quiet", "--output=short-iso"]
    lines, follow = params.get("lines", _DEFAULT_LINES), params.get("follow", True)
    if follow and not lines:
        # From now on: what is logged until journalctl has begun to read belongs to it.
        argv.append("--since=@%.6f" % time.time())
    else:
        argv.append("--lines=%d" % lines)
    if follow:
        argv.append("--follow")
    if "unit" in params:
        argv.append("--unit=" + params["unit"])
    job = call.start_job()

    def reset(_reason: str) -> None:
        job.cancel()

    transcript = Transcript(call.agent.streams.open_writer(params["output"], reset))

    def done(result: "process.Result") -> None:
        transcript.close()
        if job.cancelled:
            job.fail(dispatch.CANCELLED, "cancelled")
        elif result.exit_code == 0:
            job.done({"bytes": transcript.size, "rotations": 0})
        else:
            said = result.stderr.decode("utf-8", "replace").strip()
            job.fail(dispatch.FAILED, "journalctl: %s" % (said[-400:] or "exit code %s" % result.exit_code))

    try:
        child = Spoken(call.agent.loop, done, transcript, {"argv": argv, "environment": environment})
    except OSError as error:
        transcript.close()
        raise steps.refuse(error) from None
    job.on_cancel = child.kill
    return {"job": job.id}


METHODS: "dict[str, tuple[Any, ...]]" = {
    "log_follow": (
        log_follow,
        {
            "path": (False, files.check_path),
            "journal": (False, parameters.boolean),
            "unit": (False, parameters.matching(services.is_name, "the name of a service")),
            "lines": (False, parameters.integer(0, 100000)),
            "follow": (False, parameters.boolean),
            "output": (True, streams.check_number),
        },
    ),
}
