"""Work in the guest that outlives the call that began it (floor 2); made by `client`, used by what builds on it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from control.agent.contract import NOTIFICATIONS, check_end, check_notification
from control.errors import AgentCallError, AgentProtocolError, WaitTimeout

KEPT_EVENTS = 4096
"""Events of a job that nobody has read yet; when there are more the oldest go, and are counted."""


class Job:
    """One job of the guest agent.

    Attributes:
        answer: What the call that began it was answered with.
        ended: Its result; or the error it ended with, or that of a guest that was lost.
        missed: How many of its events were dropped, because nobody read them in time.
    """

    def __init__(self, number: int, method: str, answer: Mapping[str, Any], cancel: Callable[[int], None]) -> None:
        self.number = number
        self.method = method
        self.answer = answer
        self.missed = 0
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Whether or not somebody still waits for it, a job that fails is not an error nobody saw.
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._cancel = cancel
        self._events: deque[Mapping[str, Any]] = deque()
        self._changed = asyncio.Event()
        self.ended.add_done_callback(lambda _: self._changed.set())

    async def wait(self, timeout_s: float | None = None) -> Any:
        """Wait for the job's end and return its result; it runs on when nobody waits any more.

        Raises:
            AgentCallError: It failed, or was cancelled.
            AgentProtocolError: The guest was lost, or what it told of the job does not fit the schemas.
            WaitTimeout: It has not ended within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self.ended)
        except TimeoutError:
            raise WaitTimeout(f"the end of {self.method} in the guest", timeout_s or 0.0) from None

    def cancel(self) -> None:
        """Have it stopped; its end then comes with the error -32006."""
        if not self.ended.done():
            self._cancel(self.number)

    def knows(self, notification: str) -> bool:
        """Whether a job of this method tells such a thing."""
        return notification in ("job_done", NOTIFICATIONS.get(self.method))

    def take(self, notification: str, params: Mapping[str, Any]) -> None:
        """Take what the guest tells of the job; what does not fit its schema ends it with an AgentProtocolError."""
        if self.ended.done():
            return
        try:
            if notification == "job_done":
                self._end(check_end(self.method, params))
            else:
                self._keep_event(check_notification(notification, params))
        except AgentProtocolError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End it with `error`, if it has not ended."""
        if not self.ended.done():
            self.ended.set_exception(error)

    def _end(self, outcome: Mapping[str, Any]) -> None:
        if "result" in outcome:
            self.ended.set_result(outcome["result"])
        else:
            self.ended.set_exception(build_call_error(self.method, outcome["error"]))

    def _keep_event(self, params: Mapping[str, Any]) -> None:
        if len(self._events) >= KEPT_EVENTS:
            self._events.popleft()
            self.missed += 1
        self._events.append(params)
        self._changed.set()

    async def events(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the job's notifications as they come, until it ends.

        Raises:
            AgentCallError, AgentProtocolError: As `wait` does, behind the last event.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            if self.ended.done():
                self.ended.result()
                return
            self._changed.clear()
            await self._changed.wait()


def build_call_error(method: str, error: Mapping[str, Any]) -> AgentCallError:
    """Make an exception of the error that a call was answered, or a job ended, with."""
    return AgentCallError(
        f"{method}: {str(error.get('message', ''))[:500]}", method=method, code=error["code"], data=error.get("data")
    )
