"""`filesystem_freeze`, `filesystem_thaw`, `filesystem_status` and `filesystem_trim` (guest floor)."""

from .. import dispatch, forked, freezer, parameters, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call
    from ..main import Agent

_DEFAULT_S = 60.0


def filesystem_freeze(call: "Call", params: "dict[str, Any]") -> None:
    targets = freezer.find_targets(params.get("paths"))
    if not targets:
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no file system on a disk")
    timeout_s = params.get("timeout_s", _DEFAULT_S)

    def done(report: "dict[str, Any]") -> None:
        if report["failed"]:
            first = report["failed"][0]
            text = "%s: %s; nothing is frozen" % (first["path"], first["error"])
            call.fail(dispatch.FAILED, text, {"path": first["path"]})
        elif "error" in report:
            call.fail(dispatch.FAILED, report["error"])
        elif not report["frozen"]:
            call.fail(dispatch.NOT_SUPPORTED, "none of the file systems can be frozen")
        else:
            call.done({"frozen": report["frozen"], "skipped": report["skipped"], "timeout_s": timeout_s})

    try:
        _get_freezer(call.agent).freeze(targets, timeout_s, done)
    except OSError as error:
        raise steps.refuse(error) from None


def filesystem_thaw(call: "Call", _params: "dict[str, Any]") -> None:
    def done(report: "dict[str, Any]") -> None:
        if "error" in report:
            call.fail(dispatch.FAILED, report["error"])
        else:
            call.done({"thawed": report["thawed"]})

    _get_freezer(call.agent).thaw(done)


def filesystem_status(call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    found = _get_freezer(call.agent)
    return {
        "state": "frozen" if found.paths else "thawed",
        "frozen": found.paths,
        "remaining_s": round(found.remaining_s, 3),
    }


def filesystem_trim(call: "Call", params: "dict[str, Any]") -> None:
    targets = freezer.find_targets(params.get("paths"))
    minimum = params.get("minimum_bytes", 0)

    def done(results: "Any", error: "Exception | None") -> None:
        if error is None:
            call.done({"trimmed": results})
        else:
            steps.fail(call, error)

    try:
        child = forked.Forked(call.agent.loop, lambda: freezer.trim(targets, minimum), done)
    except OSError as error:
        raise steps.refuse(error) from None
    call.on_cancel = child.kill


def _get_freezer(agent: "Agent") -> "freezer.Freezer":
    if agent.freezer is None:
        agent.freezer = freezer.Freezer(agent)
    return agent.freezer


_PATHS = (False, parameters.list_of(parameters.path, 1, 256))

METHODS: "dict[str, tuple[Any, ...]]" = {
    "filesystem_freeze": (filesystem_freeze, {"paths": _PATHS, "timeout_s": (False, parameters.number(1, 3600))}),
    "filesystem_thaw": (filesystem_thaw, {}),
    "filesystem_status": (filesystem_status, {}),
    "filesystem_trim": (
        filesystem_trim,
        {"paths": _PATHS, "minimum_bytes": (False, parameters.integer(0, 2**53 - 1))},
    ),
}
