"""Takes out of a console's stream what makes a terminal answer (floor 2): what is shown must not type for its viewer.

A terminal answers a question as if its user had typed the answer. The program that asked is in the guest; who reads
the answer is a viewer's own shell, and the guest chooses much of what it says. Viewers who do not type into the guest,
and replays, see the stream through this filter.
"""

from __future__ import annotations

import re

BODY_MAX_BYTES = 256
"""A control sequence that is longer is cut out: no program writes one, and an unfinished one has to be held back."""

STRING_MAX_BYTES = 4096
"""The same for the strings (colours, clipboard) of which only their end tells whether they ask."""

_ESC = 0x1B

# A terminal acts on these in the middle of a sequence, which goes on behind them (ECMA-48; DEC's parsers).
_C0 = rb"[\x00-\x17\x19\x1c-\x1f\x7f]"
_FEW_C0 = _C0 + rb"{0,256}+"
_MANY_C0 = _C0 + rb"{257}"
_BODY = rb"[\x00-\x17\x19\x1c-\x3f\x7f]"
_BETWEEN = rb"[\x00-\x17\x19\x1c-\x2f\x7f]"

# Titles, the working directory, links, notifications, marks of shells, pictures: they never ask, and may hold a `?`.
_SAFE_STRING = rb"0{0,8}(?:[012789]|133|633|777);|1337;File=|[^0-9;\x00-\x1f\x7f-\xff]"

_ASKING_BETWEEN = frozenset(
    (b"$p", b"$w", b"$u", b"&u", b'"v', b"*y", b"*z", b"'|", b"'z", b"'w", b"#|", b"#R")
)  # DECRQM, DECRQPSR, DECRQTSR, DECRQUPSS, DECRQDE, DECRQCRA, DECINVM, DECRQLP, DECELR, DECEFR, XTREPORTSGR and -COLORS
_ASKING_WINDOW = frozenset((11, 13, 14, 15, 16, 18, 19, 20, 21))
_ANSWERED_MODES = frozenset((38, 1004, 2031, 2048))
"""Tektronix mode, focus, colour scheme, size: the terminal reports what they are about by itself."""

_CLIPBOARDS_AND_FEATURES = frozenset((52, 60, 61, 5522))
_ITERM_REQUESTS = (b"report", b"request", b"capab", b"copy", b"endcopy")

_CONTROLS = re.compile(_C0)
_INNER = re.compile(rb"\xc2" + _C0 + rb"*[\x80-\x9f]")
_INNER_SINGLE = re.compile(rb"[\x80-\x9b\x9d-\x9f]")
_PARTS = re.compile(rb"([<=>?]?)([0-?]*)([ -/]*)([@-~])")
_NUMBERS = re.compile(rb"[0-9]+")


def _build_pattern(*, is_utf8: bool) -> re.Pattern[bytes]:
    """Build the pattern of all that is taken out, of what may be, and of the beginning of either at the end."""
    raw = b"" if is_utf8 else rb"\x90\x9a-\x9b\x9d\x9f"
    stop = rb"[\x1b\xc2" + raw + rb"]"
    string_end = rb"\x07\x18\x1a\x1b" + (b"" if is_utf8 else rb"\x9c")
    content = rb"[^" + string_end + rb"]"
    end = rb"(?:[\x07" + (b"" if is_utf8 else rb"\x9c") + rb"]|\x1b\\|(?=[\x18\x1a]|\x1b[^\\]))"
    number = iter(range(100))

    def name(kind: bytes) -> bytes:
        return b"(?P<%s%d>" % (kind, next(number))

    def csi() -> bytes:
        return b"".join(
            (rb"(?:", _BODY, rb"{257}",
             rb"|", name(b"csi"), _BODY, rb"*+[cfghnpqtuvwxyzRS|]|", _C0, rb"*+\?", _BODY, rb"*+m)",
             rb"|", _BODY, rb"*+(?=", stop, rb")",
             rb"|", name(b"held"), _BODY, rb"*+\Z))")
        )  # fmt: skip

    def osc() -> bytes:
        return b"".join(
            (rb"(?!", _SAFE_STRING, rb")(?:", name(b"osc"), content, rb"*+", end, rb")",
             rb"|", name(b"held"), content, b"{0,%d}+" % STRING_MAX_BYTES, rb"\x1b?\Z)",
             rb"|", name(b"open"), content, rb"*+\x1b?\Z))")
        )  # fmt: skip

    def device() -> bytes:  # only a sixel picture passes
        return b"".join(
            (rb"(?:", name(b"held"), rb"[0-9;]{0,256}+\x1b?\Z)",
             rb"|(?![0-9;]{0,256}+q)", application(), rb")")
        )  # fmt: skip

    def application() -> bytes:
        return b"".join((rb"(?:", content, rb"*+", end, rb"|", name(b"open"), content, rb"*+\x1b?\Z))"))

    def broken() -> bytes:
        """An introducer that another sequence, or too much else, follows: it has no effect, and must never get one."""
        return b"".join((rb"(?=", _FEW_C0, stop, rb"|", _MANY_C0, rb")|", name(b"held"), _FEW_C0, rb"\Z)"))

    escapes = b"".join(
        # Colours and movements are most of what comes: they are known at a glance.
        (rb"\x1b(?!\[[0-9;:]{0,200}+[A-HJKm])(?:", _FEW_C0,
         rb"(?:\[", csi(), rb"|\]", osc(), rb"|P", device(), rb"|_", application(), rb"|Z",
         rb"|%", _C0, rb"{0,254}+@",  # out of UTF-8, where single bytes are introducers
         rb"|[ -/]", _BETWEEN, rb"{256}",
         rb"|[ -/]", _BETWEEN, rb"*+(?=", stop, rb")",
         rb"|", name(b"held"), rb"[ -/]", _BETWEEN, rb"*+\Z))",
         rb"|", broken(), rb")")
    )  # fmt: skip
    encoded = b"".join(
        (rb"\xc2(?:", _FEW_C0, rb"(?:\x9b", csi(), rb"|\x9d", osc(), rb"|\x90", device(), rb"|\x9f", application(),
         rb"|\x9a)|", broken(), rb")")
    )  # fmt: skip
    single = b"".join(
        (rb"|\x9b", csi(), rb"|\x9d", osc(), rb"|\x90", device(), rb"|\x9f", application(), rb"|\x9a")
    )  # fmt: skip
    return re.compile(rb"\x05|" + escapes + rb"|" + encoded + (b"" if is_utf8 else single))


_UTF8 = _build_pattern(is_utf8=True)
_SWALLOWED = re.compile(rb"[^\x07\x18\x1a\x1b]*+")
_SWALLOWED_SINGLE = re.compile(rb"[^\x07\x18\x1a\x1b\x9c]*+")


class QuestionFilter:
    """Feed it chunks; it returns them without questions, however the stream is cut. Memory is bounded.

    Taken out are: ENQ; reports of status, attributes, modes, settings, size, title, checksums and colours; clipboard
    access, reading and writing; device control strings other than sixel pictures (settings and capabilities are asked
    with them, keys and macros defined); application strings (kitty's pictures are answered); the switch out of UTF-8;
    modes whose change the terminal reports by itself. Sequences that are cut off by another one go as well: without
    what stood behind them they could become a question. All else passes, byte for byte.

    Args:
        is_utf8: Whether the viewer's terminal takes its bytes as UTF-8. In another one, bytes from 0x80 on introduce
            sequences as well.

    Source: XTerm Control Sequences, https://invisible-island.net/xterm/ctlseqs/ctlseqs.html; kitty's keyboard, graphics
        and clipboard protocols, https://sw.kovidgoyal.net/kitty/protocol-extensions/; iTerm2's escape codes,
        https://iterm2.com/documentation-escape-codes.html.
    """

    def __init__(self, *, is_utf8: bool = True) -> None:
        self._is_utf8 = is_utf8
        self._pattern = _UTF8 if is_utf8 else _build_pattern(is_utf8=False)
        self._swallowed = _SWALLOWED if is_utf8 else _SWALLOWED_SINGLE
        self._inner = _INNER if is_utf8 else _INNER_SINGLE
        self._held = b""
        self._swallows = False

    def feed(self, chunk: bytes) -> bytes:
        """Return what of it passes; the beginning of what may be a question is held back until it is known."""
        if not (self._held or self._swallows or b"\x1b" in chunk or b"\x05" in chunk) and (
            chunk.isascii() or (self._is_utf8 and b"\xc2" not in chunk)
        ):
            return chunk
        data = self._held + chunk
        self._held = b""
        if self._swallows:
            data = self._swallow(data)
        return self._pattern.sub(self._judge, data)

    def _swallow(self, data: bytes) -> bytes:
        """Return what stands behind the string that is being left out."""
        match = self._swallowed.match(data)
        at = match.end() if match else 0
        if at == len(data):
            return b""
        if data[at] == _ESC:
            if at + 1 == len(data):
                self._held = data[at:]
                return b""
            at += 2 if data[at + 1] == ord("\\") else 0
        elif data[at] not in b"\x18\x1a":
            at += 1
        self._swallows = False
        return data[at:]

    def _judge(self, match: re.Match[bytes]) -> bytes:
        kind, found = match.lastgroup or "", match[0]
        if kind.startswith("held"):
            self._held = found
        elif kind.startswith("open"):
            self._swallows = True
            self._held = found[-1:] if found[-1] == _ESC else b""
        elif kind.startswith("csi") and not _csi_asks(found):
            return found.replace(b"\x05", b"")
        elif kind.startswith("osc") and not _string_asks(found) and not self._inner.search(found, 2):
            return found.replace(b"\x05", b"")  # and no other sequence stands within it
        return b""


def _csi_asks(sequence: bytes) -> bool:
    plain = _CONTROLS.sub(b"", sequence)
    match = _PARTS.fullmatch(plain, 1 if plain[0] == 0x9B else 2)
    if match is None:
        return True  # nothing a terminal knows, in the shape of a question
    marker, parameters, between, final = match.groups()
    if between:
        return between + final in _ASKING_BETWEEN
    match (marker, final):
        case (b">", b"n") | (_, b"p" | b"v" | b"w" | b"y" | b"z" | b"|" | b"R"):
            return False
        case (b"?", b"c"):
            return not parameters  # with one it is how Linux's console is told the shape of its cursor
        case (_, b"c" | b"n" | b"x"):
            return True
        case (_, b"q"):
            return marker == b">"
        case (b"", b"t"):
            first = _NUMBERS.match(parameters)
            return first is not None and int(first[0]) in _ASKING_WINDOW
        case (b"?", b"h"):
            return any(int(number) in _ANSWERED_MODES for number in _NUMBERS.findall(parameters))
        case (b"?", b"u" | b"S" | b"m" | b"f" | b"g"):
            return True
    return False


def _string_asks(sequence: bytes) -> bool:
    if len(sequence) > STRING_MAX_BYTES or not sequence.endswith((b"\x07", b"\x1b\\", b"\x9c")):
        return True  # too long, or cut off, so that it would have no effect where it stands
    start = 2 if sequence[0] != 0x9D else 1
    number, _, rest = _CONTROLS.sub(b"", sequence)[start:].partition(b";")
    digits = _NUMBERS.match(number)
    code = int(digits[0]) if digits else -1
    if code in _CLIPBOARDS_AND_FEATURES:
        return True
    if code == 1337:
        return rest.lower().startswith(_ITERM_REQUESTS)
    return b"?" in rest
