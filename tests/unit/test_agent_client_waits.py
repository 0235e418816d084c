"""What becomes of those who wait for the guest when this host is late, gives up at the wrong moment, or is flooded."""

from __future__ import annotations

import asyncio
import time

from control.agent.connection import Receiver


class Chatter:
    """A guest that has said one byte more whenever it is listened to, for two seconds."""

    def __init__(self) -> None:
        self.end = time.monotonic() + 2

    def recv_into(self, buffer: memoryview, /) -> int:
        if time.monotonic() > self.end:
            raise ConnectionResetError
        buffer[0] = 10
        return 1

    def send(self, data: bytes | memoryview, /) -> int:
        return len(data)

    def setblocking(self, blocking: bool, /) -> None: ...

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


async def test_a_guest_that_always_has_a_little_to_say_is_not_all_this_host_hears() -> None:
    async def listen() -> None:
        receiver = Receiver(Chatter())
        while await receiver.receive():
            pass

    listening = asyncio.create_task(listen())
    began = time.monotonic()
    await asyncio.sleep(0.1)
    assert time.monotonic() - began < 1
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
