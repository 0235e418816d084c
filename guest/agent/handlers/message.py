"""`message` and `share_changed` (guest floor): what the host tells the agent of its own accord."""

from .. import commands, dispatch
from .. import message as envelope

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def message(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    if not call.notification:
        fault = envelope.find_fault(params)
        if fault is not None:
            raise dispatch.CallError(dispatch.INVALID_PARAMS, fault)
    agent = call.agent
    commands.handle(agent, params, agent.send_message)
    return {}


def share_changed(call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    call.agent.look_at_share()
    return {}


class _AnyKey(dict):  # type: ignore[type-arg]
    """The envelope has its own check, which also answers a notification that fails it."""

    def __contains__(self, _key: object) -> bool:
        return True

    def __missing__(self, _key: str) -> "tuple[Any, ...]":
        return (False, lambda _value: None)


METHODS = {"message": (message, _AnyKey()), "share_changed": (share_changed, {})}
