"""Starts a program that is to outlive us, and speaks with it for a while (floor 2); see `control.vm.hire`.

Quick to import: a command does this first, and loads the rest of itself while that program loads.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from control.errors import HostError

_PIECE_BYTES = 65536


class Detached:
    """A program that was let go of, but for the socket that is its stdin. Use it as a context manager.

    Args:
        first_half: What is waited for at the end: a child of ours. None for what is no child.
    """

    def __init__(self, first_half: int | None, peer: socket.socket) -> None:
        self._first_half = first_half
        self._peer = peer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it: a program that was given nothing ends."""
        self._peer.close()
        if self._first_half is not None:
            os.waitpid(self._first_half, 0)

    def start_another(self) -> Detached:
        """Have the program, which is made for this, become another one with a socket of its own.

        Raises:
            HostError: It is not there any more.
        """
        ours, its = socket.socketpair()
        with its:
            try:
                socket.send_fds(self._peer, [b"+"], [its.fileno()])
            except OSError as error:
                ours.close()
                raise HostError(f"a program of ours has ended: {error.strerror}", hint="try again") from error
        return Detached(None, ours)

    def give(self, data: bytes, descriptors: Sequence[int]) -> None:
        """Give it `data`, to the end of its stdin, and copies of `descriptors`; one that has ended is told nothing."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sent = socket.send_fds(self._peer, [data], list(descriptors))
            self._peer.sendall(data[sent:])
            self._peer.shutdown(socket.SHUT_WR)

    def read_line(self, within_s: float) -> bytes | None:
        """Read the line it answers with, less when it ends before that; None when it takes longer than `within_s`."""
        poller = select.poll()
        poller.register(self._peer, select.POLLIN)
        deadline = time.monotonic() + within_s
        line = b""
        while not line.endswith(b"\n"):
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            try:
                piece = self._peer.recv(_PIECE_BYTES)
            except ConnectionResetError:  # it ended with something of ours unread
                break
            if not piece:
                break
            line += piece
        return line


def start_detached(argv: list[str]) -> Detached:
    """Start `argv` in a session of its own; a socket of ours is its stdin, and what it says goes to our stderr.

    The program forks at once, and its first half ends, so that it is nobody's child.

    Raises:
        HostError: It cannot be started; nothing runs.
    """
    ours, its = socket.socketpair()
    with its:
        try:
            child = os.posix_spawn(
                argv[0],
                argv,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, its.fileno(), 0), (os.POSIX_SPAWN_DUP2, 2, 1)],
                setsid=True,
            )
        except OSError as error:
            ours.close()
            raise HostError(f"{argv[0]} cannot be started: {error.strerror or error}", hint="make doctor") from error
    return Detached(child, ours)
