"""Who may type on a console (floor 3): one at a time, the others wait for their turn, or take it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

Turn = Literal["yours", "waiting", "lost", "reading"]
"""What a seat has of the keyboard: it types; it waits to; it was robbed, and is the next; it only reads."""


class Seat:
    """One of those at a console; made by `Keyboard.sit`.

    Attributes:
        who: For the others, who see it when they cannot type.
        rows, columns: Of its terminal; 0 when it has told of none.
    """

    def __init__(self, keyboard: Keyboard, who: str) -> None:
        self.who = who
        self.rows = self.columns = 0
        self.turn: Turn = "reading"
        self._keyboard = keyboard
        self._news = asyncio.Event()

    @property
    def types(self) -> bool:
        return self._keyboard.holder is self

    @property
    def holder(self) -> str:
        """Who has the keyboard; empty when nobody has."""
        return self._keyboard.holder.who if self._keyboard.holder is not None else ""

    def steal(self) -> None:
        """Take the keyboard from whoever has it."""
        self._keyboard.give(self)

    def release(self) -> None:
        """Only read from now on; whoever waits longest may type."""
        self._keyboard.leave(self)

    def wait_for_turn(self) -> None:
        """Type as soon as nobody before us does."""
        self._keyboard.queue(self)

    async def next_news(self) -> Turn:
        """Wait until the turn, or who holds the keyboard, has changed."""
        await self._news.wait()
        self._news.clear()
        return self.turn

    def tell(self, turn: Turn) -> None:
        self.turn = turn
        self._news.set()


class Keyboard:
    """The right to type on one console. Not thread-safe.

    Attributes:
        holder: Who has it.
    """

    def __init__(self) -> None:
        self.holder: Seat | None = None
        self._seats: list[Seat] = []
        self._waiting: list[Seat] = []

    @property
    def is_free(self) -> bool:
        return self.holder is None

    @asynccontextmanager
    async def sit(self, who: str, mode: Literal["write", "steal", "read"]) -> AsyncIterator[Seat]:
        """A seat at the console for the body; on leaving, the keyboard goes to whoever waits longest for it."""
        seat = Seat(self, who)
        self._seats.append(seat)
        try:
            if mode == "steal":
                self.give(seat)
            elif mode == "write":
                self.queue(seat)
            else:
                seat.tell("reading")
            yield seat
        finally:
            self._seats.remove(seat)
            self.leave(seat)

    def give(self, seat: Seat) -> None:
        if self.holder is seat:
            return
        robbed, self.holder = self.holder, seat
        self._forget(seat)
        if robbed is not None:
            self._waiting.insert(0, robbed)
            robbed.tell("lost")
        self._tell_all(seat)

    def queue(self, seat: Seat) -> None:
        if self.holder is None:
            self.give(seat)
        elif self.holder is not seat and seat not in self._waiting:
            self._waiting.append(seat)
            seat.tell("waiting")

    def leave(self, seat: Seat) -> None:
        self._forget(seat)
        if self.holder is seat:
            self.holder = None
            seat.tell("reading")
            if self._waiting:
                self.give(self._waiting[0])
            else:
                self._tell_all(None)
        elif seat.turn != "reading":
            seat.tell("reading")

    def _forget(self, seat: Seat) -> None:
        if seat in self._waiting:
            self._waiting.remove(seat)

    def _tell_all(self, holder: Seat | None) -> None:
        """Tell the holder that it is theirs, and the others that it is somebody else's now."""
        for seat in self._seats:
            seat.tell("yours" if seat is holder else seat.turn)
