"""What crosses the border to the guest, as data (floor 1): schemas and messages."""

from control.wire.message import Message, build_message, encode_message, parse_message

__all__ = ["Message", "build_message", "encode_message", "parse_message"]
