"""Long lists go to the host in pages (guest floor); used by every method that lists things.

A page begins after the key that the page before it ended with, so entries that come and go between two pages neither
repeat others nor hide them. It is bounded by a number of entries and by what fits on a line.
"""

from . import parameters, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any

MAX_ENTRIES = 1000
_DEFAULT_ENTRIES = 200
_MAX_BYTES = wire.MAX_ANSWER_BYTES * 3 // 4


def build_parameters(after: "Callable[[object], str | None]") -> "dict[str, Any]":
    """The parameters of a method that answers in pages; `after` checks a key."""
    return {"after": (False, after), "limit": (False, parameters.integer(1, MAX_ENTRIES))}


def build_page(
    name: str, keys: "Sequence[Any]", params: "dict[str, Any]", describe: "Callable[[Any], dict[str, Any] | None]"
) -> "Generator[None, None, dict[str, Any]]":
    """Builds one page of `keys`, which are sorted; to be run as `steps`.

    Args:
        name: Under which the entries stand in the result.
        describe: Gives the entry of a key, None when it has gone in the meantime.

    Returns:
        The entries, how many there are in all (`total`), and `next`: the `after` of the next page, null at the end.
    """
    after, limit = params.get("after"), params.get("limit", _DEFAULT_ENTRIES)
    entries: "list[dict[str, Any]]" = []
    size = 0
    last = None
    more = False
    for key in keys:
        if after is not None and key <= after:
            continue
        if len(entries) >= limit:
            more = True
            break
        entry = describe(key)
        if entry is not None:
            size += len(wire.encode(entry))
            if size > _MAX_BYTES and entries:
                more = True
                break
            entries.append(entry)
            last = key
        yield
    return {name: entries, "total": len(keys), "next": last if more else None}
