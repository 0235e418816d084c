"""What makes a terminal answer is taken out of a stream, and nothing else, however the stream is cut."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pyte
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from control.console.questions import STRING_MAX_BYTES, QuestionFilter

ASKED = [
    b"\x05",
    b"\x1b[6n",
    b"\x1b[5n",
    b"\x1b[?6n",
    b"\x1b[?996n",
    b"\x1b[0006n",
    b"\x1b[6\nn",
    b"\x1b[6\x05n",
    b"\x1b\x00[6n",
    b"\x1b[c",
    b"\x1b[0c",
    b"\x1b[>c",
    b"\x1b[>0c",
    b"\x1b[=c",
    b"\x1b[=0c",
    b"\x1b[?c",
    b"\x1bZ",
    b"\x1b[x",
    b"\x1b[1x",
    b"\x1b[4$p",
    b"\x1b[?2026$p",
    b"\x1b[1$w",
    b"\x1b[2$u",
    b"\x1b[&u",
    b'\x1b["v',
    b"\x1b[1;1;1;1;1;1*y",
    b"\x1b[1*z",
    b"\x1b['|",
    b"\x1b[1;2'z",
    b"\x1b[1;1;5;5'w",
    b"\x1b[1;1;2;2#|",
    b"\x1b[#R",
    b"\x1b[>q",
    b"\x1b[>0q",
    b"\x1b[11t",
    b"\x1b[13t",
    b"\x1b[13;2t",
    b"\x1b[14t",
    b"\x1b[15t",
    b"\x1b[16t",
    b"\x1b[18t",
    b"\x1b[19t",
    b"\x1b[20t",
    b"\x1b[21t",
    b"\x1b[?u",
    b"\x1b[?1;1;0S",
    b"\x1b[?4m",
    b"\x1b[?2048h",
    b"\x1b[?1004h",
    b"\x1b[?25;2031h",
    b"\x1b[?38h",
    b"\x1bP$qm\x1b\\",
    b"\x1bP+q544e\x1b\\",
    b"\x1bP$q q\x1b\\",
    b"\x1bP0;1|17/6c730d\x1b\\",
    b"\x1bP1;0;1!z1b5b366e\x1b\\",
    b"\x1bP@kitty-cmd{}\x1b\\",
    b"\x1b]4;1;?\x07",
    b"\x1b]4;1;?\x1b\\",
    b"\x1b]10;?\x07",
    b"\x1b]010;?\x07",
    b"\x1b]11;?\x1b\\",
    b"\x1b]12;?\x07",
    b"\x1b]19;?\x07",
    b"\x1b]5;0;?\x07",
    b"\x1b]50;?\x07",
    b"\x1b]21;foreground=?\x1b\\",
    b"\x1b]702;?\x07",
    b"\x1b]52;c;?\x07",
    b"\x1b]52;c;ZWNobyBoaQ==\x07",
    b"\x1b]52;;?\x1b\\",
    b"\x1b]5522;type=read\x1b\\",
    b"\x1b]60\x07",
    b"\x1b]1337;ReportCellSize\x07",
    b"\x1b]1337;RequestUpload=format=tgz\x07",
    b"\x1b]10;\x00?\x07",
    b"\x1b]1\x000;?\x07",
    b"\x1b_Gi=1,a=q;AAAA\x1b\\",
    b"\x1b]11;\xc2\x9b6n\x07",
    b"\xc2\x9b6n",
    b"\xc2\x9bc",
    b"\xc2\x9d10;?\x07",
    b"\xc2\x90$qm\x1b\\",
    b"\xc2\x9a",
    b"\x1b%@",
]
"""Each is gone without a trace when it stands in text."""

HARMLESS = [
    b"\x1b[m",
    b"\x1b[1;31m",
    b"\x1b[38:2::1:2:3m",
    b"\x1b[2J",
    b"\x1b[H",
    b"\x1b[10;20H",
    b"\x1b[K",
    b"\x1b[?25h",
    b"\x1b[?25l",
    b"\x1b[?2004h",
    b"\x1b[?1049h",
    b"\x1b[?1000h",
    b"\x1b[2 q",
    b"\x1b[1q",
    b"\x1b[!p",
    b'\x1b[61"p',
    b"\x1b[8;24;80t",
    b"\x1b[22;0t",
    b"\x1b[>4;2m",
    b"\x1b[>4n",
    b"\x1b[u",
    b"\x1b[>1u",
    b"\x1b[<u",
    b"\x1b[S",
    b"\x1b[3g",
    b"\x1b[?0c",
    b"\x1b[?8c",
    b"\x1b[1;24r",
    b"\x1b[4h",
    b"\x1b[5\n;1H",
    b"\x1b(B",
    b"\x1b)0",
    b"\x1b#8",
    b"\x1b%G",
    b"\x1b7",
    b"\x1b8",
    b"\x1b=",
    b"\x1bM",
    b"\x1bc",
    b"\x1b]0;what?\x07",
    b"\x1b]2;t\x1b\\",
    b"\x1b]8;;http://a/?b=c\x1b\\link\x1b]8;;\x1b\\",
    b"\x1b]7;file://h/a?\x07",
    b"\x1b]11;#102030\x07",
    b"\x1b]104\x07",
    b"\x1b]4;1;rgb:00/00/00\x1b\\",
    b"\x1b]P0000000",
    b"\x1b]133;A\x07",
    b"\x1b]1337;File=inline=1:QUJD?\x07",
    b"\x1bPq#0;2;0;0;0~~\x1b\\",
    b"\x1bP0;1;0q~\x1b\\",
    b"\x1b^private\x1b\\",
    b"\xe2\x9d\x9b6n",
    b"\xd0\x9bc",
    b"\xc3\x9bn",
    b"\xc2\xa3",
    b"\xff\xfe",
    b"\x00\x07\x08\t\r\n\x7f",
    b"[6n",
    b"plain text",
    b"\x18",
    b"\x1b[\x18",
    b"\x1b]10;",
]
BREAKERS = [
    b"\x1b",
    b"\x1b[",
    b"\x1b]",
    b"\x1bP",
    b"\xc2",
    b"\x1b%",
    b"\x9b",
    b"6n",
    b"?\x07",
    b"@",
    b"c",
    b"\x05",
    b"10;",
    b"\x07",
    b"\x18",
    b"\x1b\\",
    b";",
    b"0" * 300,
    b"\n" * 300,
    b"x" * 5000,
]
STREAMS = st.lists(
    st.one_of(st.sampled_from(ASKED), st.sampled_from(HARMLESS), st.sampled_from(BREAKERS), st.binary(max_size=6)),
    max_size=12,
).map(b"".join)


def pass_through(data: bytes, cuts: list[int] | None = None, *, is_utf8: bool = True) -> bytes:
    questions = QuestionFilter(is_utf8=is_utf8)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts or ()), len(data)]
    return b"".join(questions.feed(data[start:end]) for start, end in itertools.pairwise(edges))


@pytest.mark.parametrize("question", ASKED, ids=repr)
def test_a_question_is_taken_out(question: bytes) -> None:
    assert pass_through(b"before" + question + b"after") == b"beforeafter"
    assert pass_through(b"before" + question + b"after", list(range(len(question) + 12))) == b"beforeafter"


@pytest.mark.parametrize("sequence", [entry for entry in HARMLESS if entry != b"\x1b]10;"], ids=repr)
def test_all_else_passes_byte_for_byte(sequence: bytes) -> None:
    assert pass_through(b"before" + sequence + b"after") == b"before" + sequence + b"after"
    cuts = list(range(len(sequence) + 12))
    assert pass_through(b"before" + sequence + b"after", cuts) == b"before" + sequence + b"after"


@settings(max_examples=500, deadline=None)
@given(STREAMS, st.lists(st.integers(0, 8000), max_size=30))
@example(b"\x1b]10;" + b"x" * STRING_MAX_BYTES + b"\x1b\\text", [4100, 4101])
@example(b"\x1bP+q\x1b\\text", [4, 5])
def test_the_result_does_not_depend_on_the_chunks(data: bytes, cuts: list[int]) -> None:
    assert pass_through(data, cuts) == pass_through(data)
    assert pass_through(data, cuts, is_utf8=False) == pass_through(data, is_utf8=False)


@settings(max_examples=1000, deadline=None)
@given(STREAMS)
@example(b"\x1b[\x1b[6n6n")
@example(b"\x1b]10;\x1b[6n?\x07")
@example(b"\xc2\x05\x9b6n")
@example(b"\x1b]\xc2\x9b6n10;?\x07")
@example(b"\xc2\x1b[6n\x9b6n")
@example(b"\x1b%\x1b[6n@")
@example(b"\x1bP\x1b[6n+q00\x1b\\")
def test_what_is_left_holds_no_question_that_was_not_there(data: bytes) -> None:
    """Taking something out puts together what stood around it: that must not be a question in its turn."""
    once = pass_through(data)
    assert pass_through(once) == once
    in_bytes = pass_through(data, is_utf8=False)
    assert pass_through(in_bytes, is_utf8=False) == in_bytes


class _Answering(pyte.Screen):
    """A terminal of somebody else's making."""

    def __init__(self) -> None:
        super().__init__(80, 24)
        self.answers: list[str] = []

    def write_process_input(self, data: str) -> None:
        self.answers.append(data)


def _ask(data: bytes) -> list[str]:
    screen = _Answering()
    pyte.ByteStream(screen).feed(data)
    return screen.answers


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\x1b[6n", b"\x1b[5n", b"\x1b[c", b"\x1b[0c", b"\x1b[1m", b"x", b"\x1b", b"6n"]), max_size=8
    )
)
def test_a_terminal_has_nothing_to_answer(parts: list[bytes]) -> None:
    assert not _ask(pass_through(b"".join(parts)))


def test_that_terminal_would_answer() -> None:
    assert len(_ask(b"\x1b[6n\x1b[c")) == 2


def test_single_bytes_introduce_sequences_where_the_terminal_does_not_read_utf_8() -> None:
    assert pass_through(b"a\x9b6nb\x9d10;?\x9cc\x90$qm\x9cd\xe2\x9b6ne", is_utf8=False) == b"abcd\xe2e"
    assert pass_through("a \u275b6n and Лc".encode()) == "a \u275b6n and Лc".encode()


def test_what_a_multiplexer_would_pass_on_is_taken_out_as_well() -> None:
    assert pass_through(b"a\x1bPtmux;\x1b\x1b[6n\x1b\\b") == b"a\x1b\\b"
    assert pass_through(b"a\x1bP\x1b[6n\x1b\\b") == b"a\x1b\\b"
    assert pass_through(b"a\x1bP\x1b[\x1b\\\x1bP6n\x1b\\b") == b"a\x1b\\b"


def test_memory_is_bounded_whatever_comes() -> None:
    for endless in (
        b"\x1b[" + b"0" * 65536,
        b"\x1b]52;c;" + b"A" * 65536,
        b"\x1bP+q" + b"0" * 65536,
        b"\x1b" + b"\n" * 65536,
        b"\x1b]" + b"1" * 65536,
        b"\x1b_" + b"x" * 65536,
        b"\x1b " + b" " * 65536,
    ):
        questions = QuestionFilter()
        questions.feed(endless)
        tracemalloc.start()
        for _ in range(100):
            questions.feed(endless[64:])
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 32 * 1024, endless[:8]


def test_a_burst_is_not_slowed_down() -> None:
    """On a loaded machine: the order of magnitude. A filter that looks at each byte in Python reaches some 5 MB/s."""
    lines = b"\x1b[32mgreen\x1b[0m a line of a build that says what is compiled at the moment.c\r\n" * 3000
    questions = QuestionFilter()
    began = time.perf_counter()
    for _ in range(40):
        questions.feed(lines)
    assert 40 * len(lines) / (time.perf_counter() - began) > 20e6
