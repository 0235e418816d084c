"""What a program in the guest says, kept for a document instead of shown (floor 3): for `--json`, and for the web."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from control.errors import StateError
from control.vm.remote import (
    PIECE_BYTES,
    WINDOW_BYTES,
    Remote,
    decode_output,
    encode_input,
    read_answer,
)

KEPT_BYTES = 16 * 1024 * 1024
"""What is kept of each output."""

ANSWER_S = 24 * 3600.0
"""A program takes as long as it takes; that its guest is lost is noticed elsewhere."""


class Collected:
    """Outputs that are kept for a document, instead of shown."""

    def __init__(self) -> None:
        self._outputs = {"stdout": bytearray(), "stderr": bytearray()}
        self._is_truncated = False

    def take(self, stream: str, data: bytes) -> None:
        kept = self._outputs[stream]
        room = KEPT_BYTES - len(kept)
        kept += data[:room]
        self._is_truncated = self._is_truncated or len(data) > room

    def to_plain(self) -> dict[str, Any]:
        texts = {name: bytes(data).decode("utf-8", "replace") for name, data in self._outputs.items()}
        return {**texts, "truncated": self._is_truncated}


def collect_exec(remote: Remote, params: Mapping[str, Any], stdin: bytes = b"") -> dict[str, Any]:
    """Run a program in the guest that reads `stdin`, and return what it said with how it ended.

    Raises:
        RemoteError: It could not be run.
        StateError: The supervisor is gone.
    """
    collected, left, outstanding = Collected(), memoryview(stdin), 0
    number = remote.begin("exec", {**params, "stdin": bool(stdin)})
    has_ended = not stdin
    while True:
        while not has_ended and outstanding + PIECE_BYTES <= WINDOW_BYTES:
            piece, left = bytes(left[:PIECE_BYTES]), left[PIECE_BYTES:]
            remote.notify("input", call=number, data=encode_input(piece), end=not piece)
            outstanding += len(piece)
            has_ended = not piece
        message = next(remote.messages(ANSWER_S), None)
        if message is None:
            raise StateError(
                "the VM's supervisor has gone in the middle of this", state="unknown", required=("RUNNING",)
            )
        if message.get("id") == number and "method" not in message:
            return {**read_answer(message), **collected.to_plain()}
        if message.get("method") == "output":
            collected.take(message["params"]["stream"], decode_output(message["params"]))
        elif message.get("method") == "taken":
            outstanding -= message["params"]["bytes"]
