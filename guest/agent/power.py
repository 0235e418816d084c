"""Switches the guest off or restarts it, after what has been answered is on its way (guest floor)."""

import os

from . import process, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .main import Agent

_FLUSH_S = 2.0
_COMMAND_S = 60.0
_REPEAT_S = 1.0
_REPEATS = 10


class PowerError(Exception):
    """This guest has no program to switch it off or restart it."""


def prepare(agent: "Agent", action: str) -> "Callable[[], None]":
    """Finds out how to do `action` (`poweroff` or `reboot`) without doing it.

    Returns:
        A function to call once the answer has been given: it waits until the answer is out, then does it.

    Raises:
        PowerError: There is no program for it.
    """
    argv = agent.config[action + "_command"] or _find_command(action)
    if argv is None or process.find_program(argv[0], process.build_environment()) is None:
        raise PowerError("this guest has no program for %s" % action)

    def go() -> None:
        started: "list[bool]" = []

        def run() -> None:
            if not started:
                started.append(True)
                agent.events.say_shutdown(action)
                _run(agent, action, argv, _REPEATS)

        agent.when_flushed(run)
        agent.loop.later(_FLUSH_S, run)

    return go


def _find_command(action: str) -> "list[str] | None":
    if system.has_systemd():
        return ["systemctl", "--no-block", action]
    return [action]


def _run(agent: "Agent", action: str, argv: "list[str]", repeats: int) -> None:
    def done(result: "process.Result") -> None:
        if result.exit_code == 0:
            # The first process hears of it by a signal, which is lost while it is not yet the init it will become. An
            # init that has heard ends us before we could repeat ourselves, or takes no notice.
            if repeats:
                agent.loop.later(_REPEAT_S, lambda: _run(agent, action, argv, repeats - 1))
        else:
            text = result.stderr.decode("utf-8", "replace").strip()[:200]
            agent.report("failed", "%s failed: %s" % (action, text or "no reason given"))

    try:
        os.sync()
        process.Process(agent.loop, argv, done, timeout_s=_COMMAND_S)
    except OSError as error:
        agent.report("failed", "%s failed: %s" % (action, error.strerror))
