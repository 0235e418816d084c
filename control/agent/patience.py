"""Time limits that are fair when this host is late (floor 2); used by `client`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

LATE_S = 0.1
"""A clock that strikes so much too late was held up, and with it whatever else this process listens to."""

GRACE_S = 2.0
"""How long what came meanwhile may take to be heard."""


class TimeLimit:
    """As `asyncio.timeout`: ends its body with TimeoutError after `seconds`; None for no limit.

    A process that stood still (suspended, overloaded, busy with something large) finds its clock run out and the answer
    waiting at the same moment. It then looks at what has come before it says that nothing did.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        if self._seconds is not None:
            self._strike_at(asyncio.get_running_loop().time() + self._seconds, self._look)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _strike_at(self, when: float, strike: Callable[[float], None]) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, strike, when)

    def _look(self, when: float) -> None:
        now = asyncio.get_running_loop().time()
        if now - when > LATE_S:
            self._strike_at(now + GRACE_S, self._expire)
        else:
            self._expire(now)

    def _expire(self, when: float) -> None:
        self._timeout.reschedule(when)
