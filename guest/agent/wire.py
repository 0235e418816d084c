"""Lines and JSON: cuts a byte stream into bounded lines and turns lines into values and back (guest floor).

Used by every carrier. `json` itself imports `re`, which costs more than all the rest of the agent's start, so the
C parts of `json` are used directly where this Python has them and `json` itself where it does not.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_ANSWER_BYTES = 1024 * 1024
MAX_INTEGER_DIGITS = 20


class WireError(Exception):
    """A line that is not one JSON value; the text says why in one sentence."""


def _parse_int(text: str) -> int:
    # Converting a very long integer takes quadratic time, so its length is looked at first.
    if len(text) > MAX_INTEGER_DIGITS:
        raise WireError("an integer has more than %d digits" % MAX_INTEGER_DIGITS)
    return int(text)


def _parse_float(text: str) -> float:
    # 1e999 would become Infinity, which could be taken but never be sent back.
    value = float(text)
    if value - value != 0:
        raise WireError("a number is out of bounds")
    return value


def _parse_constant(text: str) -> float:
    raise WireError("%s is not JSON" % text)


class _ScannerContext:
    """The attributes that the C scanner of CPython reads (Source: Modules/_json.c, scanner_new)."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_parse_float)
    parse_int = staticmethod(_parse_int)
    parse_constant = staticmethod(_parse_constant)


def _build_codec() -> "tuple[Callable[[str, int], tuple[Any, int]], Callable[[Any, int], Any]]":
    """Returns `scan(text, index) -> (value, end)` and `encode(value) -> chunks`."""
    try:
        import _json

        scan: "Callable[[str, int], tuple[Any, int]]" = _json.make_scanner(_ScannerContext())  # type: ignore[arg-type]
        encoder = _json.make_encoder(None, _refuse, _json.encode_basestring, None, ":", ",", False, False, False)
        if scan('{"a":[1]}', 0) != ({"a": [1]}, 9) or "".join(encoder({"a": [1]}, 0)) != '{"a":[1]}':
            raise TypeError("the C parts of json behave differently here")
        return scan, encoder
    except (ImportError, AttributeError, TypeError):
        # Not CPython, or one whose inner interface differs: the public interface does the same, more slowly.
        import json

        scan = json.JSONDecoder(
            parse_float=_parse_float, parse_int=_parse_int, parse_constant=_parse_constant
        ).raw_decode
        public = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False)
        return scan, lambda value, _indent: (public.encode(value),)


def _refuse(value: object) -> object:
    raise TypeError("%s has no form in JSON" % type(value).__name__)


_scan, _encode = _build_codec()


def _scan_with_errors(text: str) -> "tuple[Any, int]":
    try:
        return _scan(text, 0)
    except SystemError:
        # The C scanner takes its exception from json.decoder and fails like this while nobody has imported that.
        # It is slow to import, so it waits for the first line that is not JSON. Source: Modules/_json.c, raise_errmsg.
        import json.decoder  # noqa: F401

        return _scan(text, 0)


def decode(line: bytes) -> "Any":
    """Gives the one JSON value in `line`.

    Raises:
        WireError: It is not UTF-8, not JSON, more than one value, nested too deeply, or holds a number out of bounds.
    """
    try:
        text = line.decode("utf-8").strip(" \t\r\n")
        value, end = _scan_with_errors(text)
    except StopIteration:
        raise WireError("the line is not JSON") from None
    except UnicodeDecodeError:
        raise WireError("the line is not UTF-8") from None
    except RecursionError:
        raise WireError("the value is nested too deeply") from None
    except ValueError as error:
        raise WireError("the line is not JSON: %s" % str(error)[:200]) from None
    if end != len(text):
        raise WireError("there is more on the line after the JSON value")
    return value


def encode(value: object) -> bytes:
    """Gives `value` as one line of JSON with its line feed.

    It is always valid UTF-8: a lone surrogate, which UTF-8 cannot carry, becomes a question mark.
    """
    return ("".join(_encode(value, 0)) + "\n").encode("utf-8", "replace")


def encode_exactly(value: object) -> bytes:
    """As `encode`, but a lone surrogate is written as its escape: a name that is not UTF-8 comes back as it was."""
    return ("".join(_encode(value, 0)) + "\n").encode("utf-8", "backslashreplace")


class LineDecoder:
    """Cuts bytes into lines and holds at most `limit` bytes of an unfinished one.

    A line over the limit is thrown away to its end and reported once, as None.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self.limit = limit
        self._parts: "list[bytes]" = []
        self._size = 0
        self._discarding = False

    def feed(self, data: bytes) -> "list[bytes | None]":
        """Takes the next bytes; gives the lines that are complete now, without line feed; empty ones are left out."""
        lines: "list[bytes | None]" = []
        pieces = data.split(b"\n")
        for piece in pieces[:-1]:
            if self._discarding:
                self._discarding = False
                continue
            if self._size + len(piece) > self.limit:
                lines.append(None)
            else:
                line = b"".join(self._parts) + piece if self._parts else piece
                if line.strip():
                    lines.append(line)
            self._parts.clear()
            self._size = 0
        rest = pieces[-1]
        if rest and not self._discarding:
            if self._size + len(rest) > self.limit:
                self._parts.clear()
                self._size = 0
                self._discarding = True
                lines.append(None)
            else:
                self._parts.append(rest)
                self._size += len(rest)
        return lines

    def reset(self) -> None:
        """Forgets an unfinished line: whoever was sending it is gone."""
        self._parts.clear()
        self._size = 0
        self._discarding = False
