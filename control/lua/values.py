"""Values on their way between Python and Lua (floor 5); the other half is in `driver.lua`.

One value is a letter and what follows: `N` nil, `T` and `F`, `I` and 8 bytes, `D` and a double, `S` and a string with
its length, `L` and a sequence with its length, `M` and pairs with their number, `O` and what Lua says of anything else.
All numbers are little-endian. A frame holds the number of its values, and the values.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DEPTH_MAX = 100
_U32 = struct.Struct("<I")
_I64 = struct.Struct("<q")
_F64 = struct.Struct("<d")


@dataclass(frozen=True)
class LuaObject:
    """Something that cannot leave its interpreter: a function, a coroutine, a userdata. `text` is what Lua calls it."""

    text: str


def encode(values: Sequence[Any]) -> bytes:
    """Return the frame of `values`.

    None is nil; str goes as UTF-8, bytes as they are; sequences become tables from 1 on, mappings tables.

    Raises:
        TypeError, ValueError: One of them has no counterpart in Lua, or none that fits.
    """
    into = bytearray(_U32.pack(len(values)))
    for value in values:
        _put(into, value, 1)
    return bytes(into)


def decode(data: bytes) -> list[Any]:
    """Return the values of a frame.

    nil is None; a string is str, what is no UTF-8 in it as lone surrogates (`os.fsencode` gives the bytes back); a
    table with the keys 1 to n is a list, any other, the empty one too, a dict.

    Raises:
        ValueError: It is no frame.
    """
    try:
        (count,) = _U32.unpack_from(data)
        at, values = 4, []
        for _ in range(count):
            value, at = _take(data, at, 1)
            values.append(value)
    except (struct.error, IndexError) as error:
        raise ValueError("a frame ends early") from error
    if at != len(data):
        raise ValueError("a frame is longer than its values")
    return values


def _put(into: bytearray, value: Any, depth: int) -> None:
    if depth > DEPTH_MAX:
        raise ValueError(f"a value holds itself, or is nested more than {DEPTH_MAX} deep")
    match value:
        case None:
            into += b"N"
        case bool():
            into += b"T" if value else b"F"
        case int():
            if not -(2**63) <= value < 2**63:
                raise ValueError("a whole number of Lua has 64 bits")
            into += b"I" + _I64.pack(value)
        case float():
            into += b"D" + _F64.pack(value)
        case str() | bytes() | bytearray() | memoryview():
            data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
            into += b"S" + _U32.pack(len(data)) + data
        case Mapping():
            into += b"M" + _U32.pack(len(value))
            for key, item in value.items():
                if key is None or not isinstance(key, str | bytes | int | float) or key != key:
                    raise TypeError(f"{key!r:.40} cannot be a key in Lua")
                _put(into, key, depth + 1)
                _put(into, item, depth + 1)
        case Sequence():
            into += b"L" + _U32.pack(len(value))
            for item in value:
                _put(into, item, depth + 1)
        case _:
            raise TypeError(f"Lua has nothing like a {type(value).__name__}")


def _take(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    kind = data[at : at + 1]
    at += 1
    if depth > DEPTH_MAX + 1:
        raise ValueError("a value is nested too deeply")
    match kind:
        case b"N":
            return None, at
        case b"T" | b"F":
            return kind == b"T", at
        case b"I":
            return _I64.unpack_from(data, at)[0], at + 8
        case b"D":
            return _F64.unpack_from(data, at)[0], at + 8
        case b"S" | b"O":
            (length,) = _U32.unpack_from(data, at)
            end = at + 4 + length
            if end > len(data):
                raise ValueError("a frame ends early")
            text = data[at + 4 : end].decode("utf-8", "surrogateescape")
            return text if kind == b"S" else LuaObject(text), end
        case b"L" | b"M":
            return _take_table(data, at, depth, is_list=kind == b"L")
    raise ValueError("a frame holds what is no value")


def _take_table(data: bytes, at: int, depth: int, *, is_list: bool) -> tuple[Any, int]:
    (count,) = _U32.unpack_from(data, at)
    at += 4
    items: list[Any] = []
    for _ in range(count if is_list else 2 * count):
        item, at = _take(data, at, depth + 1)
        items.append(item)
    if is_list:
        return items, at
    keys = items[::2]
    if not all(isinstance(key, str | int | float) for key in keys):
        raise ValueError("a key is none")
    return dict(zip(keys, items[1::2], strict=True)), at
