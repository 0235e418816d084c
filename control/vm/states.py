"""The states of a VM and the ways between them (floor 3). QEMU's own runstate is another thing, reported beside it."""

from __future__ import annotations

from enum import Enum

from control.errors import StateError


class State(Enum):
    DEFINED = "DEFINED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"


_NEXT = {
    State.DEFINED: {State.STARTING},
    State.STARTING: {State.RUNNING, State.STOPPING, State.STOPPED},
    State.RUNNING: {State.PAUSED, State.STOPPING, State.STOPPED},
    State.PAUSED: {State.RUNNING, State.STOPPING, State.STOPPED},
    State.STOPPING: {State.STOPPED},
    State.STOPPED: set(),
    State.FAILED: set(),
}


def check_transition(old: State, new: State) -> None:
    """See to it that a VM may go from `old` to `new`; any state may fail, except an end.

    Raises:
        StateError: It may not; the VM stays in `old`.
    """
    allowed = set(_NEXT[old])
    if allowed:
        allowed.add(State.FAILED)
    if new not in allowed:
        raise StateError(
            f"a VM that is {old.value} cannot become {new.value}",
            state=old.value,
            required=sorted(state.value for state in _NEXT if new in _NEXT[state]),
        )
