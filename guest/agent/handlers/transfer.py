"""`file_put` and `file_get` (guest floor): files and trees over a stream, as jobs."""

import os
import stat

from .. import dispatch, files, flows, parameters, streams
from ..pathpolicy import READ, WRITE
from ..treereader import TreeReader, measure
from ..treewriter import Resumed, TreeWriter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from ..dispatch import Call
    from ..jobs import Job


def file_put(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _begin_put(call, path, params))


def _begin_put(call: "Call", path: bytes, params: "dict[str, Any]") -> "Generator[None, None, dict[str, Any]]":
    agent = call.agent
    settings = agent.config
    _check_owner(call, params)
    place = agent.guard.paths.find(path, WRITE)
    resumed = None
    try:
        place.check()
        if params.get("resume"):
            try:
                resumed = Resumed(place)
            except BlockingIOError:
                raise dispatch.CallError(dispatch.BUSY, "another call is writing this file") from None
            yield from resumed.measure()
        limits = (settings["transfer_bytes"], settings["transfer_entries"])
        writer = TreeWriter(
            place, agent.guard.paths, params.get("owner", False), params.get("durable", False), limits, resumed
        )
        job = call.start_job()
        flow = flows.Inflow(agent, writer, build_end(job, path), params["stream"])
    except BaseException:
        if resumed is not None:
            resumed.hidden.close()
        place.close()
        raise
    job.on_cancel = flow.cancel
    answer = {"job": job.id}
    if resumed is not None:
        answer.update(offset=resumed.offset, crc32=resumed.crc)
    return answer


def file_get(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _begin_get(call, path, params))


def _begin_get(call: "Call", path: bytes, params: "dict[str, Any]") -> "Generator[None, None, dict[str, Any]]":
    agent = call.agent
    settings = agent.config
    place = agent.guard.paths.find(path, READ)
    try:
        place.check()
        seen = place.stat()
        offset, crc = params.get("offset", 0), params.get("crc32", 0)
        if offset:
            offset = yield from _find_offset(place, seen, offset, crc)
        limits = (settings["transfer_bytes"], settings["transfer_entries"])
        begin = (offset, crc if offset else 0)
        reader = TreeReader(place, agent.guard.paths, params.get("owner", False), limits, begin)
        job = call.start_job()
        flow = flows.Outflow(agent, reader.run(), build_end(job, path), params["stream"])
    except BaseException:
        place.close()
        raise
    job.on_cancel = flow.cancel
    return {"job": job.id, "offset": offset}


def _find_offset(place: "Any", seen: "os.stat_result", offset: int, crc: int) -> "Generator[None, None, int]":
    """The offset at which to begin: what the host has is the beginning of this file, or it gets all of it."""
    if not stat.S_ISREG(seen.st_mode) or offset > seen.st_size:
        return 0
    fd = place.open_file(os.O_RDONLY)
    try:
        return offset if (yield from measure(fd, offset, crc)) else 0
    finally:
        os.close(fd)


def build_end(job: "Job", path: bytes) -> "Callable[..., Any]":
    """What ends the job with the result or the error of its flow."""

    def done(result: "Any", error: "Exception | None") -> None:
        if error is None:
            job.done(result)
            return
        refusal = files.refuse(error, path)
        if refusal is None:
            job.fail(dispatch.INTERNAL_ERROR, "%s: %s" % (type(error).__name__, error))
            raise error  # a fault of the agent itself: the loop reports it
        job.fail(refusal.code, str(refusal), refusal.data)

    return done


def _check_owner(call: "Call", params: "dict[str, Any]") -> None:
    if params.get("owner") and (os.geteuid() != 0 or call.agent.guard.identity is not None):
        text = "only an agent that works as root can set owners"
        raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": "owner"})


_STREAM = (True, streams.check_number)
_SWITCH = (False, parameters.boolean)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "file_put": (
        file_put,
        {
            "path": (True, files.check_path),
            "stream": _STREAM,
            "resume": _SWITCH,
            "owner": _SWITCH,
            "durable": _SWITCH,
        },
    ),
    "file_get": (
        file_get,
        {
            "path": (True, files.check_path),
            "stream": _STREAM,
            "offset": (False, files.SIZE),
            "crc32": (False, parameters.integer(0, 2**32 - 1)),
            "owner": _SWITCH,
        },
    ),
}
