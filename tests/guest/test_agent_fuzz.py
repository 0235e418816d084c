"""The decoders of both sides, fed with what hypothesis thinks of. `make fuzz` does the same guided by coverage."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guest.agent import frames, wire
from tests.fuzz.targets import TARGETS
from tests.guest import treeform

_NAMES = st.sampled_from(["", "a", "a/b", "b", "..", "a/../b", "/etc/passwd", "x" * 300, "\ud800", "\udc80", "a\0"])
_DATA = st.binary(max_size=64)
_ENTRIES = st.one_of(
    st.builds(lambda path: treeform.encode_entry(path, "directory"), _NAMES),
    st.builds(treeform.encode_file, _NAMES, _DATA),
    st.builds(lambda path, target: treeform.encode_entry(path, "symlink", target=target), _NAMES, _NAMES),
    st.builds(lambda path, target: treeform.encode_entry(path, "hardlink", target=target), _NAMES, _NAMES),
    st.builds(lambda path: treeform.encode_entry(path, "fifo"), _NAMES),
    st.builds(treeform.encode_end, st.integers(0, 5), st.integers(0, 200)),
    st.builds(lambda path, value: treeform.encode_entry(path, "file", size=value), _NAMES, st.from_type(type(None))),
)
_FRAMES = st.one_of(
    st.builds(
        lambda kind, stream, data: frames.build_header(kind, stream, len(data)) + data,
        st.integers(0, 6),
        st.integers(0, 3),
        _DATA,
    ),
    st.binary(max_size=20),
)


def join(parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Parts one after the other behind the byte that says how they are cut, sometimes with the end missing."""
    return st.builds(
        lambda size, pieces, missing: bytes([size]) + b"".join(pieces)[: -missing or None],
        st.integers(0, 255),
        st.lists(parts, max_size=8),
        st.sampled_from([0, 0, 1, 5]),
    )


def choose(name: str) -> st.SearchStrategy[bytes]:
    special = join(_ENTRIES) if name.endswith("tree") else join(_FRAMES)
    lines = join(
        st.sampled_from([b"\n", b"{}", b'"\\ud800"', b"[" * 999, b"1e999", b"9" * 25, b"x" * 300, b"\xf6\x02"])
    )
    return st.one_of(special, lines, st.binary(max_size=300))


@pytest.mark.parametrize("name", sorted(TARGETS))
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_decoder_takes_anything(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(choose(name)))


@pytest.mark.parametrize("line", [b"1e999", b"-1e999", b'{"a": [1e400]}'])
def test_a_number_without_bounds_is_refused(line: bytes) -> None:
    """Found by `make fuzz`: it became Infinity, which could not be written into an answer or the audit log."""
    with pytest.raises(wire.WireError):
        wire.decode(line)
