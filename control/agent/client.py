"""Calls methods of the guest agent over JSON-RPC 2.0 (floor 2); handed connected sockets by `control.vm`.

The guest is not trusted: lines are bounded, answers nobody asked for are counted and dropped, and a guest that is lost
fails every pending call, job and stream at once. One that stands still fails those whose deadline comes, and nothing
else: it may be running again the next moment. The rules of the wire are in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from control.agent.connection import ENDED, Connection, Outbox, Receiver
from control.agent.contract import check_notification, check_result, prepare_job
from control.agent.frames import LINE_MARK
from control.agent.jobs import Job, build_call_error
from control.agent.lines import LineDecoder
from control.agent.notices import Notices
from control.agent.patience import TimeLimit
from control.agent.streams import Streams
from control.errors import AgentCallError, AgentProtocolError, ControlError, WaitTimeout
from control.log import LOG

DEFAULT_TIMEOUT_S = 30.0
NOTIFY_TIMEOUT_S = 10.0
"""How long a notification waits for a guest that does not read; it is lost without harm."""

REQUEST_LIMIT_BYTES = 4 * 1024 * 1024
BATCH_LIMIT = 1000
BATCH_BYTES = 1024 * 1024
ASK_AGAIN_S = 2.0
"""How often an agent is asked for on a line that loses what is sent before somebody listens."""

ASK_AGAIN_LIMIT_S = 30.0

BROKEN_PAUSE_S = 0.1
BROKEN_PAUSE_LIMIT_S = 10.0
"""A guest that breaks its streams again and again is given a new session after a longer pause each time."""

REOPENED_S = 1.0
"""For so long QEMU may keep what became of a port to itself, and then tells of its last state only: of a port that was
closed and opened again, with what waited in it lost, that it is open. Source: QEMU, monitor/monitor.c, the rate limit
of VSERPORT_CHANGE."""

ABANDONED_LIMIT = 1024
NO_SUCH_METHOD = -32601

Notification = Callable[[str, object], Awaitable[None]]
"""Told of the guest's `message`s, one at a time; when many wait for it the guest has to wait. It may ask the guest
something itself. What they hold is not checked yet; `control.wire.message.read_envelope` does that."""


@dataclass
class _Pending:
    """A call that waits for its answer.

    Attributes:
        record: What of it had not gone when it was sent; see `Outbox.withdraw`.
        taken: Its caller has its answer, and did not go in the very moment it came.
    """

    id: str
    method: str
    answer: asyncio.Future[Any]
    begins_job: bool
    record: memoryview | None = None
    taken: bool = False


class AgentClient:
    """The host's end of one agent channel. `serve()` must run while calls are made.

    Args:
        bulk: The connection for streams; without it they share the first one, as lines.
        frame_bytes: How much of a stream goes at once; on a slow line calls wait behind it.
        may_lose: What is sent before the agent listens may be lost, as on a serial line; it is then asked for again.

    Attributes:
        info: What the agent said of itself at the handshake; empty before.
        ready: Set while an agent that finished the handshake is there.
        dropped: How many lines from the guest were of no use: not JSON, too long, or an answer to nothing.
    """

    def __init__(
        self,
        connection: Connection,
        on_notification: Notification,
        *,
        bulk: Connection | None = None,
        frame_bytes: int = 0,
        may_lose: bool = False,
    ) -> None:
        connection.setblocking(False)
        if bulk is not None:
            bulk.setblocking(False)
        self._connection = connection
        self._bulk = bulk
        self._may_lose = may_lose
        self._notices = Notices(on_notification)
        self._outbox = Outbox(connection)
        self._bulk_outbox = self._outbox if bulk is None else Outbox(bulk)
        self._streams = Streams(
            self._bulk_outbox, as_lines=bulk is None, frame_bytes=frame_bytes, on_broken=self._take_broken
        )
        self._pending: dict[str, _Pending] = {}
        self._abandoned: dict[str, None] = {}
        self._given_up: set[str] = set()  # in the session before: an answer that comes late is no fault of the guest's
        self._jobs: dict[int, Job] = {}
        # An identity no earlier connection can have used: late answers to those are then recognised and dropped.
        self._prefix = secrets.token_hex(6)
        self._count = 0
        self._session = ""
        self._hello: asyncio.Future[Any] | None = None
        self._check: asyncio.Task[None] | None = None
        self._doubt: asyncio.TimerHandle | None = None
        self._broken = 0
        self._again: asyncio.TimerHandle | None = None
        self._lines = LineDecoder()
        self._useless = 0
        self._last_line = b""
        self._refusal: ControlError | None = None
        self._changed: asyncio.Future[None] | None = None
        self.info: Mapping[str, Any] = {}
        self.ready = asyncio.Event()

    @property
    def dropped(self) -> int:
        return self._useless + self._lines.dropped_lines

    @property
    def is_busy(self) -> bool:
        """Whether an answer is waited for, or a job is under way."""
        return bool(self._pending or self._jobs)

    @property
    def streams(self) -> Streams:
        """The streams of this session, for what is built on them."""
        return self._streams

    def close(self) -> None:
        """Hang up; call it when `serve` has come to its end."""
        self._connection.close()
        if self._bulk is not None:
            self._bulk.close()

    async def serve(self) -> None:
        """Shake hands as soon as an agent is there, then receive until the channel ends; every pending call then
        fails.
        """
        others = [asyncio.create_task(self._serve_bulk(self._bulk))] if self._bulk is not None else []
        if self._may_lose:
            others.append(asyncio.create_task(self._ask_again()))
        telling = asyncio.create_task(self._notices.run())
        receiving = asyncio.create_task(self._receive())
        others += [telling, receiving]
        try:
            self._begin_session("the host began anew")
            await asyncio.wait((telling, receiving), return_when=asyncio.FIRST_COMPLETED)
            self._end()
            if not telling.done():
                last_words = asyncio.create_task(self._notices.drain())
                others.append(last_words)
                await asyncio.wait((telling, last_words), return_when=asyncio.FIRST_COMPLETED)
            for task in (telling, receiving):
                if task.done():
                    task.result()
        finally:
            self._end()
            if self._check is not None:
                others.append(self._check)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _receive(self) -> None:
        receiver = Receiver(self._connection)
        try:
            while chunk := await receiver.receive():
                for line in self._lines.feed(bytes(chunk)):
                    await self._take_line(line)
        except OSError as error:
            LOG.debug("agent channel: %s", error)
        finally:
            receiver.close()

    async def _serve_bulk(self, bulk: Connection) -> None:
        receiver = Receiver(bulk)
        try:
            while chunk := await receiver.receive():
                self._streams.feed(chunk)
        except OSError as error:
            LOG.debug("agent streams: %s", error)
        finally:
            receiver.close()
            self._bulk_outbox.end()
            self._streams.fail("the channel for the guest's streams has ended")

    def _end(self) -> None:
        self._outbox.end()
        for timer in (self._again, self._doubt):
            if timer is not None:
                timer.cancel()
        self.ready.clear()
        self._fail_all(ENDED)
        self._tell_changed()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def call(
        self, method: str, params: Mapping[str, Any] | None = None, *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> Any:
        """Call `method` and return its result; when its caller gives up, or is cancelled, the guest is told to stop.

        Raises:
            AgentCallError: The agent answered with an error.
            AgentProtocolError: The channel ended, or the agent was restarted, before it answered.
            WaitTimeout: No answer within `timeout_s`; the agent was told to stop what it began.
        """
        return await self._call(method, params or {}, timeout_s, begins_job=False)

    async def start_job(
        self, method: str, params: Mapping[str, Any], *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> Job:
        """Call a `method` that begins a job, and return the job; `timeout_s` is for its beginning.

        Raises:
            AgentCallError, AgentProtocolError, WaitTimeout: As `call`; no job is left behind.
            FileNotFoundError: `method` begins no job; nothing was sent.
        """
        prepare_job(method)
        job: Job = await self._call(method, params, timeout_s, begins_job=True)
        try:
            check_result(method, job.answer)
        except AgentProtocolError as error:
            job.cancel()
            job.fail(error)
            raise
        return job

    async def call_many(
        self, calls: Iterable[tuple[str, Mapping[str, Any]]], *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> list[Any]:
        """Make many calls at once, as batches of JSON-RPC 2.0; return their results in order.

        Not for methods that begin a job: nobody would hear of its end; see `start_job`.

        A call that the agent answers with an error leaves its AgentCallError in the list.

        Raises:
            AgentProtocolError: The channel ended before all were answered.
            WaitTimeout: Not all were answered within `timeout_s`; the others were cancelled in the guest.
        """
        waiting: list[_Pending] = []
        try:
            async with TimeLimit(timeout_s):
                for batch in _cut_batches(calls):
                    waiting += await self._send_batch(batch)
                answers = [pending.answer for pending in waiting]
                return [await _result_or_error(answer) for answer in answers]
        except TimeoutError:
            raise self._time_out(f"{len(waiting)} calls", timeout_s) from None
        finally:
            for pending in waiting:
                self._give_up(pending)

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification; nothing comes back.

        Raises:
            AgentProtocolError: The channel has ended, or the guest has not read for a while.
        """
        try:
            async with asyncio.timeout(NOTIFY_TIMEOUT_S):
                await self._outbox.wait_for_room()
        except TimeoutError:
            raise AgentProtocolError("the guest does not read from the agent's port") from None
        self._outbox.send(_encode({"jsonrpc": "2.0", "method": method, "params": params}))

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until an agent is there.

        Raises:
            AgentProtocolError: The channel has ended, or what is there is no agent of ours.
            WaitTimeout: None came within `timeout_s`.
        """
        try:
            async with TimeLimit(timeout_s):
                while not self.ready.is_set():
                    if self._outbox.ended:
                        raise AgentProtocolError(f"{ENDED} before an agent was there", hint=self._hint())
                    if self._refusal is not None:
                        raise self._refusal
                    if self._changed is None:
                        self._changed = asyncio.get_running_loop().create_future()
                    await asyncio.shield(self._changed)
        except TimeoutError:
            raise WaitTimeout(
                "the guest agent",
                timeout_s,
                last_seen=self._last_seen() or ("nothing came over its port",),
                hint="does the guest run the agent? The built-in image does",
            ) from None

    async def _call(self, method: str, params: Mapping[str, Any], timeout_s: float | None, *, begins_job: bool) -> Any:
        pending: _Pending | None = None
        try:
            async with TimeLimit(timeout_s):
                if not self._outbox.has_room:
                    await self._outbox.wait_for_room()
                pending = self._send_request(method, params, begins_job=begins_job)
                answer = await pending.answer
                pending.taken = True
                return answer
        except TimeoutError:
            raise self._time_out(f"the guest agent's answer to {method}", timeout_s) from None
        finally:
            if pending is not None:
                self._give_up(pending)

    def _send_request(
        self, method: str, params: Mapping[str, Any], *, begins_job: bool = False, before: bytes = b""
    ) -> _Pending:
        pending = self._make_pending(method, begins_job=begins_job)
        request = {"jsonrpc": "2.0", "id": pending.id, "method": method, "params": params}
        line = before + _encode(request)
        if len(line) > REQUEST_LIMIT_BYTES:
            raise AgentCallError(
                f"{method}: the request has {len(line)} bytes, a line at most {REQUEST_LIMIT_BYTES}",
                method=method,
                code=-32001,
                hint="large data goes through put, get, or the stdin of exec",
            )
        pending.record = self._outbox.send(line)
        self._pending[pending.id] = pending
        return pending

    async def _send_batch(self, batch: list[tuple[str, Mapping[str, Any]]]) -> list[_Pending]:
        await self._outbox.wait_for_room()
        made = [self._make_pending(method, begins_job=False) for method, _ in batch]
        requests = [
            {"jsonrpc": "2.0", "id": pending.id, "method": pending.method, "params": params}
            for pending, (_, params) in zip(made, batch, strict=True)
        ]
        self._outbox.send(_encode(requests))
        self._pending.update((pending.id, pending) for pending in made)
        return made

    def _make_pending(self, method: str, *, begins_job: bool) -> _Pending:
        self._count += 1
        return _Pending(f"{self._prefix}-{self._count}", method, asyncio.get_running_loop().create_future(), begins_job)

    def _give_up(self, pending: _Pending) -> None:
        """Have a call stopped that nobody waits for any more; nothing when it has been answered."""
        if self._pending.pop(pending.id, None) is None or self._outbox.ended:
            if pending.begins_job and not pending.taken and _has_result(pending.answer):
                pending.answer.result().cancel()
            return
        if pending.record is not None and self._outbox.withdraw(pending.record):
            return
        if pending.begins_job:
            # Its answer may be on its way already, and with it a job that nobody knows.
            self._abandoned[pending.id] = None
            if len(self._abandoned) > ABANDONED_LIMIT:
                del self._abandoned[next(iter(self._abandoned))]
        self._tell("cancel", {"id": pending.id})

    def _cancel_job(self, number: int) -> None:
        self._tell("job_cancel", {"job": number})

    def _tell(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification of our own; on a channel that has ended there is nobody to tell."""
        if not self._outbox.ended:
            try:
                self._outbox.send(_encode({"jsonrpc": "2.0", "method": method, "params": params}))
            except AgentProtocolError as error:
                LOG.debug("%s: %s", method, error)

    def _time_out(self, waited_for: str, timeout_s: float | None) -> WaitTimeout:
        stuck = self._outbox.waiting_bytes
        unread = (f"the guest has {stuck} bytes from its port still to read: is it paused?",) if stuck else ()
        return WaitTimeout(waited_for, timeout_s or 0.0, last_seen=(*unread, *self._last_seen()))

    # -- sessions --------------------------------------------------------------------------------------------------

    def forget_agent(self, why: str) -> None:
        """Forget the agent that was there, for the guest was reset or closed its port: its answers will not come."""
        self.ready.clear()
        self._hello = None
        self._fail_all(why)

    def shake_hands(self, *, resumed: bool = False) -> None:
        """See to it that there is a session with the agent that is there now.

        Call it when the port was opened, and when the guest runs again: it may be another agent, or the same one put
        back into an earlier session by a snapshot. A question that waits in the port already is asked again only when
        no answer comes: the port may have been closed meanwhile, unnoticed, and the question lost with that.
        On a channel that has ended nothing happens: `serve` comes to its end, and that is told to who waits.

        Args:
            resumed: The guest stood still: what it had taken before that may be undone, so a question is asked again.
        """
        if self._outbox.ended:
            return
        if self.ready.is_set():
            if self._check is not None:
                self._check.cancel()
            self._check = asyncio.create_task(self._compare_session())
        elif resumed or self._hello is None or self._hello.done():
            self._begin_session("the guest agent was restarted")
        else:
            if self._doubt is not None:
                self._doubt.cancel()
            loop = asyncio.get_running_loop()
            self._doubt = loop.call_later(REOPENED_S, self._ask_if_unanswered, self._hello)

    def _ask_if_unanswered(self, hello: asyncio.Future[Any]) -> None:
        if hello is self._hello and not hello.done():
            self._begin_session("the guest agent was restarted")

    async def _compare_session(self) -> None:
        session = self._session
        try:
            # The newline ends half a line that a snapshot may have brought back into the guest's buffer.
            self._outbox.send(b"\n")
            info = await self.call("get_agent_info")
        except ControlError as error:
            LOG.debug("agent session: %s", error)  # lost, or standing still: what happens next will be followed too
            return
        if session == self._session and not (isinstance(info, dict) and info.get("session") == session):
            self._begin_session("the guest agent was restarted, or put back by a snapshot,")

    def _begin_session(self, why: str) -> None:
        """Leave everything of the session before behind, and ask the agent for a new one."""
        self.ready.clear()
        self._refusal = None
        self._fail_all(why)
        self._session = secrets.token_hex(16)
        self._outbox.clear()
        self._streams.begin(self._session)
        try:
            # The newline ends whatever half line an earlier client of ours left in the guest's buffer.
            pending = self._send_request("hello", {"session": self._session}, before=b"\n")
        except AgentProtocolError as error:
            LOG.debug("agent handshake: %s", error)
            return
        self._hello = pending.answer
        self._hello.add_done_callback(self._end_handshake)

    def _end_handshake(self, answer: asyncio.Future[Any]) -> None:
        if answer is not self._hello or answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, AgentCallError):
            self._refusal = AgentProtocolError(
                f"the guest's agent is not one of ours, or too old: {error}",
                hint="install the agent of this version in the guest" if error.code == NO_SUCH_METHOD else "",
            )
        elif error is None:
            try:
                self.info = check_result("hello", answer.result())
            except AgentProtocolError as fault:
                self._refusal = fault
            else:
                self._greet(self.info)
                self.ready.set()
        self._tell_changed()

    def _greet(self, info: Mapping[str, Any]) -> None:
        if "streams" in info["capabilities"]:
            self._streams.greet()
        else:
            self._streams.why_not = "this guest has no port for streams (org.unhinged.bulk.0)"

    async def _ask_again(self) -> None:
        pause_s = ASK_AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            if self.ready.is_set():
                pause_s = ASK_AGAIN_S
            else:
                self._begin_session("nobody listened")
                # Asked anew, an answer to what was asked before counts no more: a slow guest must get its turn.
                pause_s = min(2 * pause_s, ASK_AGAIN_LIMIT_S)

    def _take_broken(self, why: str) -> None:
        """The guest's streams broke, by its fault or ours: begin anew, not too often."""
        LOG.debug("agent streams: %s", why)
        self._streams.fail(f"the guest's streams broke: {why}")
        if self._again is None and not self._outbox.ended:
            pause_s = min(BROKEN_PAUSE_S * 2**self._broken, BROKEN_PAUSE_LIMIT_S)
            self._broken += 1
            self._again = asyncio.get_running_loop().call_later(pause_s, self._begin_again, why)

    def _begin_again(self, why: str) -> None:
        self._again = None
        self._begin_session(f"the guest's streams broke ({why})")

    def _fail_all(self, why: str) -> None:
        hint = self._hint()
        for pending in list(self._pending.values()):
            if not pending.answer.done():
                pending.answer.set_exception(
                    AgentProtocolError(f"{why} before it answered {pending.method}", hint=hint)
                )
                pending.answer.exception()  # whether or not somebody still waits for it
        self._given_up = set(self._pending)
        self._pending.clear()
        self._abandoned.clear()
        jobs = list(self._jobs.values())
        self._jobs.clear()
        for job in jobs:
            job.fail(AgentProtocolError(f"{why} before {job.method} ended", hint=hint))
        self._streams.fail(why)

    def _tell_changed(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def _last_seen(self) -> tuple[str, ...]:
        last_line = self._last_line.decode("utf-8", "replace")[:200]
        return (f"last line on its port: {last_line}",) if last_line else ()

    def _hint(self) -> str:
        return "".join(self._last_seen())

    # -- from the guest --------------------------------------------------------------------------------------------

    async def _take_line(self, line: bytes) -> None:
        if not line:
            return
        if line[0] == LINE_MARK:
            if self._bulk is None:
                self._streams.take_line(line)
            else:
                self._useless += 1
            return
        self._last_line = line[:400]
        try:
            value = _decode(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list):
            for answer in value or (None,):
                self._take_answer(answer)
        elif isinstance(value, dict) and isinstance(value.get("method"), str) and "id" not in value:
            if value.get("jsonrpc") == "2.0":
                await self._take_notification(value["method"], value.get("params"), len(line))
            else:
                self._useless += 1
        else:
            self._take_answer(value)

    async def _take_notification(self, method: str, params: object, size: int) -> None:
        if method == "message":
            if self._may_lose and _says_ready(params) and self.ready.is_set():
                self._begin_session("the guest agent was restarted")
            await self._notices.put(method, params, size)
        elif method == "bulk_broken":
            self._take_bulk_broken(params)
        else:
            self._take_job_news(method, params)

    def _take_bulk_broken(self, params: object) -> None:
        if self._hello is None or not self._hello.done():
            # The guest keeps it for whoever comes next: the streams that broke were those of a session before.
            self._useless += 1
            return
        try:
            reason = check_notification("bulk_broken", params)["reason"]
        except AgentProtocolError as error:
            LOG.debug("agent channel: %s", error)
            self._useless += 1
        else:
            self._take_broken(reason[:200])

    def _take_job_news(self, method: str, params: object) -> None:
        number = params.get("job") if isinstance(params, dict) else None
        job = self._jobs.get(number) if type(number) is int else None
        if job is None or not isinstance(params, dict) or not job.knows(method):
            self._useless += 1
            return
        job.take(method, params)
        if job.ended.done():
            del self._jobs[job.number]
            if method != "job_done":
                # It was ended for what it told; in the guest it still runs.
                self._cancel_job(job.number)

    def _take_answer(self, value: object) -> None:
        request_id = value.get("id") if isinstance(value, dict) and value.get("jsonrpc") == "2.0" else None
        pending = self._pending.pop(request_id, None) if isinstance(request_id, str) else None
        if pending is None or not isinstance(value, dict):
            if isinstance(request_id, str) and request_id in self._given_up:
                self._given_up.discard(request_id)
            else:
                self._useless += 1
            self._cancel_abandoned(request_id, value)
        elif pending.begins_job and "result" in value:
            self._take_job(pending, value["result"])
        else:
            _settle(pending.answer, pending.method, value)

    def _take_job(self, pending: _Pending, result: object) -> None:
        number = result.get("job") if isinstance(result, dict) else None
        if not isinstance(result, dict) or type(number) is not int or number in self._jobs:
            error = AgentProtocolError(f"the guest agent's answer to {pending.method} names no job")
            pending.answer.set_exception(error)
            return
        # Before anything else is read: its end may be on the next line.
        job = self._jobs[number] = Job(number, pending.method, result, self._cancel_job)
        pending.answer.set_result(job)

    def _cancel_abandoned(self, request_id: object, value: object) -> None:
        """End a job whose caller had gone before its call was answered."""
        if isinstance(request_id, str) and request_id in self._abandoned and isinstance(value, dict):
            del self._abandoned[request_id]
            result = value.get("result")
            if isinstance(result, dict) and type(number := result.get("job")) is int:
                self._cancel_job(number)


@asynccontextmanager
async def serve_agent(client: AgentClient) -> AsyncIterator[AgentClient]:
    """Let `client` serve while the body runs, and hang up after it."""
    serving = asyncio.create_task(client.serve())
    try:
        yield client
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        client.close()


def _settle(answer: asyncio.Future[Any], method: str, value: Mapping[str, Any]) -> None:
    """Give `answer` the result or the error that `value` holds."""
    error = value.get("error")
    if answer.done():
        return
    if "result" in value:
        answer.set_result(value["result"])
    elif isinstance(error, dict) and type(error.get("code")) is int:
        answer.set_exception(build_call_error(method, error))
    else:
        answer.set_exception(AgentProtocolError(f"the guest agent's answer to {method} has no result and no error"))


def _has_result(answer: asyncio.Future[Any]) -> bool:
    return answer.done() and not answer.cancelled() and answer.exception() is None


async def _result_or_error(answer: asyncio.Future[Any]) -> Any:
    try:
        return await answer
    except AgentCallError as error:
        return error


def _cut_batches(calls: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterable[list[tuple[str, Mapping[str, Any]]]]:
    """Cut `calls` into batches that fit on a line and that the agent takes."""
    batch: list[tuple[str, Mapping[str, Any]]] = []
    size = 0
    for method, params in calls:
        needed = len(_encode(params)) + len(method) + 80
        if batch and (len(batch) == BATCH_LIMIT or size + needed > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((method, params))
        size += needed
    if batch:
        yield batch


def _decode(line: bytes) -> Any:
    """Read a line of JSON. Half of a surrogate pair becomes `?`, as in the guest: it cannot be shown, nor written."""
    value = json.loads(line.decode("utf-8"))
    if b"\\ud" in line or b"\\uD" in line:
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


_to_json = json.JSONEncoder(separators=(",", ":")).encode


def _encode(value: object) -> bytes:
    return _to_json(value).encode() + b"\n"


def _says_ready(params: object) -> bool:
    """Whether this is the message with which an agent begins."""
    data = params.get("data") if isinstance(params, dict) else None
    return isinstance(data, dict) and data.get("message") == "agent ready"
