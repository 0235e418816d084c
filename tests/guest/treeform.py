"""The form of trees on a stream, by the words of `docs/protocol.md`; it shares nothing with the agent's own code."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


def encode_entry(path: str, type_: str, **more: Any) -> bytes:
    mode = {} if type_ in ("symlink", "hardlink") else {"mode": 0o755 if type_ == "directory" else 0o644}
    return (
        json.dumps({"path": path, "type": type_, "mtime_ns": 1_700_000_000_123_456_789, **mode, **more}).encode()
        + b"\n"
    )


def encode_content(*pieces: tuple[int, bytes], size: int | None = None, crc: int = 0) -> bytes:
    """Pieces as (offset, bytes); the file ends after the last of them, or at `size`."""
    parts = []
    end = 0
    for offset, data in pieces:
        parts.append(struct.pack("<QI", offset, len(data)) + data)
        crc = zlib.crc32(data, crc)
        end = offset + len(data)
    parts.append(struct.pack("<QII", end if size is None else size, 0, crc))
    return b"".join(parts)


def encode_file(path: str, data: bytes, **more: Any) -> bytes:
    pieces = [(0, data)] if data else []
    return encode_entry(path, "file", size=len(data), **more) + encode_content(*pieces)


def encode_end(entries: int, count: int) -> bytes:
    return json.dumps({"end": True, "entries": entries, "bytes": count}).encode() + b"\n"


@dataclass
class Received:
    """One entry as it arrived: its line, and for a file its pieces and its whole content."""

    line: Json
    content: bytes = b""
    pieces: list[tuple[int, int]] = field(default_factory=list)


def decode_tree(data: bytes, crc: int = 0) -> tuple[dict[str, Received], Json]:
    """Gives the entries by path, and the last line. `crc` is what a resumed file's goes on from."""
    entries: dict[str, Received] = {}
    at = 0
    while True:
        end = data.index(b"\n", at)
        line: Json = json.loads(data[at:end])
        at = end + 1
        if line.get("end"):
            assert at == len(data), "something follows the end"
            return entries, line
        received = entries[line["path"]] = Received(line)
        if line["type"] == "file":
            content = bytearray()
            seen = crc
            while True:
                offset, length = struct.unpack_from("<QI", data, at)
                at += 12
                assert offset >= len(content) and length <= 4 * 1024 * 1024
                content += bytes(offset - len(content))
                if not length:
                    break
                received.pieces.append((offset, length))
                piece = data[at : at + length]
                content += piece
                seen = zlib.crc32(piece, seen)
                at += length
            assert struct.unpack_from("<I", data, at)[0] == seen
            at += 4
            received.content = bytes(content)
