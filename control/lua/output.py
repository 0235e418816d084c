"""What an interpreter prints, and the marks its driver puts between executions (floor 5)."""

from __future__ import annotations

from control.console.tail import ConsoleTail

KEPT_BYTES = 1024 * 1024
_END = b"\x1b\\"


class Output:
    """The output since it was last cleared: the end of it, at most `KEPT_BYTES`.

    Args:
        mark: How a mark begins; a number follows, and ESC backslash.
    """

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._kept = bytearray()
        self._dropped = 0
        self._tail = ConsoleTail()

    def clear(self) -> None:
        self._kept.clear()
        self._dropped = 0
        self._tail = ConsoleTail()

    def feed(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > 2 * KEPT_BYTES:
            excess = len(self._kept) - KEPT_BYTES
            self._dropped += excess
            del self._kept[:excess]

    def has_mark(self, number: int) -> bool:
        """Whether all is there that was printed before mark `number`; it is then taken out, and those before it."""
        whole = self._mark + str(number).encode() + _END
        at = self._kept.rfind(whole)
        if at < 0:
            return False
        del self._kept[at : at + len(whole)]
        for earlier in range(1, number):  # one that was not waited for
            if self._mark not in self._kept:
                break
            self._kept = self._kept.replace(self._mark + str(earlier).encode() + _END, b"")
        return True

    def take(self) -> tuple[str, int]:
        """Return what was printed, and how much of it, from its beginning, was not kept."""
        excess = max(0, len(self._kept) - KEPT_BYTES)
        return self._kept[excess:].decode("utf-8", "replace"), self._dropped + excess

    def last_lines(self, count: int) -> tuple[str, ...]:
        """The last lines of it, safe to print."""
        tail = ConsoleTail()
        tail.feed(bytes(self._kept[-8192:]))
        return tail.lines(count)
