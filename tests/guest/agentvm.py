"""The built-in guest in a bare QEMU, and the host's end of its agent's port, without anything of `control`."""

from __future__ import annotations

import itertools
import json
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from control.paths import IMAGE
from tests.guest.agentprocess import DATA, END, HELLO, Stream, decode_frame, encode_frame
from tests.guest.contract import Contract

DEADLINE_S = 60.0
PORT = {"driver": "virtserialport", "bus": "ports.0", "chardev": "agent", "name": "org.unhinged.agent.0"}
BULK_PORT = {"driver": "virtserialport", "bus": "ports.0", "chardev": "bulk", "name": "org.unhinged.bulk.0"}

CHARDEVS = ("agent", "agent-again", "bulk", "bulk-again")
"""Two of each, because QEMU may hold on to the chardev of a port that was unplugged."""

Json = dict[str, Any]


class AgentVM:
    """A guest that runs until the end of the `with` block; QEMU is paused until `qmp("cont")`.

    Args:
        port, bulk: Whether it has the agent's port, and with that the one for streams.
        boot: What QEMU starts; by default the built-in guest.
    """

    deadline_s = DEADLINE_S

    def __init__(
        self,
        directory: Path,
        *,
        port: bool = True,
        bulk: bool = True,
        boot: Sequence[str] | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        argv = [
            "qemu-system-x86_64",
            "-S",
            "-machine",
            "pc",
            "-accel",
            "tcg",
            "-cpu",
            "max,-erms,-la57",
            "-m",
            "512",
            "-smp",
            "2",
        ]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-device", "virtio-rng-pci", "-device", "VGA"]
        argv += [*(boot if boot is not None else _built_in()), "-device", "virtio-serial-pci,id=ports"]
        console = f"socket,id=serial,path={directory}/console,server=on,wait=off,logfile={directory}/serial"
        argv += ["-chardev", console, "-serial", "chardev:serial"]
        argv += [
            "-chardev",
            f"socket,id=qmp,path={directory}/qmp,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
        ]
        for name in CHARDEVS:
            argv += ["-chardev", f"socket,id={name},path={directory}/{name},server=on,wait=off"]
        for wanted, properties, name in ((port, PORT, "port0"), (port and bulk, BULK_PORT, "bulk0")):
            if wanted:
                argv += ["-device", ",".join(f"{key}={value}" for key, value in properties.items()) + f",id={name}"]
        self.process = subprocess.Popen([*argv, *extra])
        self._ids = itertools.count(1)
        self.contract = Contract()
        self.notes: list[Json] = []
        self._host: socket.socket | None = None
        self._bulk: socket.socket | None = None
        self._frames = b""
        self._numbers = itertools.count(1)
        self.session = ""
        self.streams: dict[int, Stream] = {}
        try:
            self._monitor = self._connect("qmp")
            self._monitor_lines = self._monitor.makefile("rb")
            self._monitor_lines.readline()
            self.qmp("qmp_capabilities")
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self._monitor_lines.close()
        self._monitor.close()
        self._end()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        for name in ("qmp", "console", *CHARDEVS):
            (self.directory / name).unlink(missing_ok=True)

    def _connect(self, name: str) -> socket.socket:
        end = time.monotonic() + DEADLINE_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.directory / name))
            except OSError:
                connection.close()
                if time.monotonic() > end or self.process.poll() is not None:
                    raise
                time.sleep(0.01)  # QEMU makes its sockets in its own time, and says nothing of it
            else:
                connection.settimeout(self.deadline_s)
                return connection

    def qmp(self, command: str, **arguments: Any) -> Any:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._monitor_lines.readline())
            assert "error" not in answer, answer
            if "return" in answer:
                return answer["return"]

    def connect(self, chardev: str = "agent") -> str:
        """Connects to the port as `docs/protocol.md` asks; gives the id whose answer says that the agent is there."""
        self._host = self._connect(chardev)
        self._lines = self._host.makefile("rb")
        id_ = f"hello-{next(self._ids)}"
        self.send(b"\n" + json.dumps({"jsonrpc": "2.0", "id": id_, "method": "get_agent_info"}).encode() + b"\n")
        return id_

    def disconnect(self) -> None:
        self.disconnect_bulk()
        if self._host is not None:
            self._lines.close()
            self._host.close()
            self._host = None

    # Sessions and streams

    def hello(self, chardev: str = "bulk") -> Json:
        """Begins a session on the connected port, with its streams; gives what the agent says of itself."""
        self.disconnect_bulk()
        self.session = secrets.token_hex(16)
        self.streams.clear()
        info = self.call("hello", session=self.session)
        if "streams" in info["capabilities"]:
            self._bulk = self._connect(chardev)
            hello = encode_frame(HELLO, 0, self.session.encode())
            self.receive_until(lambda: hello in self._frames, "the HELLO", take=False)
            self._frames = self._frames.partition(hello)[2]
            self._bulk.sendall(hello)
        return info

    def disconnect_bulk(self) -> None:
        if self._bulk is not None:
            self._bulk.close()
            self._bulk = None
            self._frames = b""

    def open_stream(self) -> Stream:
        """A stream with a number of its own, to be named in a call."""
        stream = Stream(next(self._numbers))
        self.streams[stream.number] = stream
        return stream

    def send_bulk(self, data: bytes) -> None:
        assert self._bulk is not None
        self._bulk.sendall(data)

    def send_data(self, stream: Stream, data: bytes, *, end: bool = True) -> None:
        """Sends `data`, as the guest gives credit for it."""
        while data:
            self.receive_until(lambda: stream.credit > 0, "credit")
            piece = data[: min(stream.credit, 262144)]
            data = data[len(piece) :]
            stream.credit -= len(piece)
            self.send_bulk(encode_frame(DATA, stream.number, piece))
        if end:
            self.send_bulk(encode_frame(END, stream.number))

    def read_stream(self, stream: Stream) -> bytes:
        """All bytes of a stream, to its end."""
        self.receive_until(lambda: stream.ended or stream.reset is not None, "the end of the stream")
        assert stream.reset is None, stream.reset
        return bytes(stream.data)

    def wait_for_notification(self, method: str) -> Json:
        end = time.monotonic() + self.deadline_s
        while True:
            for note in self.notes:
                if note.get("method") == method:
                    self.notes.remove(note)
                    return dict(note["params"])
            self.notes.append(self._receive(end))

    def receive_until(self, condition: Callable[[], bool], what: str, *, take: bool = True) -> None:
        """Receives from the bulk port until it is so; with `take` what comes goes into the streams."""
        assert self._bulk is not None
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"{what} did not come within {DEADLINE_S:g} s"
            data = self._bulk.recv(1 << 20)
            assert data, "QEMU closed the socket of the bulk port"
            self._frames += data
            while take and len(self._frames) >= 16:
                length = 16 + int.from_bytes(self._frames[12:16], "little")
                if len(self._frames) < length:
                    break
                frame, self._frames = self._frames[:length], self._frames[length:]
                self._take_frame(*decode_frame(frame))

    def _take_frame(self, kind: int, number: int, payload: bytes) -> None:
        answer = self.streams[number].take(kind, payload)
        if answer is not None:
            self.send_bulk(answer)

    def send(self, data: bytes) -> None:
        assert self._host is not None
        self.contract.sent(data)
        self._host.sendall(data)

    def _receive(self, end: float) -> Any:
        """The next line that is JSON: the rest of one that was meant for the host before us is none.

        Args:
            end: When to give up, in seconds of the monotonic clock: with heartbeats a line always comes.
        """
        while True:
            assert time.monotonic() < end, f"what is waited for did not come; last: {self.notes[-5:]}"
            line = self._lines.readline()
            assert line, "QEMU closed the agent's socket"
            try:
                value = json.loads(line)
            except ValueError:
                continue
            self.contract.received(value)
            return value

    def wait_for(self, id_: object) -> Json:
        """The answer with this id, or the message that answers the command with this id."""
        end = time.monotonic() + self.deadline_s
        while True:
            seen = self._receive(end)
            if seen.get("id") == id_ or seen.get("params", {}).get("in_reply_to") == id_:
                return dict(seen)
            self.notes.append(seen)

    def call(self, method: str, /, **params: Any) -> Json:
        id_ = f"call-{next(self._ids)}"
        self.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n")
        answer = self.wait_for(id_)
        assert "result" in answer, answer
        return dict(answer["result"])

    def error(self, method: str, /, **params: Any) -> Json:
        """Calls a method that is refused; gives the error."""
        id_ = f"call-{next(self._ids)}"
        self.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n")
        answer = self.wait_for(id_)
        assert "error" in answer, answer
        return dict(answer["error"])

    def run(self, script: str) -> str:
        result = self.call("exec_command", argv=["sh", "-c", script], timeout_s=self.deadline_s)
        assert result["exit_code"] == 0, result
        return str(result["stdout"])

    def command(self, type_: str, message: str, **details: Any) -> Json:
        id_ = f"command-{next(self._ids)}"
        envelope = {
            "timestamp": "2026-01-01T00:00:00Z",
            "direction": "host-to-vm",
            "type": type_,
            "data": {"message": message, "details": details},
            "id": id_,
        }
        self.send(json.dumps({"jsonrpc": "2.0", "method": "message", "params": envelope}).encode() + b"\n")
        return dict(self.wait_for(id_)["params"])

    def read_console(self) -> str:
        return (self.directory / "serial").read_text(errors="replace")


def _built_in() -> list[str]:
    manifest = json.loads((IMAGE / "image.json").read_text())
    files = ["-kernel", str(IMAGE / "vmlinux"), "-initrd", str(IMAGE / "initrd")]
    return [*files, "-append", manifest["kernel_command_line"]]
