"""Several machines that work together (floor 4): what one is told, all are told, and what they answer is gathered.

Interpreters of `control.lua` are such machines, and so are VMs (`control.session.machines`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, Self, TypeVar

from control.errors import ConfigError, ControlError, WaitTimeout

TIMEOUT_S = 30.0

Answer = TypeVar("Answer", covariant=True)


class Member(Protocol[Answer]):
    """One of them; used by one thread at a time."""

    @property
    def name(self) -> str: ...

    def execute(self, task: str, /, *args: Any, timeout: float) -> Answer:
        """Do `task` and return what came of it. Raises ControlError."""
        ...

    def close(self) -> None:
        """Give back what it holds. Raises ControlError."""
        ...


class Cluster(Generic[Answer]):
    """Members that are given the same work, or each its share. Use it as a context manager: it is cleaned up then.

    The failure of one is its own answer, and nothing to the others.
    """

    def __init__(self, name: str, members: Iterable[Member[Answer]]) -> None:
        self.name = name
        self._members = {member.name: member for member in members}
        self._pools = {key: ThreadPoolExecutor(1, f"{name}/{key}") for key in self._members}
        self._pending: dict[str, Future[Answer]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup()

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> Mapping[str, Member[Answer]]:
        """The members by their names, in the order they were made in."""
        return dict(self._members)

    def broadcast(self, task: str, *args: Any, timeout: float = TIMEOUT_S) -> None:
        """Begin the same `task` on all; `gather` has the answers. What a member has begun before, it does first."""
        self.scatter(task, [args] * len(self._members), timeout=timeout)

    def scatter(self, task: str, shares: Sequence[Sequence[Any]], *, timeout: float = TIMEOUT_S) -> None:
        """Begin `task` on each with its own arguments.

        Args:
            shares: The arguments of each member, in their order.
            timeout: Seconds that each may take.

        Raises:
            ConfigError: There are more shares than members, or fewer, or the cluster was cleaned up; nothing was begun.
        """
        if len(shares) != len(self._members) or not self._members:
            raise ConfigError(f"there are {len(shares)} shares for {len(self._members)} members", key="shares")
        for (key, member), share in zip(self._members.items(), shares, strict=True):
            self._pending[key] = self._pools[key].submit(member.execute, task, *share, timeout=timeout)

    def gather(self, *, timeout: float = TIMEOUT_S) -> dict[str, Answer | ControlError]:
        """Wait for what was begun last, and return the answer of each: or the error it ended in.

        One that has not answered after `timeout` seconds has a WaitTimeout here, and goes on.
        """
        deadline = time.monotonic() + timeout
        answers: dict[str, Answer | ControlError] = {}
        for key, future in self._pending.items():
            try:
                answers[key] = future.result(max(0.0, deadline - time.monotonic()))
            except ControlError as error:
                answers[key] = error
            except TimeoutError:
                answers[key] = WaitTimeout(f"the answer of {key}", timeout)
        return answers

    def cleanup(self) -> None:
        """End the members; twice is once. Raises the first error of those that cannot be ended, when all were tried."""
        members, self._members = self._members, {}
        errors = []
        for member in members.values():
            try:
                member.close()
            except ControlError as error:
                errors.append(error)
        for pool in self._pools.values():
            pool.shutdown(cancel_futures=True)
        self._pending.clear()
        if errors:
            raise errors[0]
