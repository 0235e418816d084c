"""Draws `docs/pictures/start.svg` from a real `make start` on a real pseudo-terminal: `make pictures`."""

from __future__ import annotations

import html
import os
import sys
from pathlib import Path

import pexpect
import pyte

COLUMNS, ROWS = 104, 90
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.4, 18, 14
STEP_TIMEOUT_S = 120
COLOURS = {"default": "#d8dee9", "cyan": "#88c0d0", "red": "#e06c75", "green": "#a3be8c", "brown": "#ebcb8b"}
PROMPT = "unhinged> "


def main() -> int:
    """Run the session, and write the picture beside this file."""
    screen = pyte.Screen(COLUMNS, ROWS)
    record_session(pyte.Stream(screen))
    picture = Path(__file__).with_name("start.svg")
    picture.write_text(draw(screen), encoding="utf-8")
    print(picture)
    return 0


def record_session(stream: pyte.Stream) -> None:
    """Do what a newcomer would do, and feed the screen with all that the terminal shows."""
    environment = {**os.environ, "TERM": "xterm-256color"}
    child = pexpect.spawn(
        "make",
        ["start", "NAME=demo"],
        dimensions=(ROWS, COLUMNS),
        env=environment,
        timeout=STEP_TIMEOUT_S,
        encoding="utf-8",
    )
    child.logfile_read = _Feeder(stream)
    child.expect("login: ")
    child.sendline("root")
    child.expect("# ")
    child.sendline("echo $((6*7)) from $(uname -sr)")
    child.expect("42 from")
    child.expect("# ")
    child.send("\x1d")
    for line in ("exec cat /proc/loadavg", "monitor info status", "screenshot /tmp/demo.png"):
        child.expect(PROMPT)
        child.sendline(line)
    child.expect(PROMPT)
    child.logfile_read = None  # the picture ends here: what follows would push the boot out of it
    child.sendline("quit")
    child.expect(pexpect.EOF)


class _Feeder:
    """The file-like object pexpect copies its output to."""

    def __init__(self, stream: pyte.Stream) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.feed(text)

    def flush(self) -> None:
        """Nothing is buffered."""


def draw(screen: pyte.Screen) -> str:
    """Turn the screen into SVG: one text element for each run of equal colour."""
    rows = max(row for row in range(ROWS) if screen.display[row].strip()) + 1
    width, height = round(COLUMNS * CELL_WIDTH + 2 * MARGIN), rows * LINE_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="14" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#20242c"/>',
    ]
    for row in range(rows):
        parts += _draw_row(screen, row)
    return "\n".join([*parts, "</svg>", ""])


def _draw_row(screen: pyte.Screen, row: int) -> list[str]:
    cells = [screen.buffer[row][column] for column in range(COLUMNS)]
    runs: list[tuple[int, str, str]] = []
    for column, cell in enumerate(cells):
        if runs and runs[-1][1] == cell.fg:
            start, colour, text = runs[-1]
            runs[-1] = (start, colour, text + cell.data)
        else:
            runs.append((column, cell.fg, cell.data))
    baseline = MARGIN + row * LINE_HEIGHT + 13
    return [
        f'<text x="{MARGIN + start * CELL_WIDTH:.1f}" y="{baseline}" fill="{COLOURS.get(colour, COLOURS["default"])}" '
        f'textLength="{len(text.rstrip()) * CELL_WIDTH:.1f}" xml:space="preserve">{html.escape(text.rstrip())}</text>'
        for start, colour, text in runs
        if text.strip()
    ]


if __name__ == "__main__":
    sys.exit(main())
