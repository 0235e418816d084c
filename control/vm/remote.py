"""The caller's end of `control.socket` (floor 3): plain blocking calls, because a command must be quick.

Imports little, and nothing of asyncio. Source of the format: docs/control.md.
"""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from control.errors import ControlError, StateError, WaitTimeout
from control.failure import RemoteError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
"""A supervisor answers within a millisecond; what takes longer by its nature is given a time of its own."""

WINDOW_BYTES = 256 * 1024
"""What a supervisor takes of an input before it says that it was taken (docs/control.md)."""

PIECE_BYTES = 32 * 1024

_CHUNK = 65536
_FAILED = -32000


class Remote:
    """A connection to a supervisor; close it, it is a context manager."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self._last = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def release(self) -> socket.socket:
        """Give the connection away, to be read by other means; nothing may have been asked on it."""
        return self._socket

    def fileno(self) -> int:
        return self._socket.fileno()

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        on_phase: Callable[[str], None] | None = None,
    ) -> Any:
        """Call `method` and return its result.

        Args:
            on_phase: Told of each phase of the boot that is reached while `wait` waits.

        Raises:
            RemoteError: It failed there.
            WaitTimeout: There was no answer within `timeout_s`.
            StateError: The supervisor is gone.
        """
        number = self.begin(method, params)
        for message in self.messages(timeout_s):
            if message.get("id") == number and "method" not in message:
                return read_answer(message)
            if on_phase is not None and message.get("method") == "phase":
                on_phase(str(message["params"]["phase"]))
        raise self._gone()

    def begin(self, method: str, params: Mapping[str, Any] | None = None) -> int:
        """Send a call whose messages are read with `messages`; return its number."""
        self._last += 1
        self._send({"jsonrpc": "2.0", "id": self._last, "method": method, "params": dict(params or {})})
        return self._last

    def notify(self, method: str, **params: Any) -> None:
        """Tell the supervisor something about a call under way."""
        self._send({"jsonrpc": "2.0", "method": method, "params": params})

    def messages(self, timeout_s: float | None) -> Iterator[dict[str, Any]]:
        """Yield what comes, until the supervisor hangs up. Raises WaitTimeout when nothing does within `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            while (message := self.take_message()) is not None:
                yield message
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise WaitTimeout("an answer of the VM's supervisor", timeout_s or 0.0)
            self._socket.settimeout(left)
            try:
                if not self.receive():
                    return
            except TimeoutError:
                continue

    def receive(self) -> bool:
        """Read what has come; False when the supervisor has hung up."""
        try:
            chunk = self._socket.recv(_CHUNK)
        except (ConnectionResetError, BrokenPipeError):
            chunk = b""
        self._buffer += chunk
        return bool(chunk)

    def take_message(self) -> dict[str, Any] | None:
        """Return the next message that is there in full, or None."""
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: dict[str, Any] = json.loads(line)
        return message

    def _send(self, message: Mapping[str, Any]) -> None:
        self._socket.settimeout(ANSWER_TIMEOUT_S)
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except TimeoutError as error:
            raise WaitTimeout("the VM's supervisor to read", ANSWER_TIMEOUT_S) from error
        except OSError as error:
            raise self._gone() from error

    def _gone(self) -> StateError:
        return StateError(
            "the VM's supervisor has gone in the middle of this",
            state="unknown",
            required=("RUNNING",),
            hint="unhinged status NAME tells whether the VM runs on; the next command takes it over",
        )


def read_answer(message: Mapping[str, Any]) -> Any:
    """Return the result of an answer. Raises RemoteError when it is an error."""
    error = message.get("error")
    if error is None:
        return message.get("result")
    if error.get("code") == _FAILED and isinstance(error.get("data"), dict):
        raise RemoteError(error["data"])
    raise ControlError(
        f"the VM's supervisor refused this: {error.get('message')}",
        hint="is it of another version? stop the VM and start it again",
    )


def decode_output(params: Mapping[str, Any]) -> bytes:
    """Return the bytes of an `output` notification."""
    return base64.b64decode(params["data"])


def encode_input(data: bytes) -> str:
    """Write bytes as an `input` notification carries them."""
    return base64.b64encode(data).decode("ascii")


def find_remote(path: Path) -> Remote | None:
    """Connect to the supervisor that listens at `path`; None when none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError, TimeoutError, BlockingIOError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return Remote(connection)
