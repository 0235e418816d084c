"""A real agent process on one end of a socketpair, and what its tests need to talk to it."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.guest.contract import Contract

AGENT = Path(__file__).parents[2] / "guest" / "agent"
DEADLINE_S = 20.0

Json = dict[str, Any]

HELLO, DATA, END, RESET, CREDIT = range(1, 6)
FIRST_CREDIT_BYTES = 262144


def encode_frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame by the words of `docs/protocol.md`, written without looking at the agent's own code."""
    numbers = (number.to_bytes(4, "little") for number in (stream, len(payload)))
    return b"\xf5ub1" + bytes([kind, 0, 0, 0]) + b"".join(numbers) + payload


def decode_frame(frame: bytes) -> tuple[int, int, bytes]:
    assert frame[:4] == b"\xf5ub1" and frame[5:8] == b"\0\0\0", frame[:16]
    assert int.from_bytes(frame[12:16], "little") == len(frame) - 16
    return frame[4], int.from_bytes(frame[8:12], "little"), frame[16:]


def encode_line(frame: bytes) -> bytes:
    escapes = {0xF6: b"\xf6\1", 0x0A: b"\xf6\2", 0x11: b"\xf6\3", 0x13: b"\xf6\4"}
    return b"\xf5" + b"".join(escapes.get(byte, bytes([byte])) for byte in frame) + b"\n"


def decode_line(line: bytes) -> bytes:
    assert line[:1] == b"\xf5" and line[-1:] == b"\n" and b"\x11" not in line and b"\x13" not in line
    frame = line[1:-1]
    for escape, byte in ((b"\xf6\2", b"\n"), (b"\xf6\3", b"\x11"), (b"\xf6\4", b"\x13"), (b"\xf6\1", b"\xf6")):
        frame = frame.replace(escape, byte)
    return frame


class Stream:
    """One stream as the host sees it: what came of it, and how much may go.

    Attributes:
        data: What came. `ended` tells that it is all, `reset` why the guest gave it up.
        credit: How many bytes may be sent.
        grants: Whether the guest is given new credit for what comes, as it comes.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.data = bytearray()
        self.ended = False
        self.reset: str | None = None
        self.credit = FIRST_CREDIT_BYTES
        self.grants = True

    def take(self, kind: int, payload: bytes) -> bytes | None:
        """Takes what a frame for this stream brings; gives the frame to answer it with, if any."""
        if kind == DATA:
            self.data += payload
            if self.grants:
                return encode_frame(CREDIT, self.number, len(payload).to_bytes(4, "little"))
        elif kind == CREDIT:
            self.credit += int.from_bytes(payload, "little")
        elif kind == END:
            self.ended = True
        else:
            assert kind == RESET
            self.reset = payload.decode()
        return None


class AgentProcess:
    """The agent as a child process, and the host's end of its channel."""

    def __init__(self, directory: Path, settings: Json | None = None, *, start: str = "__main__.py") -> None:
        self.directory = directory
        self.console = directory / "console"
        self.console.touch()
        self.share = directory / "share"
        config = directory / "config.json"
        defaults: Json = {
            "console": str(self.console),
            "share": None,
            "events": str(directory / "events"),
            "heartbeat_s": 0,
            "poweroff_command": ["touch", str(directory / "powered-off")],
            "reboot_command": ["touch", str(directory / "rebooted")],
        }
        config.write_text(json.dumps({**defaults, **(settings or {})}))
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        argv = [
            sys.executable,
            "-I",
            "-S",
            "-B",
            str(AGENT / start),
            "--fd",
            str(theirs.fileno()),
            "--config",
            str(config),
        ]
        with theirs:
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        self.reader = self.socket.makefile("rb")
        self.contract = Contract()
        self.unasked: list[Json] = []
        self.session = ""
        self.streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)

    def send(self, data: bytes) -> None:
        self.contract.sent(data)
        self.socket.sendall(data)

    def receive(self) -> Any:
        """The next line of JSON; frames that come before it go into their streams."""
        while True:
            line = self.receive_line()
            if not line.startswith(b"\xf5"):
                return self._decode(line)

    def _decode(self, line: bytes) -> Any:
        value = json.loads(line)
        self.contract.received(value)
        return value

    def receive_line(self) -> bytes:
        """The next line, whatever it is; one that is a frame has gone into its stream already."""
        line = self.reader.readline()
        assert line.endswith(b"\n"), f"the agent ended in the middle of a line: {line[:200]!r}"
        assert len(line) <= 1024 * 1024
        if line.startswith(b"\xf5"):
            self._take_frame(*decode_frame(decode_line(line)))
        return line

    # Sessions, streams and jobs

    def hello(self) -> Json:
        """Begins a session, with everything that belongs to it; gives what the agent says of itself."""
        self.session = secrets.token_hex(16)
        self.streams.clear()
        self.send(b"\n")
        info = self.result("hello", session=self.session)
        self.wait_until(lambda: 0 in self.streams, "the HELLO")
        self.send_frame(HELLO, 0, self.session.encode())
        return info

    def open_stream(self) -> Stream:
        """A stream with a number of its own, to be named in a call. Which way it goes is for the call to say."""
        stream = Stream(next(self._numbers))
        self.streams[stream.number] = stream
        return stream

    def send_frame(self, kind: int, stream: int, payload: bytes = b"") -> None:
        self.send(encode_line(encode_frame(kind, stream, payload)))

    def send_data(self, stream: Stream, data: bytes, *, end: bool = True) -> None:
        """Sends `data`, as the guest gives credit for it."""
        while data:
            self.wait_until(lambda: stream.credit > 0, "credit")
            piece = data[: min(stream.credit, 65536)]
            data = data[len(piece) :]
            stream.credit -= len(piece)
            self.send_frame(DATA, stream.number, piece)
        if end:
            self.send_frame(END, stream.number)

    def read_stream(self, stream: Stream) -> bytes:
        """All bytes of a stream, to its end."""
        self.wait_until(lambda: stream.ended or stream.reset is not None, "the end of the stream")
        assert stream.reset is None, stream.reset
        return bytes(stream.data)

    def wait_for_job(self, job: int) -> Json:
        """The parameters of the `job_done` of this job."""
        return self.wait_for_notification("job_done", lambda params: params["job"] == job)

    def wait_for_notification(self, method: str, wanted: Callable[[Json], bool] = lambda _: True) -> Json:
        def is_wanted(line: Any) -> bool:
            return isinstance(line, dict) and line.get("method") == method and wanted(line["params"])

        while True:
            for line in self.unasked:
                if is_wanted(line):
                    self.unasked.remove(line)
                    return dict(line["params"])
            self.unasked.append(self.receive())

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Receives until it is so; what comes meanwhile goes into streams and into `unasked`."""
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {DEADLINE_S:g} s"
            line = self.receive_line()
            if not line.startswith(b"\xf5"):
                self.unasked.append(self._decode(line))

    def _take_frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == HELLO:
            assert number == 0 and payload.decode() == self.session
            self.streams[0] = Stream(0)
            return
        if 0 not in self.streams:
            return  # what was under way when the session began is thrown away
        answer = self.streams[number].take(kind, payload)
        if answer is not None:
            self.send(encode_line(answer))

    def send_request(self, method: str, params: Json | None = None) -> int:
        id_ = next(self._ids)
        request = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params or {}}
        self.send(json.dumps(request).encode() + b"\n")
        return id_

    def wait_for_answer(self, id_: object) -> Json:
        """The answer with this id; what comes before it and was not asked for is kept in `unasked`."""
        while True:
            answer: Json = self.receive()
            if isinstance(answer, dict) and "method" not in answer and answer.get("id") == id_:
                return answer
            self.unasked.append(answer)

    def call(self, method: str, /, **params: Any) -> Json:
        return self.wait_for_answer(self.send_request(method, params))

    def result(self, method: str, /, **params: Any) -> Json:
        answer = self.call(method, **params)
        assert "result" in answer, answer
        result: Json = answer["result"]
        return result

    def error(self, method: str, /, **params: Any) -> Json:
        answer = self.call(method, **params)
        assert "error" in answer, answer
        error: Json = answer["error"]
        return error

    def wait_for_message(self, **wanted: Any) -> Json:
        """The next message whose envelope has these values; `message=` stands for `data.message`."""
        while True:
            line = self.unasked.pop(0) if self.unasked else self.receive()
            envelope: Json = line["params"] if isinstance(line, dict) and line.get("method") == "message" else {}
            seen = {**envelope, "message": envelope.get("data", {}).get("message")}
            if envelope and all(seen.get(key) == value for key, value in wanted.items()):
                return envelope

    def command(self, type_: str, message: str, details: Json | None = None) -> Json:
        """Sends a message command and gives the message that answers it."""
        id_ = f"test-{next(self._ids)}"
        envelope = build_message(type_, message, details or {}, id_)
        self.send(json.dumps({"jsonrpc": "2.0", "method": "message", "params": envelope}).encode() + b"\n")
        return self.wait_for_message(in_reply_to=id_)

    def read_memory_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> int:
        self.reader.close()
        self.socket.close()
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stderr:
                self.process.stderr.close()


def build_message(type_: str, message: str, details: Json, id_: str = "id-1") -> Json:
    return {
        "timestamp": "2026-01-01T00:00:00Z",
        "direction": "host-to-vm",
        "type": type_,
        "data": {"message": message, "details": details},
        "id": id_,
    }


def wait_until(condition: Any, what: str) -> None:
    """For what only a file shows: looks until it is so, at most the deadline."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE_S:g} s"
        time.sleep(0.01)
