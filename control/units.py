"""Sizes and durations as people write them (floor 0)."""

from __future__ import annotations

import re

from control.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_FACTORS = {"": MIB, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
# Twelve digits are more than any size needs, and keep the arithmetic far from its ends.
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*(?:([KMGT])(?:I?B)?|(B))?", re.IGNORECASE | re.ASCII)


def parse_size_bytes(text: str, *, key: str) -> int:
    """Read a size such as `512M`, `1G`, `1.5GiB`; a bare number counts mebibytes, as QEMU's `-m` does.

    Raises:
        ConfigError: `text` is not a size; names `key` and shows examples.

    Source: QEMU manual, option `-m`: "megabytes is the default suffix".

    >>> parse_size_bytes("1.5G", key="MEMORY") == 1536 * MIB
    True
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{key}={text[:80]!r} is not a size", key=key, hint=f"write it like {key}=512M or {key}=2G")
    number, unit, byte = match.groups()
    return int(float(number) * _FACTORS[(unit or byte or "").upper()])


def format_size(size_bytes: int) -> str:
    """Show a size with the largest binary unit that keeps it at or above one.

    >>> format_size(1536 * MIB), format_size(512)
    ('1.5 GiB', '512 B')
    """
    for factor, unit in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= factor:
            return f"{round(size_bytes / factor, 1):g} {unit}"
    return f"{size_bytes} B"


def format_duration(seconds: float) -> str:
    """Show a duration in the unit a reader would choose.

    >>> format_duration(0.0421), format_duration(2.31), format_duration(75)
    ('42 ms', '2.3 s', '1 min 15 s')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
