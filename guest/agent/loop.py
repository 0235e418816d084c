"""The agent's event loop: one thread, one epoll, timers (guest floor).

Everything in the agent runs as a short callback from here, so a slow command never holds up a ping.
"""

import select
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HANGUP = select.EPOLLHUP
ERROR = select.EPOLLERR
PRIORITY = select.EPOLLPRI
EDGE = select.EPOLLET


# So many timers may have been cancelled before the list is cleared of them.
_SWEEP_ABOVE = 64


class Timer:
    """A callback that runs once, at `when` (seconds of the monotonic clock), unless it is cancelled."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: "Callable[..., Any]") -> None:
        self.when = when
        self.callback: "Callable[..., Any] | None" = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Loop:
    """Runs callbacks when file descriptors are ready or time has come.

    `on_error(exception)` is told of an exception that a callback let escape; the loop goes on.
    """

    def __init__(self, on_error: "Callable[..., Any] | None" = None) -> None:
        self._epoll = select.epoll()
        self._callbacks: "dict[int, Callable[..., Any]]" = {}
        self._timers: "list[Timer]" = []
        self._sweep_above = _SWEEP_ABOVE
        self._soon: "list[Any]" = []
        self._stopped = False
        self.exit_code = 0
        self.on_error = on_error

    def add(self, fd: int, events: int, callback: "Callable[..., Any]") -> None:
        """Calls `callback(events)` whenever `fd` has one of `events`."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forgets `fd`; to be called before it is closed."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def soon(self, callback: "Callable[..., Any]") -> None:
        """Calls `callback()` in the next turn, after what is ready now."""
        self._soon.append(callback)

    def later(self, delay_s: float, callback: "Callable[..., Any]") -> Timer:
        """Calls `callback()` after `delay_s` seconds."""
        timer = Timer(monotonic() + delay_s, callback)
        if len(self._timers) > self._sweep_above:
            # Most time limits are hours away when their program ends: those must not pile up until then.
            self._timers = [kept for kept in self._timers if kept.callback is not None]
            self._sweep_above = max(_SWEEP_ABOVE, 2 * len(self._timers))
        self._timers.append(timer)
        self._timers.sort()  # nearly sorted already, and short: one per running command and a few more
        return timer

    def stop(self, exit_code: int = 0) -> None:
        self._stopped = True
        self.exit_code = exit_code

    def run(self) -> int:
        """Runs until `stop`; gives the exit code."""
        poll = self._epoll.poll
        while not self._stopped:
            for fd, events in poll(self._wait_s()):
                callback = self._callbacks.get(fd)
                if callback is not None:
                    self._call(callback, events)
            if self._soon:
                ready, self._soon = self._soon, []
                for callback in ready:
                    self._call(callback)
            self._run_timers()
        return self.exit_code

    def slices(self, steps: "Generator[None, None, Any]", done: "Callable[..., Any]") -> None:
        """Runs the generator `steps` a slice at a time between other work, then calls `done(value, exception)`."""

        def advance() -> None:
            until = monotonic() + 0.01
            try:
                while monotonic() < until:
                    next(steps)
            except StopIteration as end:
                done(end.value, None)
            except Exception as error:
                done(None, error)
            else:
                self.soon(advance)

        self.soon(advance)

    def _wait_s(self) -> float:
        if self._soon:
            return 0
        while self._timers and self._timers[0].callback is None:
            self._timers.pop(0)
        if not self._timers:
            return -1
        return max(0.0, self._timers[0].when - monotonic())

    def _run_timers(self) -> None:
        while self._timers and (self._timers[0].callback is None or self._timers[0].when <= monotonic()):
            callback = self._timers.pop(0).callback
            if callback is not None:
                self._call(callback)

    def _call(self, callback: "Callable[..., Any]", *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception as error:
            if self.on_error is None:
                raise
            self.on_error(error)
