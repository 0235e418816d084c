"""`shutdown` and `reboot` (guest floor)."""

from .. import dispatch, power


def shutdown(call: "object", _params: "dict") -> None:
    _answer_then_go(call, "poweroff")


def reboot(call: "object", _params: "dict") -> None:
    _answer_then_go(call, "reboot")


def _answer_then_go(call: "object", action: str) -> None:
    try:
        go = power.prepare(call.agent, action)  # type: ignore[attr-defined]
    except power.PowerError as error:
        raise dispatch.CallError(dispatch.NOT_FOUND, str(error)) from None
    call.done({})  # type: ignore[attr-defined]
    go()  # type: ignore[operator]


METHODS = {"shutdown": (shutdown, {}), "reboot": (reboot, {})}
