"""`message` and `share_changed` (guest floor): what the host tells the agent of its own accord."""

from .. import commands, dispatch
from .. import message as envelope


def message(call: "object", params: "dict") -> "dict":
    if not call.notification:  # type: ignore[attr-defined]
        fault = envelope.find_fault(params)
        if fault is not None:
            raise dispatch.CallError(dispatch.INVALID_PARAMS, fault)
    agent = call.agent  # type: ignore[attr-defined]
    commands.handle(agent, params, agent.send_message)
    return {}


def share_changed(call: "object", _params: "dict") -> "dict":
    call.agent.look_at_share()  # type: ignore[attr-defined]
    return {}


class _AnyKey(dict):
    """The envelope has its own check, which also answers a notification that fails it."""

    def __contains__(self, _key: object) -> bool:
        return True

    def __missing__(self, _key: str) -> "tuple":
        return (False, lambda _value: None)


METHODS = {"message": (message, _AnyKey()), "share_changed": (share_changed, {})}
