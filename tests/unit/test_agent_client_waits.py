"""What becomes of those who wait for the guest when this host is late, gives up at the wrong moment, or is flooded."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from control.agent.client import AgentClient, serve_agent
from control.agent.connection import LITTLE_BYTES, Receiver
from control.agent.files import _get_one
from control.agent.trees import TreeWriter
from control.errors import TransferError
from tests.unit.test_agent_client import INFO, Peer, open_desk


async def test_a_job_is_ended_whose_caller_goes_in_the_moment_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_desk() as desk:
        take_job = desk.client._take_job

        def take_and_cancel(*arguments: object) -> None:
            take_job(*arguments)  # type: ignore[arg-type]
            starting.cancel()  # the caller has its answer, and has not run since

        monkeypatch.setattr(desk.client, "_take_job", take_and_cancel)
        starting = asyncio.create_task(desk.client.start_job("exec_start", {"argv": ["sleep", "60"]}))
        await desk.peer.answer(await desk.peer.read(), {"job": 7, "pid": 100})
        with pytest.raises(asyncio.CancelledError):
            await starting
        told = await desk.peer.read()
        assert (told["method"], told["params"]) == ("job_cancel", {"job": 7})


async def test_a_handshake_that_a_snapshot_undid_is_made_again() -> None:
    async with open_desk(ready=False) as desk:
        first = await desk.peer.read()
        desk.client.shake_hands(resumed=True)
        assert first["params"]["session"] != await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)


async def test_a_question_that_a_port_took_with_it_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU tells of a port that was closed and opened again within a second that it is open, and nothing else."""
    monkeypatch.setattr("control.agent.client.REOPENED_S", 0.05)
    async with open_desk(ready=False) as desk:
        first = await desk.peer.read()
        desk.client.shake_hands()  # opened; the agent ended with the question unread, and another one came
        assert first["params"]["session"] != await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)
        desk.client.shake_hands()
        lost = await desk.peer.read()
        desk.client.shake_hands()
        while (asked := await desk.peer.read())["method"] == "cancel":
            pass
        assert (asked["method"], asked["id"] != lost["id"]) == ("get_agent_info", True)


async def test_a_question_that_is_answered_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.agent.client.REOPENED_S", 0.05)
    async with open_desk(ready=False) as desk:
        asked = await desk.peer.read()
        desk.client.shake_hands()
        session = asked["params"]["session"]
        await desk.peer.answer(asked, {**INFO, "session": session})
        await desk.client.wait_until_ready(5)
        await asyncio.sleep(0.2)
        assert desk.client.info["session"] == session and desk.client.ready.is_set()


async def test_a_comparison_that_a_snapshot_undid_is_made_again() -> None:
    async with open_desk() as desk:
        desk.client.shake_hands(resumed=True)
        assert (await desk.peer.read())["method"] == "get_agent_info"
        desk.client.shake_hands(resumed=True)
        while (asked := await desk.peer.read())["method"] == "cancel":
            pass
        await desk.peer.answer(asked, {"session": "of an earlier life"})
        await desk.peer.shake_hands()


async def test_an_answer_that_came_in_time_counts_although_this_host_looks_late() -> None:
    async with open_desk() as desk:
        calling = asyncio.create_task(desk.client.call("ping", timeout_s=0.3))
        await desk.peer.answer(await desk.peer.read(), {})
        time.sleep(0.6)  # noqa: ASYNC251 # this host stands still, as one that was suspended or is overloaded
        assert await calling == {}


async def test_many_answers_that_came_in_time_count_although_this_host_looks_late() -> None:
    async with open_desk() as desk:
        calling = asyncio.create_task(desk.client.call_many([("ping", {})] * 2, timeout_s=0.3))
        await desk.peer.send([{"jsonrpc": "2.0", "id": call["id"], "result": {}} for call in await desk.peer.read()])
        time.sleep(0.6)  # noqa: ASYNC251
        assert await calling == [{}, {}]


class Chatter:
    """A guest that has said one byte more whenever it is listened to, for two seconds."""

    def __init__(self) -> None:
        self.end = time.monotonic() + 2

    def recv_into(self, buffer: memoryview, /) -> int:
        if time.monotonic() > self.end:
            raise ConnectionResetError
        buffer[0] = 10
        return LITTLE_BYTES

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


async def test_who_listens_to_the_guest_may_ask_it_something() -> None:
    answered = asyncio.Event()

    async def ask(_method: str, _params: object) -> None:
        await client.call("ping", timeout_s=2)
        answered.set()

    ours, theirs = socket.socketpair()
    client, peer = AgentClient(ours, ask), Peer(theirs)
    async with serve_agent(client), asyncio.timeout(10):
        await peer.shake_hands()
        await peer.send({"jsonrpc": "2.0", "method": "message", "params": {}})
        await peer.answer(await peer.read(), {})
        await answered.wait()
    theirs.close()


async def test_what_a_listener_raises_ends_the_service_at_once() -> None:
    async def fail(_method: str, _params: object) -> None:
        raise BrokenPipeError

    ours, theirs = socket.socketpair()
    client, peer = AgentClient(ours, fail), Peer(theirs)
    serving = asyncio.create_task(client.serve())
    await peer.shake_hands()
    await peer.send({"jsonrpc": "2.0", "method": "message", "params": {}})
    async with asyncio.timeout(5):
        with pytest.raises(BrokenPipeError):
            await serving
    client.close()
    theirs.close()


async def test_the_last_words_of_a_guest_are_heard() -> None:
    heard: list[object] = []

    async def take(_method: str, params: object) -> None:
        await asyncio.sleep(0.001)
        heard.append(params)

    ours, theirs = socket.socketpair()
    client, peer = AgentClient(ours, take), Peer(theirs)
    serving = asyncio.create_task(client.serve())
    await peer.shake_hands()
    await peer.send(*({"jsonrpc": "2.0", "method": "message", "params": number} for number in range(100)))
    theirs.close()
    async with asyncio.timeout(5):
        await serving
    assert heard == list(range(100))
    client.close()


async def test_two_may_wait_for_the_same_stream_to_be_taken() -> None:
    async with open_desk() as desk:
        stream = desk.client.streams.open_outgoing()
        stream.write(bytes(1000))
        waiting = [asyncio.create_task(stream.drain(0)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting.pop().cancel()
        stream.open()
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)


async def test_a_copy_that_cannot_be_resumed_holds_no_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_writer: TreeWriter) -> None:
        raise TransferError("it cannot be read", path="x")

    monkeypatch.setattr(TreeWriter, "find_resumable", fail)
    async with open_desk() as desk:
        with pytest.raises(TransferError):
            await _get_one(
                desk.client, "/x", lambda: TreeWriter(tmp_path, "x"), resume=True, owner=False, progress=None
            )
        assert not desk.client.streams._open
