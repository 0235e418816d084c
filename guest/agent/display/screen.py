"""`show text`, `show picture` and `set mode` (guest floor); called by `commands`, which has checked the details.

The screen is taken over at the first of them and kept; `show text` with an empty text gives it back to the console.
"""

import os
import stat

from . import find_display
from .drm import Card, NoScreen
from .font import Font
from .picture import PictureError, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..commands import Command

_MAX_FILE_BYTES = 64 * 1024 * 1024


class Screen:
    """What the agent holds while it has the screen: the card, and whether a picture is being drawn."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.drawing = False


def show_text(command: "Command") -> None:
    """Draws text from the top left, in lines as long as the screen is wide; what does not fit is left out."""
    text = command.details["text"]
    if not text:
        _give_back(command)
        return
    screen = _get_screen(command)
    if screen is None:
        return
    font = Font()
    card = screen.card
    columns, rows = card.width // font.width, card.height // font.height
    lines = _wrap(text, columns)[:rows]
    on, off = b"\xff\xff\xff\x00", b"\x00\x00\x00\x00"

    def draw() -> "Generator[None, None, dict[str, Any]]":
        card.clear()
        for row, line in enumerate(lines):
            glyphs = [font.get_rows(character) for character in line]
            for y in range(font.height):
                bits = "".join(format(glyph[y], "0%db" % font.width) for glyph in glyphs)
                pixels = b"".join([on if bit == "1" else off for bit in bits])
                if pixels:
                    card.write_row(0, row * font.height + y, pixels)
                yield
        card.flush()
        return {"width": card.width, "height": card.height, "columns": columns, "rows": rows}

    _run(command, screen, draw())


def show_picture(command: "Command") -> None:
    """Draws a picture in the middle of a black screen, made smaller by a whole number where it is too large."""
    details = command.details
    data = _read_picture(command)
    if data is None:
        return
    screen = _get_screen(command)
    if screen is None:
        return
    card = screen.card

    def draw() -> "Generator[None, None, dict[str, Any]]":
        picture = yield from decode(details["format"], data)
        scale = max(1, -(-picture.width // card.width), -(-picture.height // card.height))
        rows = picture.rows[::scale]
        width = len(range(0, picture.width, scale))
        x, y = (card.width - width) // 2, (card.height - len(rows)) // 2
        card.clear()
        for number, row in enumerate(rows):
            pixels = row if scale == 1 else memoryview(row).cast("I")[::scale].tobytes()
            card.write_row(x, y + number, pixels)
            yield
        card.flush()
        return {
            "width": card.width,
            "height": card.height,
            "picture_width": picture.width,
            "picture_height": picture.height,
            "scale": scale,
        }

    _run(command, screen, draw())


def set_mode(command: "Command") -> None:
    """Gives the screen another size; what it showed is gone."""
    width, height = command.details["width"], command.details["height"]
    screen = _get_screen(command)
    if screen is None:
        return
    if not screen.card.set_mode(width, height):
        sizes = ", ".join("%dx%d" % size for size in screen.card.list_modes()[:24])
        command.fail("not-found", "the screen has no mode %dx%d; it has %s" % (width, height, sizes))
        return
    details = {"width": width, "height": height, "driver": (find_display() or {"driver": ""})["driver"]}
    command.agent.emit("graphics", "mode changed", details)
    command.done(details)


def _give_back(command: "Command") -> None:
    screen = command.agent.display
    if screen is not None and screen.drawing:
        command.fail("busy", "a picture is being drawn")
        return
    if screen is not None:
        screen.card.close()
        command.agent.display = None
    display = find_display() or {"width": 0, "height": 0}
    command.done({"width": display["width"], "height": display["height"], "columns": 0, "rows": 0})


def _get_screen(command: "Command") -> "Screen | None":
    """The screen, taken over now if need be; None when the command has been answered with the reason why not."""
    agent = command.agent
    try:
        if agent.display is None:
            agent.display = _take_screen()
    except NoScreen as error:
        command.fail("not-found", str(error))
        return None
    if agent.display.drawing:
        command.fail("busy", "a picture is being drawn")
        return None
    return agent.display


def _take_screen() -> Screen:
    try:
        cards = sorted(name for name in os.listdir("/dev/dri") if name.startswith("card"))
    except FileNotFoundError:
        cards = []
    if not cards:
        raise NoScreen("the guest has no graphics card that its kernel can set modes on")
    card = Card("/dev/dri/" + cards[0])
    try:
        size = card.find_current_size() or card.list_modes()[0]
        if not card.set_mode(*size):
            card.set_mode(*card.list_modes()[0])
    except BaseException:
        card.close()
        raise
    return Screen(card)


def _read_picture(command: "Command") -> "bytes | None":
    details = command.details
    if "data" in details:
        import binascii

        try:
            return binascii.a2b_base64(details["data"].encode("ascii"))
        except (ValueError, UnicodeEncodeError):
            command.fail("bad-details", "data is not base64")
            return None
    try:
        guard = command.agent.guard
        with guard.as_user(), guard.paths.find(details["path"].encode("utf-8", "replace"), "read_paths") as place:
            fd = place.open(os.O_RDONLY)
    except OSError as error:
        code = "not-permitted" if isinstance(error, PermissionError) else "not-found"
        command.fail(code, "%s: %s" % (details["path"][:256], error.strerror))
        return None
    with open(fd, "rb", 0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
            text = "%s is not a regular file of at most %d bytes" % (details["path"][:256], _MAX_FILE_BYTES)
            command.fail("bad-details", text)
            return None
        return file.read(_MAX_FILE_BYTES)


def _run(command: "Command", screen: Screen, steps: "Generator[None, None, Any]") -> None:
    def done(details: "dict[str, Any] | None", error: "Exception | None") -> None:
        screen.drawing = False
        if details is not None:
            command.done(details)
        elif isinstance(error, PictureError):
            command.fail("bad-details", str(error))
        else:
            command.fail("failed", "the screen could not be drawn on: %s" % error)

    screen.drawing = True
    command.agent.loop.slices(steps, done)


def _wrap(text: str, columns: int) -> "list[str]":
    lines = []
    for line in text.expandtabs(8).splitlines():
        lines.append(line[:columns])
        lines.extend(line[at : at + columns] for at in range(columns, len(line), columns))
    return lines
