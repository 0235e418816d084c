"""Tables of words (floor 6)."""

from __future__ import annotations

from collections.abc import Sequence


def draw_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of columns, each as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
