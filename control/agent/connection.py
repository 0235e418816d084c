"""One connection to a guest agent as bytes: received as they come, sent as whole records (floor 2).

Used by `client` and `streams`. A socket is a connection; so is whatever else has these methods.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Protocol

from control.errors import AgentProtocolError

CHUNK_BYTES = 256 * 1024
LITTLE_BYTES = 4096
"""Less than this at once was most likely all there is: no need to ask for more before waiting for it."""

RECEIVED_AT_A_STRETCH = 16
"""How often something may be received before whatever else goes on in this process has its turn."""

ROOM_BYTES = 1024 * 1024
"""How much may wait for a guest that does not read before those who have more to say wait as well."""

ENDED = "the guest agent's channel has ended"


class Connection(Protocol):
    """A descriptor that can be told not to block; a socket has all of this."""

    def setblocking(self, blocking: bool, /) -> None: ...

    def fileno(self) -> int: ...

    def recv_into(self, buffer: memoryview, /) -> int: ...

    def send(self, data: bytes | memoryview, /) -> int: ...

    def close(self) -> None: ...


class Receiver:
    """Receives into one buffer, which is used again and again. `close` it before the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._at_a_stretch = 0
        self._drained = False
        self._watched = -1
        self._waiter: asyncio.Future[int] | None = None

    def close(self) -> None:
        """Watch the connection no more."""
        if self._watched >= 0:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = -1

    async def receive(self) -> memoryview:
        """Return what came, valid until the next call; empty when the peer has ended the connection.

        Raises:
            OSError: The connection broke.
        """
        count = await self._wait() if self._drained else await self._try()
        self._drained = count < LITTLE_BYTES
        self._at_a_stretch += 1
        if count * 4 > CHUNK_BYTES or self._at_a_stretch >= RECEIVED_AT_A_STRETCH:
            # A guest that always has more to say, be it little, would otherwise be all this event loop sees.
            self._at_a_stretch = 0
            await asyncio.sleep(0)
        return self._buffer[:count]

    async def _try(self) -> int:
        try:
            return self._connection.recv_into(self._buffer)
        except BlockingIOError:
            return await self._wait()

    async def _wait(self) -> int:
        loop = asyncio.get_running_loop()
        self._at_a_stretch = 0
        self._waiter = loop.create_future()
        # Watched from one wait to the next, as long as nothing comes in between: an answer to each call is the rule.
        if self._watched < 0:
            self._watched = self._connection.fileno()
            loop.add_reader(self._watched, self._on_readable)
        return await self._waiter

    def _on_readable(self) -> None:
        if self._waiter is None or self._waiter.done():
            self.close()  # nobody wants it yet; the next wait watches again
            return
        try:
            self._waiter.set_result(self._connection.recv_into(self._buffer))
        except BlockingIOError:
            return  # somebody else's news
        except OSError as error:
            self._waiter.set_exception(error)


class Outbox:
    """Sends records whole and in order, those of a caller who is long gone too: half a line would spoil the next one.

    Nothing here waits: what the peer does not take at once is kept, and goes when it does.

    Attributes:
        on_room: Called when there is room again, after there was none.
        waiting_bytes: How much the peer has not taken yet.
    """

    def __init__(self, connection: Connection) -> None:
        self.on_room: Callable[[], None] | None = None
        self.waiting_bytes = 0
        self._connection = connection
        self._records: deque[memoryview] = deque()
        self._begun = False  # whether a part of the first record has gone
        self._ended = False
        self._watched = -1
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def has_room(self) -> bool:
        return self.waiting_bytes < ROOM_BYTES

    @property
    def ended(self) -> bool:
        return self._ended

    def send(self, record: bytes) -> memoryview | None:
        """Send `record`, now or as soon as the peer takes it; None when all of it has gone.

        Raises:
            AgentProtocolError: The connection has ended.
        """
        if self._ended:
            raise AgentProtocolError(ENDED)
        view = memoryview(record)
        if not self._records:
            sent = self._try(view)
            if sent == len(view):
                return None
            self._begun = sent > 0
            view = view[sent:]
        self._records.append(view)
        self.waiting_bytes += len(view)
        self._watch()
        return view

    def withdraw(self, record: memoryview) -> bool:
        """Take back what `send` returned; False when a part of it has gone, and the rest must follow."""
        for index, kept in enumerate(self._records):
            if kept is record and (index or not self._begun):
                del self._records[index]
                self.waiting_bytes -= len(record)
                self._tell_room()
                return True
        return False

    def clear(self) -> None:
        """Forget what has not gone; the caller sends what makes the peer find its way after half a record."""
        self._records.clear()
        self._begun = False
        self.waiting_bytes = 0
        self._tell_room()

    def end(self) -> None:
        """Send nothing any more; who waits for room is told."""
        self._ended = True
        self.clear()
        self._unwatch()

    async def wait_for_room(self) -> None:
        """Return when `has_room` holds, or the connection has ended."""
        while not (self.has_room or self._ended):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _try(self, view: memoryview) -> int:
        try:
            return self._connection.send(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.end()
            raise AgentProtocolError(ENDED) from error

    def _watch(self) -> None:
        if self._watched < 0:
            self._watched = self._connection.fileno()
            asyncio.get_running_loop().add_writer(self._watched, self._on_writable)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            asyncio.get_running_loop().remove_writer(self._watched)
            self._watched = -1

    def _on_writable(self) -> None:
        with contextlib.suppress(AgentProtocolError):  # told to who reads from it, and to each who sends from now on
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._records:
            record = self._records[0]
            sent = self._try(record)
            self.waiting_bytes -= sent
            if sent < len(record):
                self._records[0] = record[sent:] if sent else record
                self._begun = self._begun or sent > 0
                break
            self._records.popleft()
            self._begun = False
        if not self._records:
            self._unwatch()
        self._tell_room()

    def _tell_room(self) -> None:
        if not (self.has_room or self._ended):
            return
        for waiter in self._waiters:
            _wake(waiter)
        if self.on_room is not None and not self._ended:
            self.on_room()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
