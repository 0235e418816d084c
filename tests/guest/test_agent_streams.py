"""Frames and streams: the decoders on whatever comes, credit, turns, and every way the wire can go wrong."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest.agent import dispatch, execution, frames
from guest.agent.carriers.bulk import BulkCarrier
from guest.agent.loop import Loop
from guest.agent.streams import MAX_OPEN, Streams
from guest.agent.transcript import Spoken, Transcript
from tests.guest.agentprocess import (
    AGENT,
    CREDIT,
    DATA,
    END,
    HELLO,
    RESET,
    AgentProcess,
    decode_frame,
    decode_line,
    encode_frame,
    encode_line,
)

SESSION = "0123456789abcdef" * 2
HELLO_FRAME = encode_frame(HELLO, 0, SESSION.encode())

FRAMES = st.one_of(
    st.tuples(st.just(DATA), st.integers(1, 2**32 - 1), st.binary(max_size=60)),
    st.tuples(st.just(END), st.integers(1, 2**32 - 1), st.just(b"")),
    st.tuples(st.just(RESET), st.integers(1, 2**32 - 1), st.binary(max_size=60)),
    st.tuples(st.just(CREDIT), st.integers(1, 2**32 - 1), st.binary(min_size=4, max_size=4)),
)


class Heard:
    """What a decoder told: data of a stream as one piece, everything else as it came."""

    def __init__(self) -> None:
        self.data: dict[int, bytes] = {}
        self.others: list[tuple[int, int, bytes]] = []
        self.decoder = frames.FrameDecoder(self.take, lambda *frame: self.others.append(frame))

    def take(self, stream: int, piece: memoryview) -> None:
        self.data[stream] = self.data.get(stream, b"") + bytes(piece)


@given(st.binary(max_size=100), st.lists(FRAMES, max_size=10), st.data())
def test_frames_do_not_depend_on_where_the_bytes_were_cut(
    garbage: bytes, sent: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    """Nor on what came before the HELLO of the session."""
    wire = garbage + HELLO_FRAME + b"".join(encode_frame(*frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    heard = Heard()
    heard.decoder.feed(b"nobody listens yet")
    heard.decoder.expect(SESSION)
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        heard.decoder.feed(wire[begin:end])
    assert heard.others == [frame for frame in sent if frame[0] != DATA]
    wanted: dict[int, bytes] = {}
    for kind, stream, payload in sent:
        if kind == DATA and payload:
            wanted[stream] = wanted.get(stream, b"") + payload
    assert heard.data == wanted


@given(st.binary(max_size=300))
def test_any_bytes_are_frames_or_refused_once(data: bytes) -> None:
    heard = Heard()
    heard.decoder.expect(SESSION)
    heard.decoder.feed(HELLO_FRAME)
    try:
        heard.decoder.feed(data)
    except frames.FrameError as error:
        assert str(error)
        heard.decoder.feed(os.urandom(64))  # deaf until the next session


@given(FRAMES)
def test_a_frame_is_one_line_and_comes_back(frame: tuple[int, int, bytes]) -> None:
    whole = encode_frame(*frame)
    line = frames.encode_line(whole)
    assert line == encode_line(whole) and decode_line(line) == whole
    assert frames.decode_line(line[:-1]) == frame == decode_frame(whole)


@given(st.binary(max_size=60))
def test_any_line_is_a_frame_or_refused(rest: bytes) -> None:
    line = b"\xf5" + rest.replace(b"\n", b"")
    try:
        kind, stream, payload = frames.decode_line(line)
    except frames.FrameError as error:
        assert str(error)
    else:
        assert frames.encode_line(encode_frame(kind, stream, payload))[:-1] == line


@pytest.mark.parametrize(
    "frame",
    [
        b"F5ub" + encode_frame(END, 1)[4:],
        encode_frame(6, 1),
        encode_frame(0, 1),
        encode_frame(END, 0),
        encode_frame(END, 1, b"x"),
        encode_frame(CREDIT, 1, b"xxx"),
        encode_frame(RESET, 1, b"x" * 1025),
        encode_frame(HELLO, 1, SESSION.encode()),
        HELLO_FRAME,
        encode_frame(DATA, 1)[:12] + (262145).to_bytes(4, "little"),
        encode_frame(DATA, 1)[:12] + b"\xff\xff\xff\xff",
        encode_frame(END, 1)[:5] + b"\1" + encode_frame(END, 1)[6:],
    ],
)
def test_what_is_no_frame_breaks_the_wire_and_says_so(frame: bytes) -> None:
    broken: list[str] = []
    streams = Streams(Loop(), broken.append)
    streams.attach(Nothing())
    streams.begin(SESSION)
    streams.receive(memoryview(HELLO_FRAME + frame))
    assert len(broken) == 1 and broken[0]


class Nothing:
    """A wire that takes no frames."""

    def __init__(self) -> None:
        self.frame_bytes = 262144

    def wake(self) -> None:
        pass


# The bulk port, with a socket in its place


class Bulk:
    """The guest's streams on one end of a socketpair, the host on the other."""

    def __init__(self) -> None:
        self.host, ours = socket.socketpair()
        self.host.settimeout(10)
        ours.setblocking(False)
        self.loop = Loop()
        self.broken: list[str] = []
        self.streams = Streams(self.loop, self.broken.append)
        self.carrier = BulkCarrier(self.loop, ours.detach(), self.streams, self.broken.append, lambda _: None)
        self.streams.attach(self.carrier)
        self.carrier.start()
        self.received = b""

    def begin(self) -> None:
        self.carrier.begin_again()
        self.streams.begin(SESSION)
        self.streams.say_hello()

    def turn(self, count: int = 20) -> None:
        """Lets the loop turn so many times."""
        left = [count]

        def step() -> None:
            left[0] -= 1
            if left[0]:
                self.loop.soon(step)
            else:
                self.loop.stop()

        self.loop._stopped = False
        self.loop.soon(step)
        self.loop.run()

    def read_frames(self) -> list[tuple[int, int, bytes]]:
        """Everything that has come, as frames."""
        self.turn()
        self.host.setblocking(False)
        try:
            while data := self.host.recv(1 << 20):
                self.received += data
                self.turn()
        except BlockingIOError:
            pass
        self.host.settimeout(10)
        found = []
        while len(self.received) >= 16:
            length = 16 + int.from_bytes(self.received[12:16], "little")
            frame, self.received = self.received[:length], self.received[length:]
            found.append(decode_frame(frame))
        return found


def test_time_limits_that_are_over_do_not_pile_up() -> None:
    loop = Loop()
    kept = [loop.later(3600 + number, lambda: None) for number in range(100)]
    for _ in range(20000):
        loop.later(86400, lambda: None).cancel()
    assert len(loop._timers) <= 300
    assert [timer for timer in loop._timers if timer.callback is not None] == kept


@pytest.fixture
def bulk() -> Iterator[Bulk]:
    made = Bulk()
    made.begin()
    assert made.read_frames() == [(HELLO, 0, SESSION.encode())]
    made.host.sendall(HELLO_FRAME)
    made.turn()
    yield made
    made.carrier.close()
    made.host.close()


def test_bytes_and_their_end_arrive_and_are_sent(bulk: Bulk) -> None:
    got: list[bytes] = []
    ends: list[object] = []
    bulk.streams.open_reader(1, lambda piece: got.append(bytes(piece)), lambda: ends.append(1), ends.append)
    writer = bulk.streams.open_writer(2)
    bulk.host.sendall(encode_frame(DATA, 1, b"to the guest") + encode_frame(END, 1))
    assert writer.write(b"to the host")
    writer.end()
    assert bulk.read_frames() == [(DATA, 2, b"to the host"), (END, 2, b"")]
    assert (b"".join(got), ends) == (b"to the guest", [1])


def test_a_writer_sends_no_more_than_its_credit_and_tells_when_there_is_room(bulk: Bulk) -> None:
    writer = bulk.streams.open_writer(1)
    ready: list[int] = []
    assert not writer.write(bytes(400_000))
    writer.when_ready(lambda: ready.append(1))
    sent = b"".join(payload for _, _, payload in bulk.read_frames())
    assert len(sent) == 262144 and not ready
    bulk.host.sendall(encode_frame(CREDIT, 1, (100_000).to_bytes(4, "little")))
    assert sum(len(payload) for _, _, payload in bulk.read_frames()) == 100_000
    bulk.turn()
    assert ready == [1] and writer.queued_bytes == 400_000 - 362144


def test_writers_take_turns(bulk: Bulk) -> None:
    wire = Nothing()
    wire.frame_bytes = 1000
    bulk.streams.attach(wire)
    for number in (1, 2, 3):
        bulk.streams.open_writer(number).write(bytes(3000))
    order = []
    while (frame := bulk.streams.take_frame()) is not None:
        assert len(frame[1]) == 1000
        order.append(frame[0][8])
    assert order == [1, 2, 3] * 3


def test_credit_is_given_as_bytes_are_got_rid_of(bulk: Bulk) -> None:
    reader = bulk.streams.open_reader(1, lambda _: None, lambda: None, lambda _: None)
    for _ in range(8):
        bulk.host.sendall(encode_frame(DATA, 1, bytes(32768)))
        bulk.turn()
    assert bulk.read_frames() == [] and reader.credit == 0
    reader.grant(60_000)
    assert bulk.read_frames() == []
    reader.grant(60_000)
    assert bulk.read_frames() == [(CREDIT, 1, (120_000).to_bytes(4, "little"))]
    bulk.host.sendall(encode_frame(DATA, 1, bytes(120_001)))
    bulk.turn()
    assert len(bulk.broken) == 1 and "credit" in bulk.broken[0]


def test_a_reset_goes_both_ways_and_what_comes_after_it_is_dropped(bulk: Bulk) -> None:
    reasons: list[str] = []
    reader = bulk.streams.open_reader(1, lambda _: None, lambda: None, reasons.append)
    writer = bulk.streams.open_writer(2, reasons.append)
    reader.reset("enough")
    bulk.host.sendall(encode_frame(RESET, 2, b"no more") + encode_frame(DATA, 1, b"late") + encode_frame(END, 1))
    assert bulk.read_frames() == [(RESET, 1, b"enough")]
    writer.write(b"to nobody")
    writer.end()
    assert bulk.read_frames() == [] and reasons == ["no more"] and not bulk.broken


@pytest.mark.parametrize("wrong", [encode_frame(DATA, 2, b"x"), encode_frame(END, 2), encode_frame(CREDIT, 1, b"1234")])
def test_a_frame_against_the_direction_of_its_stream_breaks_the_wire(bulk: Bulk, wrong: bytes) -> None:
    reasons: list[str] = []
    bulk.streams.open_reader(1, lambda _: None, lambda: None, reasons.append)
    bulk.streams.open_writer(2, reasons.append)
    bulk.host.sendall(wrong)
    bulk.turn()
    assert len(bulk.broken) == 1 and reasons == bulk.broken * 2
    with pytest.raises(dispatch.CallError) as caught:
        bulk.streams.open_writer(3)
    assert caught.value.code == dispatch.FAILED


def test_a_new_session_in_the_middle_of_a_frame_both_ways(bulk: Bulk) -> None:
    reasons: list[str] = []
    bulk.streams.open_reader(1, lambda _: None, lambda: None, reasons.append)
    writer = bulk.streams.open_writer(2, reasons.append)
    bulk.host.sendall(encode_frame(DATA, 1, bytes(100_000))[:5000])
    writer.write(bytes(262144))  # more than the socket takes at once
    bulk.turn()
    bulk.begin()
    bulk.host.sendall(b"garbage" + HELLO_FRAME[:20] + HELLO_FRAME)
    bulk.turn()
    got: list[bytes] = []
    bulk.streams.open_reader(1, lambda piece: got.append(bytes(piece)), lambda: None, reasons.append)
    bulk.streams.open_writer(2).write(b"anew")
    bulk.host.sendall(encode_frame(DATA, 1, b"anew"))
    seen = b""
    while not seen.endswith(b"anew"):
        seen += bulk.host.recv(1 << 20)
        bulk.turn()
    assert seen.endswith(HELLO_FRAME + encode_frame(DATA, 2, b"anew"))
    bulk.turn()
    assert got == [b"anew"] and reasons == ["the session ended"] * 2 and not bulk.broken


def test_a_handler_that_fails_takes_no_other_stream_along(bulk: Bulk) -> None:
    failures: list[Exception] = []
    bulk.loop.on_error = failures.append
    reasons: list[str] = []
    got: list[bytes] = []

    def fail(_piece: memoryview) -> None:
        raise ValueError("a fault of ours")

    bulk.streams.open_reader(1, fail, lambda: None, reasons.append)
    bulk.streams.open_reader(2, lambda piece: got.append(bytes(piece)), lambda: None, reasons.append)
    bulk.host.sendall(encode_frame(DATA, 1, b"x") + encode_frame(DATA, 2, b"y"))
    assert [(kind, stream) for kind, stream, _ in bulk.read_frames()] == [(RESET, 1)]
    assert got == [b"y"] and len(reasons) == 1 and isinstance(failures[0], ValueError) and not bulk.broken


@pytest.mark.parametrize("how", ["reset", "session"])
def test_who_waits_for_room_in_a_stream_that_is_given_up_goes_on(bulk: Bulk, how: str) -> None:
    said: list[str] = []
    writer = bulk.streams.open_writer(7, said.append)
    assert not writer.write(bytes(400000))
    bulk.turn()
    writer.when_ready(lambda: said.append("room"))
    if how == "reset":
        bulk.host.sendall(encode_frame(RESET, 7, b"enough"))
    else:
        bulk.streams.end("enough")
    bulk.turn()
    assert said == ["enough", "room"]
    assert writer.write(b"more"), "what nobody wants takes no room"


def test_a_program_whose_output_nobody_wants_any_more_is_not_held_up(bulk: Bulk) -> None:
    ended: list[Any] = []

    def take(result: Any) -> None:
        ended.append(result)
        bulk.loop.stop()

    transcript = Transcript(bulk.streams.open_writer(7))
    Spoken(bulk.loop, take, transcript, {"argv": ["head", "-c", "2000000", "/dev/zero"]})
    bulk.loop.later(0.5, lambda: bulk.streams.end("the host has gone"))
    bulk.loop.later(10, bulk.loop.stop)
    bulk.loop._stopped = False
    bulk.loop.run()
    assert ended and (ended[0].exit_code, transcript.size) == (0, 2000000)


def test_no_more_streams_than_the_limit(bulk: Bulk) -> None:
    for number in range(1, MAX_OPEN + 1):
        bulk.streams.open_writer(number)
    for number, code in ((MAX_OPEN + 1, dispatch.BUSY), (1, dispatch.INVALID_PARAMS)):
        with pytest.raises(dispatch.CallError) as caught:
            bulk.streams.open_writer(number)
        assert caught.value.code == code


# The agent itself, on one connection


def test_without_hello_there_are_no_streams_and_no_jobs(agent: AgentProcess) -> None:
    assert agent.error("exec_start", argv=["true"])["code"] == -32600
    info = agent.hello()
    assert info["session"] == agent.session == agent.result("get_agent_info")["session"]
    assert info["transport"] == "descriptor" and "streams" in info["capabilities"]


@pytest.mark.parametrize("session", ["", "x" * 32, "A" * 32, "0" * 31, "0" * 33, 7, None])
def test_refused_sessions(agent: AgentProcess, session: Any) -> None:
    assert agent.error("hello", session=session)["code"] == -32602


def test_a_broken_wire_is_told_and_the_next_session_works(agent: AgentProcess) -> None:
    """Field notes, 9: garbage before a message, an oversize length, a cancelled write in the middle of a message."""
    for broken in (
        b"\xf5garbage\n",
        b"\xf5" + encode_frame(DATA, 1)[:12] + b"\xff\xff\xff\x7f\n",
        b"\xf5\xf5ub1\x02\n",
    ):
        agent.hello()
        out = agent.open_stream()
        job = agent.result("exec_start", argv=["yes"], stdout=out.number)["job"]
        agent.send(broken)
        assert agent.wait_for_notification("bulk_broken")["reason"]
        assert agent.wait_for_job(job)["result"]["signal"] == 13  # its output was closed, as by any reader that goes
        assert agent.result("ping") == {}  # the other channel is not held up
        assert agent.error("exec_start", argv=["true"], stdout=agent.open_stream().number)["code"] == -32005
    agent.hello()
    nonce = secrets.token_hex(8)
    out = agent.open_stream()
    agent.result("exec_start", argv=["echo", nonce], stdout=out.number)
    assert agent.read_stream(out).decode() == nonce + "\n"


def test_frames_of_an_earlier_session_are_thrown_away(agent: AgentProcess) -> None:
    agent.hello()
    agent.session, old = secrets.token_hex(16), agent.session
    agent.streams.clear()
    agent.send(b'\xf5half a frame that was never ended{"jsonrpc"\n')
    agent.send(b'{"jsonrpc":"2.0","id":"new","method":"hello","params":{"session":"%s"}}\n' % agent.session.encode())
    agent.wait_for_answer("new")
    agent.wait_until(lambda: 0 in agent.streams, "the HELLO")
    given, out = agent.open_stream(), agent.open_stream()
    agent.result("exec_start", argv=["cat"], stdin=given.number, stdout=out.number)
    agent.send_frame(DATA, given.number, b"of nobody")
    agent.send_frame(HELLO, 0, old.encode())
    agent.send(b"\xf5garbage\n")
    agent.send_frame(HELLO, 0, agent.session.encode())
    agent.send_data(given, b"of this session")
    assert agent.read_stream(out) == b"of this session"


def test_a_flood_of_frames_for_streams_that_are_not_open_costs_nothing(agent: AgentProcess) -> None:
    agent.hello()
    for number in range(1000, 3000):
        agent.send_frame(DATA, number, bytes(1000))
    assert agent.result("ping") == {} and agent.read_memory_bytes() < 40e6


def test_a_new_session_ends_jobs_and_calls_of_the_one_before(agent: AgentProcess) -> None:
    agent.hello()
    marker = agent.directory / "hung-up"
    script = f"trap 'touch {marker}; exit' HUP; while :; do sleep 0.05; done"
    first = agent.result("exec_start", argv=["sh", "-c", script])
    id_ = agent.send_request("exec_command", {"argv": ["sleep", "60"]})
    agent.hello()
    assert agent.result("job_list") == {"jobs": []}
    answers = [line for line in agent.unasked if line.get("id") == id_] or [agent.wait_for_answer(id_)]
    assert answers[0]["error"]["code"] == -32006
    while not marker.exists():
        agent.result("ping")
    second = agent.result("exec_start", argv=["true"])
    assert second["job"] > first["job"]
    agent.wait_for_job(second["job"])
    assert not any(line.get("method") == "job_done" for line in agent.unasked)


def test_a_program_that_takes_no_notice_of_the_hang_up_is_killed(tmp_path: Any) -> None:
    agent = AgentProcess(tmp_path)
    agent.hello()
    out = agent.open_stream()
    script = "trap '' HUP; echo ready; exec sleep 60"
    pid = agent.result("exec_start", argv=["sh", "-c", script], stdout=out.number)["pid"]
    agent.wait_until(lambda: bool(out.data), "the program")
    assert agent.close() == 0  # it ends after the program that it has killed
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def is_ours(pid: int) -> bool:
    """Whether the number still belongs to a child of this process, be it one that has ended."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def run_to_its_end(bulk: Bulk, script: str, *, hang_up: bool) -> tuple[execution.Execution, Any]:
    ended: list[Any] = []

    def take(result: Any) -> None:
        ended.append(result)
        bulk.loop.stop()

    start = {"argv": ["sh", "-c", script]}
    program = execution.Execution(bulk.loop, start, take, bulk.streams, None, None, None, None)
    if hang_up:
        program.hang_up()
    bulk.loop._stopped = False
    bulk.loop.run()
    return program, ended[0]


@pytest.mark.parametrize(("script", "end"), [("exit 3", (3, None)), ("kill -TERM $$", (None, 15))])
def test_a_program_that_has_ended_leaves_no_zombie(bulk: Bulk, script: str, end: tuple[int | None, int | None]) -> None:
    program, result = run_to_its_end(bulk, script, hang_up=False)
    assert (result.exit_code, result.signal) == end
    assert not is_ours(program.pid)


def test_nobody_gets_the_number_of_a_program_while_its_group_is_still_to_be_killed(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_HANGUP_S", 1.0)
    program, _ = run_to_its_end(bulk, "sleep 60", hang_up=True)
    assert is_ours(program.pid), "somebody else could have its number now, and would be killed in its place"
    bulk.loop.later(2.0, bulk.loop.stop)
    bulk.loop._stopped = False
    bulk.loop.run()
    assert not is_ours(program.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not kill: run as root")
def test_a_program_that_may_not_be_signalled_keeps_no_session_from_ending(
    bulk: Bulk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_HANGUP_S", 0.5)
    start = {"argv": ["sleep", "60"]}
    program = execution.Execution(bulk.loop, start, lambda _: bulk.loop.stop(), bulk.streams, None, None, None, None)
    os.setresuid(65534, 65534, 0)
    try:
        program.hang_up()
    finally:
        os.setresuid(0, 0, 0)
        program.kill()
    for _ in ("its end", "the end of its number"):
        bulk.loop._stopped = False
        bulk.loop.run()
        bulk.loop.later(1.0, bulk.loop.stop)
    assert not is_ours(program.pid)


def test_lines_and_frames_share_the_connection(agent: AgentProcess) -> None:
    """A large stream holds up no answer: lines go before frames."""
    agent.hello()
    out = agent.open_stream()
    agent.result("exec_start", argv=["head", "-c", "20000000", "/dev/urandom"], stdout=out.number)
    for _ in range(50):
        agent.result("ping")
    assert not out.ended
    assert len(agent.read_stream(out)) == 20_000_000
    assert json.dumps(agent.unasked).count("error") == 0


def test_every_byte_passes_a_terminal(tmp_path: Path) -> None:
    """The one connection over a serial line: flow control, line feeds and control characters in a stream."""
    ours, theirs = os.openpty()
    config = tmp_path / "config.json"
    config.write_text('{"console": null, "share": null, "events": null, "heartbeat_s": 0}')
    start = [sys.executable, "-I", "-S", "-B", str(AGENT / "__main__.py"), "--config", str(config)]
    process = subprocess.Popen([*start, "--port", os.ttyname(theirs)])
    data = bytes(range(256)) * 100
    lines = [
        b'{"jsonrpc":"2.0","id":1,"method":"hello","params":{"session":"%s"}}\n' % SESSION.encode(),
        encode_line(HELLO_FRAME),
        b'{"jsonrpc":"2.0","id":2,"method":"exec_start","params":{"argv":["cat"],"stdin":1,"stdout":2}}\n',
        *(encode_line(encode_frame(DATA, 1, data[at : at + 500])) for at in range(0, len(data), 500)),
        encode_line(encode_frame(END, 1)),
    ]
    seen: list[tuple[int, int, bytes]] = []
    try:
        with os.fdopen(ours, "r+b", buffering=0) as raw, os.fdopen(os.dup(ours), "rb") as reader:
            while b"agent ready" not in reader.readline():
                pass  # from now on the terminal is raw
            for line in lines:
                raw.write(line)
                if line.startswith(b"{"):  # the next one may go when this one has been answered
                    while b'"result"' not in reader.readline():
                        pass
            while (END, 2, b"") not in seen:
                line = reader.readline()
                if line.startswith(b"\xf5"):
                    seen.append(decode_frame(decode_line(line)))
                    assert len(seen[-1][2]) <= 4096
    finally:
        os.close(theirs)
        process.kill()
        process.wait()
    assert b"".join(payload for kind, _, payload in seen if kind == DATA) == data
