"""`unhinged screenshot`, `type`, `key`, `mouse` and `wait-text` (floor 6): a guest's screen, keyboard and pointer."""

from __future__ import annotations

import re
import time
from pathlib import Path

from control.cli.desk import Desk, printable, read_pattern
from control.errors import ConfigError, ControlError, StateError, WaitTimeout
from control.vm import hands
from control.vm.reach import connect
from control.vm.remote import Remote

LOOK_S = 0.5
"""Nothing tells when a picture changes, so it is looked at so often."""

OCR_LANGUAGE = "eng"
OCR_SCALE = 2


def screenshot(desk: Desk) -> int:
    """Save the screen; with --every again and again, each picture under a name with its number."""
    options = desk.options
    name = desk.check_name(options.name)
    pattern = read_pattern(options.until, "--until")
    if options.every is None:
        if pattern is not None:
            raise ConfigError("--until goes with --every", key="--until", hint="--every 1")
        with connect(desk.runtime, name) as remote:
            saved = remote.call("screenshot", {"path": str(Path(options.path).absolute())})
        desk.show({"name": name, **saved, "pictures": 1})
        return 0
    return _save_many(desk, name, pattern)


def _save_many(desk: Desk, name: str, pattern: re.Pattern[str] | None) -> int:
    options, path = desk.options, Path(desk.options.path).absolute()
    deadline = time.monotonic() + options.timeout
    count, saved = 0, {"path": str(path), "bytes": 0}
    with connect(desk.runtime, name) as remote:
        while True:
            begun = time.monotonic()
            count += 1
            numbered = path.with_name(f"{path.stem}-{count:04}{path.suffix}")
            saved = remote.call("screenshot", {"path": str(numbered)})
            desk.note(str(numbered))
            if pattern is not None and pattern.search(read_screen(remote, name)):
                break
            if options.count and count >= options.count:
                break
            if time.monotonic() + options.every > deadline:
                if pattern is not None:
                    raise WaitTimeout(f"{options.until} on the screen of {name}", options.timeout)
                break
            time.sleep(max(0.0, options.every - (time.monotonic() - begun)))  # as often as the user said
    desk.show({"name": name, **saved, "pictures": count})
    return 0


def type_(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    text = desk.options.text + ("\n" if desk.options.enter else "")
    with connect(desk.runtime, name) as remote:
        hands.type_text(remote, text)
    desk.show({"name": name, "characters": len(text)})
    return 0


def key(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    for keys in desk.options.keys:
        hands.parse_keys(keys)  # nothing is pressed when one of them is none
    with connect(desk.runtime, name) as remote:
        for keys in desk.options.keys:
            hands.press(remote, keys)
            time.sleep(hands.PACE_S)  # nothing tells when the guest has read a key
    desk.show({"name": name, "keys": desk.options.keys})
    return 0


def mouse(desk: Desk) -> int:
    """Move the pointer to a place, in pixels of the screen as it is now, and click there."""
    options = desk.options
    name = desk.check_name(options.name)
    with connect(desk.runtime, name) as remote:
        width, height = _find_size(remote)
        if not (0 <= options.x < width and 0 <= options.y < height):
            raise ConfigError(
                f"the screen of {name} has {width} times {height} pixels",
                key="X Y",
                hint="0 0 is at the left and upper edge",
            )
        hands.point(remote, options.x / max(1, width - 1), options.y / max(1, height - 1), options.click)
    desk.show({"name": name, "x": options.x, "y": options.y, "click": options.click})
    return 0


def wait_text(desk: Desk) -> int:
    """Wait until the screen shows a text: exactly in text mode, read from the picture by tesseract otherwise."""
    options = desk.options
    name = desk.check_name(options.name)
    pattern = read_pattern(options.pattern, "PATTERN")
    assert pattern is not None
    started, seen = time.monotonic(), ""
    with connect(desk.runtime, name) as remote:
        while True:
            seen = read_screen(remote, name)
            if found := pattern.search(seen):
                break
            if time.monotonic() - started > options.timeout:
                raise WaitTimeout(
                    f"{options.pattern} on the screen of {name}",
                    options.timeout,
                    last_seen=seen.strip().splitlines()[-12:],
                )
            time.sleep(LOOK_S)  # nothing tells when a screen has changed
    document = {"name": name, "found": found.group(), "seconds": round(time.monotonic() - started, 3), "screen": seen}
    desk.show(document, "\n".join(printable(line) for line in seen.splitlines()))
    return 0


def read_screen(remote: Remote, name: str) -> str:
    """Return the text on the guest's screen.

    Raises:
        ConfigError: It is a picture, and tesseract, which reads pictures, is not installed.
    """
    found = remote.call("screen_text")
    if found["is_text"]:
        return "\n".join(found["lines"])
    return _read_picture(remote, name)


def _read_picture(remote: Remote, name: str) -> str:
    import asyncio
    import tempfile

    from control.host import find_program, look_around
    from control.process.run import run

    program = find_program("tesseract", look_around().search_path)
    if program is None:
        raise ConfigError(
            f"the screen of {name} is a picture, and tesseract is not installed to read it",
            hint="apt-get install tesseract-ocr; screens in text mode need none",
        )
    with tempfile.TemporaryDirectory(prefix="unhinged-") as directory:
        path = Path(directory) / "screen.ppm"
        remote.call("screenshot", {"path": str(path)})
        path.write_bytes(_make_readable(path.read_bytes()))
        words = [program, str(path), "-", "-l", OCR_LANGUAGE, "--psm", "6", "-c", "preserve_interword_spaces=1"]
        done = asyncio.run(run(words, timeout_s=60.0))
    if done.return_code != 0:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise ControlError(f"tesseract failed: {said[:300]}", hint="apt-get install tesseract-ocr")
    return done.stdout.decode("utf-8", "replace")


def _make_readable(picture: bytes) -> bytes:
    """Make a PPM picture dark on light, and larger, as tesseract reads best (its manual, "Improving the quality")."""
    width, height, begin = _read_head(picture)
    pixels = picture[begin : begin + 3 * width * height]
    if sum(pixels[::997]) < 127 * len(pixels[::997]):
        pixels = pixels.translate(bytes(range(255, -1, -1)))
    rows = []
    for at in range(0, len(pixels), 3 * width):
        row, wide = pixels[at : at + 3 * width], bytearray(3 * width * OCR_SCALE)
        for part in range(3 * OCR_SCALE):
            wide[part :: 3 * OCR_SCALE] = row[part % 3 :: 3]
        rows += [bytes(wide)] * OCR_SCALE
    return b"P6\n%d %d\n255\n" % (width * OCR_SCALE, height * OCR_SCALE) + b"".join(rows)


def _read_head(picture: bytes) -> tuple[int, int, int]:
    """Width, height, and where the pixels begin in a PPM picture. Source: netpbm, ppm(5). Raises StateError."""
    try:
        form, width, height, _ = (words := picture[:64].split(maxsplit=4))[:4]
        if form != b"P6":
            raise ValueError
        return int(width), int(height), picture.index(b"\n", picture.index(words[2])) + 1 + len(words[3]) + 1
    except (ValueError, IndexError):
        raise StateError("the screen gives no picture", state="unknown", required=("a screen",)) from None


def _find_size(remote: Remote) -> tuple[int, int]:
    """The size of the screen as it is now, in pixels."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="unhinged-") as directory:
        path = Path(directory) / "screen.ppm"
        remote.call("screenshot", {"path": str(path)})
        width, height, _ = _read_head(path.read_bytes())
    return width, height
