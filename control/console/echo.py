"""Tells what was typed and shown from what was typed and not shown (floor 2): the latter may be a secret.

Passwords are typed while the guest does not echo. Nobody tells the host when that is; it has only what is typed and
what the guest says. So what is typed is a secret until the guest has repeated it, all of it and nothing else.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from enum import Enum

WAIT_S = 2.0
"""What has not been echoed by then counts as not echoed."""

WAITING_MAX_BYTES = 256 * 1024
"""More than this does not wait: it is masked."""

_WAITING_MAX_PIECES = 4096
_HEARD_MAX_BYTES = 4096
_SLICE_BYTES = 4096
_TAIL_BYTES = 64

_PIECES = re.compile(
    rb"(?P<enter>[\r\n])|(?P<erase>[\x08\x7f])|(?P<free>\t|\x1b(?:\[[0-9;?]{0,12}[A-HFPQRSZcu~]|O[A-Z]))"
    rb"|(?P<control>[\x00-\x1f])|(?P<text>[^\x00-\x1f\x7f]+)"
)
_BEGUN_KEY = re.compile(rb"\x1b(?:\[[0-9;?]{0,12}|O)?\Z")

# Control and escape sequences, and strings (ECMA-48): they colour an echo and are no part of it.
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\`-~])")
_OPEN_ESCAPE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)?\Z")

_ERASED = (b"\b \b", b"^?", b"^H", b"\b", b"\x07")
_LINE_ENDS = (b"\r", b"\n", b"\x03", b"\x04")


class Fate(Enum):
    """What is known of a piece of what was typed."""

    WAITING = "its echo has not come"
    SHOWN = "its echo has come; what follows may still show that it was something else"
    KEPT = "it may be recorded"
    MASKED = "it may be a secret"


@dataclass(eq=False)
class Piece:
    """Some of what was typed: a run of text, or one key."""

    kind: str
    data: bytes
    time: float
    fate: Fate = Fate.WAITING
    echoed: int = 0

    @property
    def is_settled(self) -> bool:
        return self.fate in (Fate.KEPT, Fate.MASKED)


class EchoJudge:
    """Is told what is typed and what the guest says, in order, and settles the fate of each piece. Memory is bounded.

    A line of text is kept once its Enter was echoed directly behind it, or when `WAIT_S` have passed, its echo has come
    and nothing has contradicted it. Until then anything else the guest says means that all of the line, and all that
    waits, is masked, and so is the rest of that line. Keys (Enter, Tab, cursor keys, control characters) are no
    secrets.
    """

    def __init__(self) -> None:
        self._waiting: deque[Piece] = deque()
        self._waiting_bytes = 0
        self._shown: deque[Piece] = deque()  # of the line that is being echoed, oldest first
        self._begun = b""  # of a key that is several bytes
        self._heard = b""  # the beginning of an echo or of an escape sequence
        self._line_has_ended = True
        self._is_suspect = False  # something of the line that is being typed was masked
        self._owes = False  # an echo did not come: it may come late, and look like that of something typed since
        self._is_free = False  # a key was typed which a guest answers with whatever it likes

    @property
    def oldest(self) -> float | None:
        """When the oldest piece was typed whose fate is not settled."""
        return min((queue[0].time for queue in (self._shown, self._waiting) if queue), default=None)

    def type(self, data: bytes, now: float) -> list[Piece]:
        """Take what is being typed, before the guest gets it."""
        self.settle(now)
        data = self._begun + data
        begun = _BEGUN_KEY.search(data, max(0, len(data) - 16))
        self._begun = begun[0] if begun else b""
        return self._take(data[: len(data) - len(self._begun)], now)

    def end(self, now: float) -> list[Piece]:
        """Mask what is not settled; return what was not yet given as a piece."""
        pieces = self._take(self._begun, now)
        self._begun = b""
        self.give_up()
        return pieces

    def hear(self, chunk: bytes, now: float) -> None:
        """Take what the guest says."""
        if self._waiting or self._shown:
            self.settle(now)
        at = 0
        while (self._waiting or self._shown) and at < len(chunk):
            self._listen(chunk[at : at + _SLICE_BYTES])
            at += _SLICE_BYTES
        if at < len(chunk):
            self._owes = False
            end = self._heard + chunk[max(at, len(chunk) - _TAIL_BYTES) :]
            is_open = b"\x1b" in end and (found := _OPEN_ESCAPE.search(_ESCAPES.sub(b"", end)))
            self._heard = found[0][-_HEARD_MAX_BYTES:] if is_open and found else b""

    def settle(self, now: float) -> None:
        """Settle what has waited long enough."""
        while self._shown and now - self._shown[0].time >= WAIT_S:
            self._shown.popleft().fate = Fate.KEPT
        while self._waiting and now - self._waiting[0].time >= WAIT_S:
            if self._waiting[0].kind == "text":
                self._owes = True
                self.give_up()
            else:
                self._pop(Fate.KEPT)
                self._heard = b""

    def _take(self, data: bytes, now: float) -> list[Piece]:
        pieces = [Piece(match.lastgroup or "text", match[0], now) for match in _PIECES.finditer(data)]
        for piece in pieces:
            if piece.kind == "text" and (self._is_suspect or self._owes):
                piece.fate = Fate.MASKED
                self._is_suspect = True
                self._line_has_ended = False
                continue
            self._waiting.append(piece)
            self._waiting_bytes += len(piece.data)
            self._line_has_ended = piece.data in _LINE_ENDS
            if self._line_has_ended:
                self._is_suspect = False
            if self._waiting_bytes > WAITING_MAX_BYTES or len(self._waiting) > _WAITING_MAX_PIECES:
                self._owes = True
                self.give_up()
        return pieces

    def _listen(self, chunk: bytes) -> None:
        heard = _ESCAPES.sub(b"", self._heard + chunk)
        found = _OPEN_ESCAPE.search(heard) if b"\x1b" in heard else None
        begun = found[0] if found else b""
        if len(begun) > _HEARD_MAX_BYTES:
            self.give_up()
            return
        self._heard = self._compare(heard[: len(heard) - len(begun)]) + begun

    def _compare(self, heard: bytes) -> bytes:
        """Compare what was heard with what waits; return what may be the beginning of an echo."""
        while self._waiting and heard:
            piece = self._waiting[0]
            if piece.kind == "text":
                expected = piece.data[piece.echoed : piece.echoed + len(heard)]
                if not heard.startswith(expected):
                    self.give_up()
                    return b""
                piece.echoed += len(expected)
                heard = heard[len(expected) :]
                if piece.echoed == len(piece.data):
                    self._shown.append(self._pop(Fate.SHOWN))
                    self._is_free = False
                continue
            if self._is_free and piece.kind == "enter":
                heard = heard[heard.find(b"\n") :] if b"\n" in heard else b""
                if not heard:
                    return b""
            echo = _find_echo(piece, heard)
            if echo is None:
                return heard
            if piece.kind == "enter" and not echo:
                self.give_up()
                return b""
            self._pop(Fate.KEPT)
            heard = heard[len(echo) :]
            if piece.kind == "enter" or (piece.kind == "control" and echo):
                self._confirm()
            self._is_free = piece.kind == "free" or (self._is_free and piece.kind != "enter")
        if heard and self._shown and not self._is_free:
            self.give_up()
        return b""

    def _pop(self, fate: Fate) -> Piece:
        piece = self._waiting.popleft()
        self._waiting_bytes -= len(piece.data)
        piece.fate = fate
        return piece

    def _confirm(self) -> None:
        for piece in self._shown:
            piece.fate = Fate.KEPT
        self._shown.clear()

    def give_up(self) -> None:
        """Mask whatever is not settled: it may be a secret, because the guest has said something else."""
        for piece in (*self._shown, *self._waiting):
            piece.fate = Fate.MASKED if piece.kind == "text" else Fate.KEPT
            if piece.kind == "text":
                self._is_suspect = not self._line_has_ended
        self._shown.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        self._heard = b""
        self._is_free = False


def _find_echo(key: Piece, heard: bytes) -> bytes | None:
    """Find how `heard` echoes a key; empty when it does not, None when more has to be heard."""
    if key.kind == "enter":
        echoes: tuple[bytes, ...] = (b"\r\n", b"\n")
    elif key.kind == "erase":
        echoes = _ERASED
    elif key.kind == "control":
        echoes = (b"^" + bytes([key.data[0] ^ 0x40]),)
    else:
        return b""
    if any(len(heard) < len(echo) and echo.startswith(heard) for echo in echoes):
        return None
    return next((echo for echo in echoes if heard.startswith(echo)), b"")
