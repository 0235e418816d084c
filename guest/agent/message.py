"""The message envelope: builds it and checks it (guest floor). The schema is `schemas/message.json`."""

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TYPES = ("status", "command", "graphics", "error", "heartbeat")
DIRECTIONS = ("vm-to-host", "host-to-vm")
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")

_prefix = "%x.%d." % (time.time_ns() // 1000, os.getpid())
_count = [0]


def new_id() -> str:
    """An id that no other message of this agent, nor of an earlier one, has."""
    _count[0] += 1
    return _prefix + str(_count[0])


def build(type_: str, text: str, details: "dict[str, Any]", in_reply_to: "str | None" = None) -> "dict[str, Any]":
    """One message to the host, stamped with now and a new id."""
    now = time.time()
    # Below one second the clock's digits are cut, not rounded, so that the text never reaches 60 seconds.
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + ".%03dZ" % int(now % 1 * 1000)
    message = {
        "timestamp": stamp,
        "direction": "vm-to-host",
        "type": type_,
        "data": {"message": text[:1024], "details": details},
        "id": new_id(),
    }
    if in_reply_to is not None:
        message["in_reply_to"] = in_reply_to
    return message


def find_fault(value: object) -> "str | None":
    """What is wrong with `value` as a message, in one sentence; None when it is one."""
    if not isinstance(value, dict):
        return "a message is an object"
    for key in ("timestamp", "direction", "type", "data"):
        if key not in value:
            return "%s is missing" % key
    for key in value:
        if key not in ("timestamp", "direction", "type", "data", "id", "in_reply_to"):
            return "%s is not a key of a message" % str(key)[:64]
    if not is_timestamp(value["timestamp"]):
        return "timestamp is not a UTC time like 2026-01-01T00:00:00Z"
    if value["direction"] not in DIRECTIONS:
        return "direction is neither vm-to-host nor host-to-vm"
    if value["type"] not in TYPES:
        return "type is none of %s" % ", ".join(TYPES)
    for key in ("id", "in_reply_to"):
        if key in value and not is_id(value[key]):
            return "%s is not 1 to 64 of A-Z a-z 0-9 . _ : -" % key
    return _find_data_fault(value["data"])


def _find_data_fault(data: object) -> "str | None":
    if not isinstance(data, dict) or set(data) != {"message", "details"}:
        return "data holds exactly message and details"
    if not isinstance(data["message"], str) or not 1 <= len(data["message"]) <= 1024:
        return "data.message is not a string of 1 to 1024 characters"
    details = data["details"]
    if not isinstance(details, dict) or len(details) > 256 or any(len(key) > 128 for key in details):
        return "data.details is not an object of at most 256 keys of at most 128 characters"
    return None


def is_id(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 64 and _ID_CHARACTERS.issuperset(value)


def is_timestamp(value: object) -> bool:
    """Whether `value` is RFC 3339 in UTC with a capital T and Z, by the same rule as the schema's pattern."""
    if not isinstance(value, str) or not 20 <= len(value) <= 30 or not value.isascii() or value[-1] != "Z":
        return False
    if value[4] != "-" or value[7] != "-" or value[10] != "T" or value[13] != ":" or value[16] != ":":
        return False
    fields = (value[0:4], value[5:7], value[8:10], value[11:13], value[14:16], value[17:19])
    if not all(field.isdigit() for field in fields):
        return False
    _, month, day, hour, minute, second = map(int, fields)
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour <= 23 and minute <= 59 and second <= 60):
        return False
    fraction = value[19:-1]
    return not fraction or (fraction[0] == "." and 1 <= len(fraction) - 1 <= 9 and fraction[1:].isdigit())
