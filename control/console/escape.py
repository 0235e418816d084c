"""The escape key of an interactive console (floor 2): Ctrl-] leaves, Ctrl-] twice types one."""

from __future__ import annotations

ESCAPE_KEY = 0x1D
"""Ctrl-], as telnet and `virsh console` have it."""


def split_at_escape(typed: bytes) -> tuple[bytes, bytes | None]:
    """Split what was typed at the first escape key.

    Returns:
        What goes to the guest, and what was typed after the escape key; None when it was not typed.

    >>> split_at_escape(b"ls")
    (b'ls', None)
    >>> split_at_escape(b"ls" + bytes([ESCAPE_KEY]) + b"q")
    (b'ls', b'q')
    """
    before, key, after = typed.partition(bytes([ESCAPE_KEY]))
    return before, after if key else None
