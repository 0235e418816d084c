"""The message envelope (floor 1): made, checked, written and read here; see `docs/protocol.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from control.errors import MessageError
from control.wire.schema import explain, get_validator

Direction = Literal["vm-to-host", "host-to-vm"]
MessageType = Literal["status", "command", "graphics", "error", "heartbeat"]


@dataclass(frozen=True)
class Message:
    """One message that fits the schema.

    Attributes:
        text: `data.message`.
        details: `data.details`.
        id: Empty when it has none; so is `in_reply_to`.
    """

    timestamp: str
    direction: Direction
    type: MessageType
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    in_reply_to: str = ""

    @property
    def envelope(self) -> dict[str, Any]:
        """The message as the schema describes it."""
        envelope: dict[str, Any] = {
            "timestamp": self.timestamp,
            "direction": self.direction,
            "type": self.type,
            "data": {"message": self.text, "details": dict(self.details)},
        }
        if self.id:
            envelope["id"] = self.id
        if self.in_reply_to:
            envelope["in_reply_to"] = self.in_reply_to
        return envelope


def build_message(
    direction: Direction,
    type_: MessageType,
    text: str,
    details: Mapping[str, Any] | None = None,
    *,
    now: datetime,
    id_: str = "",
) -> Message:
    """Make a message stamped with `now` (an aware time).

    Raises:
        MessageError: It would not fit the schema.
    """
    stamp = now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = Message(stamp, direction, type_, text, details or {}, id_)
    return read_envelope(message.envelope)


def read_envelope(envelope: object) -> Message:
    """Check a decoded JSON value against the schema and return it as a message.

    Raises:
        MessageError: It does not fit; says where.
    """
    try:
        # Python's reader takes more than JSON has: NaN, numbers without bound, half of a surrogate pair. None of these
        # can be written down as UTF-8 JSON again, and the last one no schema library looks at without failing.
        json.dumps(envelope, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise MessageError(f"this is not a message: {error}", hint="one message is one line of JSON") from error
    if not get_validator("message").is_valid(envelope):
        raise MessageError(
            f"this is not a message: {explain('message', envelope)}", hint="docs/protocol.md shows the envelope"
        )
    fields = cast(dict[str, Any], envelope)
    data = fields["data"]
    return Message(
        fields["timestamp"],
        fields["direction"],
        fields["type"],
        data["message"],
        data["details"],
        fields.get("id", ""),
        fields.get("in_reply_to", ""),
    )


def parse_message(line: str | bytes) -> Message:
    """Read one line of JSON as a message.

    Raises:
        MessageError: It is not JSON, nests too deeply, or does not fit the schema.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"this is not JSON: {error}", hint="one message is one line of JSON") from error
    return read_envelope(value)


def encode_message(message: Message) -> bytes:
    """Write a message as one line of JSON, with its line end."""
    return json.dumps(message.envelope, separators=(",", ":")).encode() + b"\n"
