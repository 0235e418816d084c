"""`shutdown` and `reboot` (guest floor)."""

from .. import dispatch, power

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def shutdown(call: "Call", _params: "dict[str, Any]") -> None:
    _answer_then_go(call, "poweroff")


def reboot(call: "Call", _params: "dict[str, Any]") -> None:
    _answer_then_go(call, "reboot")


def _answer_then_go(call: "Call", action: str) -> None:
    try:
        go = power.prepare(call.agent, action)
    except power.PowerError as error:
        raise dispatch.CallError(dispatch.NOT_FOUND, str(error)) from None
    call.done({})
    go()


METHODS: "dict[str, tuple[Any, ...]]" = {"shutdown": (shutdown, {}), "reboot": (reboot, {})}
