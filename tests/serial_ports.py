"""Serial ports for tests: a pair of terminals that socat ties together, and a server that speaks RFC 2217."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serial
import serial.rfc2217

from tests.qemu.fleets import wait_for

WITHIN_S = 30.0


class Cable:
    """A board's port (`here`) and the board's own end of it (`there`); it can be unplugged and plugged again."""

    def __init__(self, directory: Path, board: str = "PTY,link=there,raw,echo=0") -> None:
        self.directory = directory
        self.here = directory / "here"
        self.there = directory / "there"
        self.board = board
        self.process: subprocess.Popen[bytes] | None = None
        self.end = -1

    def plug(self) -> None:
        self.process = subprocess.Popen(["socat", "PTY,link=here,raw,echo=0", self.board], cwd=self.directory)
        wait_for(lambda: self.here.exists() and (self.there.exists() or "EXEC" in self.board))
        if "EXEC" not in self.board:
            self.end = os.open(self.there, os.O_RDWR | os.O_NOCTTY)

    def unplug(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None
        if self.end >= 0:
            os.close(self.end)
            self.end = -1

    def say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.end, data) :]

    def hear(self, size: int) -> bytes:
        heard = b""
        while len(heard) < size and select.select([self.end], [], [], WITHIN_S)[0]:
            heard += os.read(self.end, 65536)
        return heard


@contextmanager
def lay_cable(directory: Path, board: str = "PTY,link=there,raw,echo=0") -> Iterator[Cable]:
    cable = Cable(directory, board)
    cable.plug()
    try:
        yield cable
    finally:
        cable.unplug()


class Rfc2217Server:
    """A port behind TCP whose wires are tied together: what is typed comes back, and its lines can be looked at.

    Attributes:
        changes: What was done to the lines, in order: `dtr on`, `rts off`, `break on`.
    """

    def __init__(self) -> None:
        self.changes: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.client: socket.socket | None = None
        self.is_over = False
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def close(self) -> None:
        self.is_over = True
        self.thread.join()
        self.listener.close()

    def hang_up(self) -> None:
        """Break off with whoever is there; they may come again."""
        if self.client is not None:
            self.client.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        while not self.is_over:
            if select.select([self.listener], [], [], 0.05)[0]:
                self.client, _ = self.listener.accept()
                with self.client:
                    self.serve_one(self.client)
                self.client = None

    def serve_one(self, client: socket.socket) -> None:
        wire: Any = Wire(self.changes)
        writer: Any = Writer(client)
        manager = serial.rfc2217.PortManager(wire, writer)
        while not self.is_over:
            if select.select([client], [], [], 0.02)[0]:
                try:
                    data = client.recv(4096)
                except OSError:
                    return
                if not data:
                    return
                wire.port.write(b"".join(manager.filter(data)))
            said = wire.port.read(wire.port.in_waiting)
            if said:
                client.sendall(b"".join(manager.escape(said)))


class Wire:
    """pyserial's port whose wires are tied together, which notes what is done to its lines."""

    def __init__(self, changes: list[str]) -> None:
        self.__dict__["changes"] = changes
        self.__dict__["port"] = serial.serial_for_url("loop://", timeout=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.port, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dtr", "rts", "break_condition"):
            self.changes.append(f"{name.removesuffix('_condition')} {'on' if value else 'off'}")
        setattr(self.port, name, value)


class Writer:
    """Where pyserial's server writes its answers."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client

    def write(self, data: bytes) -> None:
        self.client.sendall(data)


@contextmanager
def serve_rfc2217() -> Iterator[Rfc2217Server]:
    server = Rfc2217Server()
    try:
        yield server
    finally:
        server.close()
