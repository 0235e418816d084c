"""`process_list` and `process_signal` (guest floor)."""

import os

from .. import dispatch, pages, parameters, processes, signals, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def process_list(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, pages.build_page("processes", processes.list_pids(), params, processes.describe))


def process_signal(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    pid = params["pid"]
    if pid in (1, os.getpid()) and not params.get("force", False):
        who = "the first process" if pid == 1 else "the agent itself"
        raise dispatch.CallError(dispatch.NOT_PERMITTED, "%d is %s; with `force` it gets the signal" % (pid, who))
    try:
        processes.send_signal(pid, signals.find_signal(params["signal"]), params.get("start_ticks"))
    except OSError as error:
        raise steps.refuse(error) from None
    return {}


_PID = parameters.integer(1, 2**22)  # Source: proc_sys_kernel(5), pid_max
_TICKS = parameters.integer(0, 2**53 - 1)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "process_list": (process_list, pages.build_parameters(_PID)),
    "process_signal": (
        process_signal,
        {
            "pid": (True, _PID),
            "signal": (True, parameters.matching(signals.is_signal, "the name of a signal, like TERM")),
            "start_ticks": (False, _TICKS),
            "force": (False, parameters.boolean),
        },
    ),
}
