"""A real agent process on one end of a socketpair, and what its tests need to talk to it."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

AGENT = Path(__file__).parents[2] / "guest" / "agent"
DEADLINE_S = 20.0

Json = dict[str, Any]


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
        self.unasked: list[Json] = []
        self._ids = itertools.count(1)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Any:
        line = self.reader.readline()
        assert line.endswith(b"\n"), f"the agent ended in the middle of a line: {line[:200]!r}"
        assert len(line) <= 1024 * 1024
        return json.loads(line)

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
