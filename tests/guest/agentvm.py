"""The built-in guest in a bare QEMU, and the host's end of its agent's port, without anything of `control`."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from control.paths import IMAGE

DEADLINE_S = 60.0
PORT = {"driver": "virtserialport", "bus": "ports.0", "chardev": "agent", "name": "org.unhinged.agent.0"}

CHARDEVS = ("agent", "agent-again")
"""Two, because QEMU may hold on to the chardev of a port that was unplugged."""

Json = dict[str, Any]


class AgentVM:
    """A guest that runs until the end of the `with` block; QEMU is paused until `qmp("cont")`.

    Args:
        boot: What QEMU starts; by default the built-in guest.
    """

    def __init__(
        self, directory: Path, *, port: bool = True, boot: Sequence[str] | None = None, extra: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        argv = ["qemu-system-x86_64", "-S", "-machine", "pc", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "2"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-device", "virtio-rng-pci", "-device", "VGA"]
        argv += [*(boot if boot is not None else _built_in()), "-device", "virtio-serial-pci,id=ports"]
        argv += ["-chardev", f"file,id=serial,path={directory}/serial", "-serial", "chardev:serial"]
        argv += [
            "-chardev",
            f"socket,id=qmp,path={directory}/qmp,server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
        ]
        for name in CHARDEVS:
            argv += ["-chardev", f"socket,id={name},path={directory}/{name},server=on,wait=off"]
        if port:
            argv += ["-device", ",".join(f"{key}={value}" for key, value in PORT.items()) + ",id=port0"]
        self.process = subprocess.Popen([*argv, *extra])
        self._ids = itertools.count(1)
        self.notes: list[Json] = []
        self._host: socket.socket | None = None
        try:
            self._monitor = self._connect("qmp")
            self._monitor_lines = self._monitor.makefile("rb")
            self._monitor_lines.readline()
            self.qmp("qmp_capabilities")
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> AgentVM:
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
        for name in ("qmp", *CHARDEVS):
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
                connection.settimeout(DEADLINE_S)
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
        if self._host is not None:
            self._lines.close()
            self._host.close()
            self._host = None

    def send(self, data: bytes) -> None:
        assert self._host is not None
        self._host.sendall(data)

    def wait_for(self, id_: object) -> Json:
        """The answer with this id, or the message that answers the command with this id."""
        while True:
            line = self._lines.readline()
            assert line, "QEMU closed the agent's socket"
            try:
                seen = json.loads(line)
            except ValueError:
                continue  # the rest of a line that was meant for the host before us
            if seen.get("id") == id_ or seen.get("params", {}).get("in_reply_to") == id_:
                return dict(seen)
            self.notes.append(seen)

    def call(self, method: str, /, **params: Any) -> Json:
        id_ = f"call-{next(self._ids)}"
        self.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params}).encode() + b"\n")
        answer = self.wait_for(id_)
        assert "result" in answer, answer
        return dict(answer["result"])

    def run(self, script: str) -> str:
        result = self.call("exec_command", argv=["sh", "-c", script], timeout_s=DEADLINE_S)
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
