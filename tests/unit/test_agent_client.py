"""The host's end of the agent channel against peers that behave, misbehave, lie and die (floor 2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.agent import jobs
from control.agent import lines as agent_lines
from control.agent.client import AgentClient
from control.agent.connection import ROOM_BYTES
from control.agent.frames import LINE_MARK
from control.agent.jobs import Job
from control.agent.lines import LineDecoder
from control.errors import AgentCallError, AgentProtocolError, WaitTimeout
from guest.agent.metrics import read_metrics

# -- lines -------------------------------------------------------------------------------------------------------------


def decode(data: bytes, cuts: list[int]) -> tuple[list[bytes], int]:
    decoder = LineDecoder()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    lines = [line for i in range(len(edges) - 1) for line in decoder.feed(data[edges[i] : edges[i + 1]])]
    return lines, decoder.dropped_lines


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b"\n"), st.just(b"x" * 20)), max_size=20).map(b"".join),
    st.lists(st.integers(0, 500), max_size=30),
)
def test_lines_do_not_depend_on_the_chunks(data: bytes, cuts: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_lines, "LINE_LIMIT_BYTES", 16)
        lines, dropped = decode(data, [])
        *whole, rest = data.split(b"\n")
        assert lines == [line for line in whole if len(line) <= 16]
        assert dropped == len([line for line in whole if len(line) > 16]) + (len(rest) > 16)
        assert decode(data, cuts) == (lines, dropped)


def test_an_endless_line_takes_bounded_memory_and_the_next_one_is_read() -> None:
    decoder = LineDecoder()
    for _ in range(256):
        assert list(decoder.feed(b"x" * 4_000_000)) == []
        assert len(decoder._partial) <= agent_lines.LINE_LIMIT_BYTES
    assert list(decoder.feed(b"\nnext\n")) == [b"next"]
    assert decoder.dropped_lines == 1


# -- the client --------------------------------------------------------------------------------------------------------

INFO = {
    "version": "1",
    "protocol": 1,
    "capabilities": ["streams"],
    "pid": 1,
    "boot_id": "b",
    "transport": "virtio-serial",
}


class Peer:
    """The guest's end: reads requests, answers as it is told."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self._received = b""

    async def read(self) -> Any:
        """The next line that is neither empty nor a frame, as JSON."""
        loop = asyncio.get_running_loop()
        while True:
            line, end, rest = self._received.partition(b"\n")
            if end:
                self._received = rest
                if line and line[0] != LINE_MARK:
                    return json.loads(line)
                continue
            chunk = await loop.sock_recv(self.connection, 65536)
            assert chunk, "the client hung up"
            self._received += chunk

    async def send(self, *values: Any) -> None:
        data = b"".join(value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n" for value in values)
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def answer(self, request: Any, result: Any) -> None:
        await self.send({"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def shake_hands(self) -> str:
        """Answer the `hello`; return its session."""
        request = await self.read()
        assert request["method"] == "hello"
        session = str(request["params"]["session"])
        await self.answer(request, {**INFO, "session": session})
        return session


class Desk:
    """A client that serves, its peer, and the notifications that came."""

    def __init__(
        self,
        client: AgentClient,
        peer: Peer,
        serving: asyncio.Task[None],
        notifications: list[tuple[str, object]],
    ) -> None:
        self.client, self.peer, self.serving, self.notifications = client, peer, serving, notifications


@contextlib.asynccontextmanager
async def open_desk(*, ready: bool = True) -> AsyncIterator[Desk]:
    ours, theirs = socket.socketpair()
    notifications: list[tuple[str, object]] = []

    async def take(method: str, params: object) -> None:
        notifications.append((method, params))

    client, peer = AgentClient(ours, take), Peer(theirs)
    serving = asyncio.create_task(client.serve())
    try:
        if ready:
            await peer.shake_hands()
            await client.wait_until_ready(5)
        async with asyncio.timeout(30):
            yield Desk(client, peer, serving, notifications)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        client.close()
        theirs.close()


async def test_the_handshake_comes_first_and_says_who_is_there() -> None:
    async with open_desk(ready=False) as desk:
        first = await asyncio.get_running_loop().sock_recv(desk.peer.connection, 1)
        assert first == b"\n", "whatever half line stands in the guest's buffer is ended"
        assert not desk.client.ready.is_set()
        await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)
        assert desk.client.info == {**INFO, "session": desk.client.info["session"]}


async def test_a_channel_that_is_dead_before_the_handshake_is_just_an_end() -> None:
    """QEMU was killed: that is reported by who watches its process, not as an error of the channel."""

    async def take(method: str, params: object) -> None: ...

    ours, theirs = socket.socketpair()
    theirs.close()
    client = AgentClient(ours, take)
    async with asyncio.timeout(5):
        await client.serve()
        client.shake_hands()
        with pytest.raises(AgentProtocolError, match="ended before an agent was there"):
            await client.wait_until_ready(600)
    client.close()


async def test_garbage_before_the_handshake_is_dropped() -> None:
    async with open_desk(ready=False) as desk:
        await desk.peer.send(b'lf of a line"}\n', b"\xff\xfe\0\n", {"jsonrpc": "2.0", "id": "old-1", "result": {}})
        await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)
        assert desk.client.dropped == 3
        assert desk.client.ready.is_set()


async def test_answers_out_of_order_reach_their_callers() -> None:
    async with open_desk() as desk:
        calls = [asyncio.create_task(desk.client.call("ping", {"n": n})) for n in range(20)]
        requests = [await desk.peer.read() for _ in calls]
        assert len({request["id"] for request in requests}) == 20
        for request in reversed(requests):
            await desk.peer.answer(request, request["params"]["n"])
        assert await asyncio.gather(*calls) == list(range(20))


async def test_two_clients_never_use_the_same_ids() -> None:
    ids = []
    for _ in range(2):
        async with open_desk() as desk:
            call = asyncio.create_task(desk.client.call("ping"))
            request = await desk.peer.read()
            ids.append(request["id"])
            await desk.peer.answer(request, {})
            await call
    assert len(set(ids)) == 2


HOSTILE = [
    b"\n",
    b"null\n",
    b"[]\n",
    b'"x"\n',
    b"{}\n",
    b'{"jsonrpc":"1.0","id":"x","result":1}\n',
    b'{"jsonrpc":"2.0"}\n',
    b'{"jsonrpc":"2.0","id":null,"result":1}\n',
    b'{"jsonrpc":"2.0","id":[],"result":1}\n',
    b'{"jsonrpc":"2.0","id":{"a":1},"error":7}\n',
    b'{"jsonrpc":"2.0","id":1e400,"result":1}\n',
    b'{"jsonrpc":"2.0","method":[],"params":1}\n',
    b'{"jsonrpc":"2.0","id":"x","method":"shutdown"}\n',
    b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b"}\n",
    b"[" * 100_000 + b"\n",
    b"\xff\xfe\xfd\n",
    b"\x00" * 100 + b"\n",
    b"x" * 1_500_000 + b"\n",
    b'{"a":' * 50_000 + b"\n",
]


@pytest.mark.parametrize("line", HOSTILE, ids=lambda line: repr(line[:40]))
async def test_a_hostile_line_changes_nothing(line: bytes) -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("ping"))
        request = await desk.peer.read()
        await desk.peer.send(line)
        await desk.peer.answer(request, {"still": "here"})
        assert await call == {"still": "here"}
        assert desk.client.dropped == (line != b"\n")
        assert desk.notifications == []


async def test_a_second_answer_is_counted_and_dropped() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("ping"))
        request = await desk.peer.read()
        await desk.peer.answer(request, 1)
        await desk.peer.answer(request, 2)
        assert await call == 1
        other = asyncio.create_task(desk.client.call("ping"))
        await desk.peer.answer(await desk.peer.read(), 3)
        assert await other == 3
        assert desk.client.dropped == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"error": {"code": -32601, "message": "no such method", "data": [1]}}, AgentCallError),
        ({"error": {"code": -32601}}, AgentCallError),
        ({"error": {"code": "x"}}, AgentProtocolError),
        ({"error": []}, AgentProtocolError),
        ({}, AgentProtocolError),
    ],
)
async def test_answers_that_are_errors(answer: dict[str, Any], kind: type[Exception]) -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("nothing"))
        request = await desk.peer.read()
        await desk.peer.send({"jsonrpc": "2.0", "id": request["id"], **answer})
        with pytest.raises(kind) as caught:
            await call
        if isinstance(caught.value, AgentCallError):
            assert (caught.value.method, caught.value.code) == ("nothing", -32601)
            assert caught.value.data == answer["error"].get("data")


async def test_a_huge_error_message_is_cut() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("nothing"))
        request = await desk.peer.read()
        error = {"code": 1, "message": "x" * 500_000}
        await desk.peer.send({"jsonrpc": "2.0", "id": request["id"], "error": error})
        with pytest.raises(AgentCallError) as caught:
            await call
        assert len(str(caught.value)) < 1000


async def test_when_the_guest_breaks_off_every_call_fails_at_once() -> None:
    async with open_desk() as desk:
        calls = [asyncio.create_task(desk.client.call("ping", timeout_s=600)) for _ in range(10)]
        for _ in calls:
            await desk.peer.read()
        desk.peer.connection.close()
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, AgentProtocolError) for outcome in outcomes)
        assert not desk.client.ready.is_set()
        with pytest.raises(AgentProtocolError):
            await desk.client.call("ping", timeout_s=600)


async def test_a_call_after_the_end_does_not_wait_for_its_deadline() -> None:
    """The write still works when the guest only stopped sending; nobody will ever read the answer."""
    async with open_desk() as desk:
        desk.peer.connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(2):
            await desk.serving
            with pytest.raises(AgentProtocolError):
                await desk.client.call("ping", timeout_s=600)


async def test_no_answer_in_time_says_so_is_cancelled_and_a_late_answer_is_dropped() -> None:
    async with open_desk() as desk:
        with pytest.raises(WaitTimeout, match="ping"):
            await desk.client.call("ping", timeout_s=0.05)
        request = await desk.peer.read()
        assert await desk.peer.read() == {"jsonrpc": "2.0", "method": "cancel", "params": {"id": request["id"]}}
        await desk.peer.answer(request, {})
        other = asyncio.create_task(desk.client.call("ping"))
        await desk.peer.answer(await desk.peer.read(), 2)
        assert await other == 2
        assert desk.client.dropped == 1


async def test_a_caller_that_is_cancelled_cancels_its_call() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("exec_command", timeout_s=600))
        request = await desk.peer.read()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert (await desk.peer.read())["params"] == {"id": request["id"]}


async def test_nobody_there_says_what_was_last_seen() -> None:
    async with open_desk(ready=False) as desk:
        with pytest.raises(WaitTimeout) as caught:
            await desk.client.wait_until_ready(0.05)
        assert "nothing came" in caught.value.evidence[0]
        await desk.peer.send(b"login: \x1b[2J\n")
        async with asyncio.timeout(5):
            while not desk.client.dropped:  # noqa: ASYNC110 - it has no event, and this is a test
                await asyncio.sleep(0)
        with pytest.raises(WaitTimeout) as caught:
            await desk.client.wait_until_ready(0.05)
        assert "login:" in caught.value.evidence[0]


async def test_a_restarted_guest_fails_its_calls_and_a_new_handshake_finds_the_next_agent() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("ping", timeout_s=600))
        old = await desk.peer.read()
        desk.client.forget_agent("the guest was restarted")
        with pytest.raises(AgentProtocolError, match="restarted"):
            await call
        assert not desk.client.ready.is_set()
        desk.client.shake_hands()
        await desk.peer.answer(old, "late")
        await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)
        assert desk.client.dropped == 1


async def test_a_cancelled_call_does_not_leave_half_a_line() -> None:
    """The guest does not read; a large request is half written when its caller is cancelled."""
    async with open_desk() as desk:
        big = asyncio.create_task(desk.client.call("exec_command", {"stdin": "x" * 3_000_000}))
        await asyncio.sleep(0)
        big.cancel()
        with pytest.raises(asyncio.CancelledError):
            await big
        call = asyncio.create_task(desk.client.call("ping"))
        assert (await desk.peer.read())["method"] == "exec_command"
        assert (await desk.peer.read())["method"] == "cancel"
        await desk.peer.answer(await desk.peer.read(), "whole")
        assert await call == "whole"


async def test_closing_while_a_line_is_half_written_leaves_nothing() -> None:
    async with open_desk() as desk:
        big = asyncio.create_task(desk.client.call("exec_command", {"stdin": "x" * 3_000_000}))
        await asyncio.sleep(0)
        big.cancel()
        with pytest.raises(asyncio.CancelledError):
            await big


async def test_a_guest_that_stands_still_costs_the_calls_of_that_time_only() -> None:
    """Paused with its port full: calls fail at their deadline; what had not gone is taken back; then all is well."""
    async with open_desk() as desk:
        with pytest.raises(WaitTimeout, match="exec_command") as caught:
            await desk.client.call("exec_command", {"stdin": "x" * 3_000_000}, timeout_s=0.05)
        assert "is it paused" in caught.value.evidence[0]
        for _ in range(3):
            with pytest.raises(WaitTimeout):
                await desk.client.call("system_info", timeout_s=0.01)
        kept = asyncio.create_task(desk.client.call("ping"))
        assert (await desk.peer.read())["method"] == "exec_command"
        assert (await desk.peer.read())["method"] == "cancel"
        request = await desk.peer.read()
        assert request["method"] == "ping", "what nobody waits for was never sent"
        await desk.peer.answer(request, "again")
        assert await kept == "again"


async def test_what_waits_for_a_guest_that_stands_still_is_bounded() -> None:
    async with open_desk() as desk:
        calls = [asyncio.create_task(desk.client.call("x", {"data": "x" * 500_000}, timeout_s=0.2)) for _ in range(50)]
        await asyncio.sleep(0.1)
        assert desk.client._outbox.waiting_bytes < 2 * ROOM_BYTES
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, WaitTimeout) for outcome in outcomes)
        assert desk.client._outbox.waiting_bytes < 600_000, "only the line that has begun to go is left"


async def test_notifications_arrive_in_order() -> None:
    async with open_desk() as desk:
        await desk.peer.send(*({"jsonrpc": "2.0", "method": "message", "params": n} for n in range(50)))
        call = asyncio.create_task(desk.client.call("ping"))
        await desk.peer.answer(await desk.peer.read(), {})
        await call
        assert desk.notifications == [("message", n) for n in range(50)]


async def flood(take: Callable[[str, object], Awaitable[None]], seconds: float, *, line: bytes) -> tuple[float, int]:
    """Serve a guest that sends `line` without end for `seconds`; return how late the clock was, and what arrived."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()
    sent = 0

    def send() -> None:
        nonlocal sent
        block = line * (262144 // len(line))
        with theirs, contextlib.suppress(OSError):
            while not stop.is_set():
                sent += theirs.send(block)

    client = AgentClient(ours, take)
    guest = threading.Thread(target=send)
    guest.start()
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await client.serve()
        return loop.time() - started - seconds, sent
    finally:
        stop.set()
        ours.shutdown(socket.SHUT_RDWR)
        client.close()
        guest.join()


async def test_a_flood_of_notifications_does_not_stop_the_clock() -> None:
    count = 0

    async def take(method: str, params: object) -> None:
        nonlocal count
        count += 1

    late, _ = await flood(take, 0.3, line=b'{"jsonrpc":"2.0","method":"message","params":{}}\n')
    assert count > 1000
    assert late < 0.5


async def test_a_listener_that_stands_still_slows_the_guest() -> None:
    """Nothing is read ahead of what was taken, so memory stays bounded whatever the guest sends."""

    async def take(method: str, params: object) -> None:
        await asyncio.get_running_loop().create_future()

    _, sent = await flood(take, 0.3, line=b'{"jsonrpc":"2.0","method":"message","params":{}}\n')
    assert sent < 4 * 1024 * 1024


async def test_another_agent_behind_the_same_port_is_noticed() -> None:
    """QEMU may report a port that was closed and opened again within a second as open only: its session then tells.

    So does that of an agent which a restored snapshot put back into an earlier session.
    """
    async with open_desk() as desk:
        lost = asyncio.create_task(desk.client.call("exec_command", timeout_s=30))
        assert (await desk.peer.read())["method"] == "exec_command"
        desk.client.shake_hands()
        desk.client.shake_hands()
        question = await desk.peer.read()
        assert question["method"] == "get_agent_info"
        await desk.peer.answer(question, {**INFO, "session": "of an earlier time"})
        with pytest.raises(AgentProtocolError, match="snapshot, before it answered exec_command"):
            await lost
        await desk.peer.shake_hands()
        await desk.client.wait_until_ready(5)


async def test_the_same_agent_keeps_its_calls() -> None:
    async with open_desk() as desk:
        kept = asyncio.create_task(desk.client.call("exec_command", timeout_s=30))
        asked = await desk.peer.read()
        desk.client.shake_hands()
        await desk.peer.answer(await desk.peer.read(), {**INFO, "session": desk.client.info["session"]})
        await desk.peer.answer(asked, "kept")
        assert await kept == "kept"


async def test_an_agent_that_knows_no_hello_is_named_at_once() -> None:
    async with open_desk(ready=False) as desk:
        request = await desk.peer.read()
        await desk.peer.send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}})
        with pytest.raises(AgentProtocolError, match="too old"):
            await desk.client.wait_until_ready(600)


# -- batches -----------------------------------------------------------------------------------------------------------


async def test_a_thousand_calls_go_in_one_line() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call_many([("ping", {"n": n}) for n in range(1001)]))
        batch = await desk.peer.read()
        assert len(batch) == 1000
        answers: list[Any] = [{"jsonrpc": "2.0", "id": one["id"], "result": one["params"]["n"]} for one in batch]
        answers[7] = {"jsonrpc": "2.0", "id": batch[7]["id"], "error": {"code": -32004, "message": "busy"}}
        answers += [None, [answers[0]], {"jsonrpc": "2.0", "id": "made up", "result": 1}]
        await desk.peer.send(answers[::-1])
        (last,) = await desk.peer.read()
        await desk.peer.send([{"jsonrpc": "2.0", "id": last["id"], "result": 1000}])
        results = await call
        assert isinstance(results[7], AgentCallError)
        assert [result for n, result in enumerate(results) if n != 7] == [n for n in range(1001) if n != 7]
        assert desk.client.dropped == 3


async def test_a_batch_that_is_not_answered_is_cancelled() -> None:
    async with open_desk() as desk:
        with pytest.raises(WaitTimeout):
            await desk.client.call_many([("ping", {}), ("ping", {})], timeout_s=0.05)
        batch = await desk.peer.read()
        assert [(await desk.peer.read())["params"]["id"] for _ in batch] == [one["id"] for one in batch]


async def test_a_request_that_fits_on_no_line_is_not_sent() -> None:
    async with open_desk() as desk:
        with pytest.raises(AgentCallError, match="a line at most"):
            await desk.client.call("x", {"data": "x" * 4_200_000})
        call = asyncio.create_task(desk.client.call("ping"))
        await desk.peer.answer(await desk.peer.read(), 1)
        assert await call == 1


# -- jobs --------------------------------------------------------------------------------------------------------------


async def start(desk: Desk, number: object = 5, *more: Any, method: str = "metrics_watch", **known: Any) -> Job:
    starting = asyncio.create_task(desk.client.start_job(method, {}))
    request = await desk.peer.read()
    await desk.peer.send({"jsonrpc": "2.0", "id": request["id"], "result": {"job": number, **known}}, *more)
    return await starting


def notify(method: str, params: object) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params}


def done(number: object, **outcome: Any) -> dict[str, Any]:
    return notify("job_done", {"job": number, **outcome})


def changed(number: object, path: str) -> dict[str, Any]:
    return notify("file_changed", {"job": number, "changes": [{"change": "created", "path": path}]})


async def test_a_job_whose_end_comes_with_its_answer() -> None:
    async with open_desk() as desk:
        event = notify("metrics", {"job": 5, "sequence": 1, "metrics": read_metrics()})
        job = await start(desk, 5, event, done(5, result={"sent": 1}), done(5, result={"sent": 1}))
        assert await job.wait(5) == {"sent": 1}
        assert [event["sequence"] async for event in job.events()] == [1]
        await start(desk, 6)
        assert desk.client.dropped == 1, "the second end of the same job"


async def test_a_job_that_fails() -> None:
    async with open_desk() as desk:
        job = await start(desk, 5, done(5, error={"code": -32006, "message": "cancelled", "data": {"pid": 1}}))
        with pytest.raises(AgentCallError, match="cancelled") as caught:
            await job.wait(5)
        assert (caught.value.code, caught.value.data) == (-32006, {"pid": 1})


async def test_a_job_is_lost_with_its_guest() -> None:
    async with open_desk() as desk:
        job = await start(desk)
        desk.peer.connection.close()
        with pytest.raises(AgentProtocolError, match="before metrics_watch ended"):
            await job.wait(5)


@pytest.mark.parametrize("number", [None, "5", True, 1.5, [5]])
async def test_a_job_without_a_number_is_an_error(number: object) -> None:
    async with open_desk() as desk:
        with pytest.raises(AgentProtocolError, match="names no job"):
            await start(desk, number)


async def test_two_jobs_with_one_number_are_an_error() -> None:
    async with open_desk() as desk:
        await start(desk, 5)
        with pytest.raises(AgentProtocolError, match="names no job"):
            await start(desk, 5)


async def test_a_job_whose_caller_has_gone_is_cancelled_when_it_turns_up() -> None:
    async with open_desk() as desk:
        with pytest.raises(WaitTimeout):
            await desk.client.start_job("exec_start", {}, timeout_s=0.05)
        request = await desk.peer.read()
        assert (await desk.peer.read())["method"] == "cancel"
        await desk.peer.answer(request, {"job": 9})
        assert await desk.peer.read() == {"jsonrpc": "2.0", "method": "job_cancel", "params": {"job": 9}}


async def test_events_that_nobody_reads_take_bounded_memory() -> None:
    async with open_desk() as desk:
        job = await start(desk, method="file_watch", directories=1)
        gone = {"code": -32002, "message": "it was removed"}
        await desk.peer.send(*(changed(5, str(n)) for n in range(5000)), done(5, error=gone))
        with pytest.raises(AgentCallError, match="removed"):
            await job.wait(5)
        seen = []
        with pytest.raises(AgentCallError, match="removed"):
            async for event in job.events():
                seen.append(event["changes"][0]["path"])
        assert seen == [str(n) for n in range(5000 - jobs.KEPT_EVENTS, 5000)]
        assert job.missed == 5000 - jobs.KEPT_EVENTS


# -- what the schemas do not know --------------------------------------------------------------------------------------

HALF = "\ud800"
DEEP: Any = json.loads("[" * 900 + "]" * 900)
EXIT = {"exit_code": 0, "signal": None, "timed_out": False, "seconds": 1}


async def is_well(desk: Desk) -> bool:
    """Whether the channel still carries a call and a job to its end."""
    call = asyncio.create_task(desk.client.call("ping"))
    await desk.peer.answer(await desk.peer.read(), "here")
    job = await start(desk, 77, done(77, result={"sent": 3}))
    return (await call, await job.wait(5)) == ("here", {"sent": 3})


@pytest.mark.parametrize(
    "outcome",
    [
        {},
        {"result": None},
        {"result": []},
        {"result": {}},
        {"result": EXIT, "error": {"code": -32006, "message": "cancelled"}},
        {"result": {**EXIT, "more": 1}},
        {"result": {**EXIT, "exit_code": None}},
        {"result": {**EXIT, "signal": 9}},
        {"result": {**EXIT, "exit_code": 256}},
        {"result": {**EXIT, "exit_code": True}},
        {"result": {**EXIT, "seconds": float("nan")}},
        {"result": {**EXIT, "seconds": float("inf")}},
        {"result": {**EXIT, "seconds": 10**400}},
        {"result": {**EXIT, "seconds": DEEP}},
        {"result": {**EXIT, "timed_out": HALF}},
        {"result": {**EXIT, HALF: 1}},
        {"error": None},
        {"error": {"code": "-32006", "message": "cancelled"}},
        {"error": {"code": 7, "message": "cancelled"}},
        {"error": {"code": -32006, "message": 7}},
        {"error": {"code": -32006, "message": "x" * 2000}},
        {"error": {"code": -32006, "message": "cancelled", "data": [1] * 300_000}},
        {"result": EXIT, "session": "x"},
    ],
    ids=lambda outcome: repr(outcome)[:60],
)
async def test_an_end_that_is_none_is_one_error_for_its_job(outcome: dict[str, Any]) -> None:
    async with open_desk() as desk:
        other = await start(desk, 6)
        job = await start(desk, 5, done(5, **outcome), method="exec_start", pid=1)
        with pytest.raises(AgentProtocolError, match="end of exec_start is none"):
            await job.wait(5)
        assert not other.ended.done()
        assert await is_well(desk)
        assert desk.client.dropped == 0


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"changes": []},
        {"changes": [{"change": "moved", "path": "a"}]},
        {"changes": [{"change": "exploded", "path": "a"}]},
        {"changes": [{"change": "created", "path": "a" * 70_000}]},
        {"changes": [1] * 300_000},
        {"changes": DEEP},
    ],
    ids=lambda params: repr(params)[:60],
)
async def test_a_notification_that_is_none_ends_its_job_on_both_sides(params: dict[str, Any]) -> None:
    async with open_desk() as desk:
        job = await start(desk, 5, changed(5, "a"), method="file_watch", directories=1)
        await desk.peer.send(notify("file_changed", {"job": 5, **params}), changed(5, "b"))
        started = asyncio.get_running_loop().time()
        with pytest.raises(AgentProtocolError, match="notification file_changed is none"):
            await job.wait(5)
        assert asyncio.get_running_loop().time() - started < 2, "what is wrong with it was not all listed"
        assert await desk.peer.read() == notify("job_cancel", {"job": 5})
        assert await is_well(desk)
        assert desk.client.dropped == 1, "what came for the job after it had ended"
        events = job.events()
        assert (await anext(events))["changes"][0]["path"] == "a"
        with pytest.raises(AgentProtocolError):
            await anext(events)


@pytest.mark.parametrize(
    "notification",
    [
        notify("job_done", None),
        notify("job_done", []),
        notify("job_done", {"job": None, "result": {}}),
        notify("job_done", {"job": 5.0, "result": {"sent": 1}}),
        notify("job_done", {"job": 99, "result": {}}),
        notify("file_changed", {"job": 5, "changes": [{"change": "created", "path": "a"}]}),
        notify("no_such_thing", {"job": 5}),
        notify("no_such_thing", {}),
        notify("bulk_broken", None),
        notify("bulk_broken", {"reason": 7}),
        notify("bulk_broken", {"reason": "x" * 1025}),
        notify("bulk_broken", {"reason": "x", "session": 1}),
    ],
    ids=repr,
)
async def test_a_notification_about_nothing_is_counted_and_dropped(notification: dict[str, Any]) -> None:
    async with open_desk() as desk:
        job = await start(desk, 5, notification)
        session = desk.client.info["session"]
        assert await is_well(desk)
        assert desk.client.dropped == 1 and desk.notifications == []
        assert not job.ended.done() and desk.client.info["session"] == session and desk.client.ready.is_set()


async def test_half_a_character_is_a_question_mark() -> None:
    async with open_desk() as desk:
        call = asyncio.create_task(desk.client.call("ping"))
        request = await desk.peer.read()
        await desk.peer.answer(request, {HALF: ["a" + HALF, "\U0001f600"]})
        assert await call == {"?": ["a?", "\U0001f600"]}
        job = await start(desk, 5, changed(5, HALF), method="file_watch", directories=1)
        assert (await anext(job.events()))["changes"][0]["path"] == "?"
        await desk.peer.send(b'{"jsonrpc":"2.0","method":"message","params":"\xed\xa0\x80"}\n')
        assert await is_well(desk)
        assert desk.client.dropped == 1 and desk.notifications == [], "a line is UTF-8"


async def test_a_job_whose_beginning_is_none_is_an_error_and_is_ended() -> None:
    async with open_desk() as desk:
        with pytest.raises(AgentProtocolError, match=r"answer to exec_start is none.*pid"):
            await start(desk, 5, method="exec_start", pid="1")
        assert await desk.peer.read() == notify("job_cancel", {"job": 5})
        await desk.peer.send(done(5, result=EXIT))
        assert await is_well(desk)


async def test_an_agent_that_says_nothing_of_itself_is_named_at_once() -> None:
    async with open_desk(ready=False) as desk:
        request = await desk.peer.read()
        await desk.peer.answer(request, {**INFO, "session": "x"})
        with pytest.raises(AgentProtocolError, match="answer to hello is none"):
            await desk.client.wait_until_ready(5)
        assert not desk.client.ready.is_set()
