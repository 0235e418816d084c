"""The guest's picture: what screen there is, and how to draw on it (guest floor).

Nothing here is imported before a message asks for it, except `find_display`, which only looks at sysfs.
"""

import os

from .. import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def find_display() -> "dict[str, Any] | None":
    """Width, height and driver of the first screen; None while there is none. Opens no device."""
    for card in _list("/sys/class/drm", "card"):
        if "-" in card:
            continue
        base = "/sys/class/drm/" + card
        for connector in _list(base, card + "-"):
            mode = system.read_text("%s/%s/modes" % (base, connector), 64).split("\n")[0]
            width, _, height = mode.rstrip("i").partition("x")
            if width.isdigit() and height.isdigit():
                return _prefer_current({"width": int(width), "height": int(height), "driver": _driver(base)})
    for buffer in _list("/sys/class/graphics", "fb"):
        base = "/sys/class/graphics/" + buffer
        width, _, height = system.read_text(base + "/virtual_size", 64).strip().partition(",")
        if width.isdigit() and height.isdigit():
            name = system.read_text(base + "/name", 64).strip()
            return {"width": int(width), "height": int(height), "driver": name}
    return None


def _prefer_current(display: "dict[str, Any]") -> "dict[str, Any]":
    """What the console's framebuffer shows now is truer than the list of what the screen could show."""
    width, _, height = system.read_text("/sys/class/graphics/fb0/virtual_size", 64).strip().partition(",")
    if width.isdigit() and height.isdigit():
        display["width"], display["height"] = int(width), int(height)
    return display


def _driver(base: str) -> str:
    try:
        return os.path.basename(os.readlink(base + "/device/driver"))[:64]
    except OSError:
        return ""


def _list(directory: str, prefix: str) -> "list[str]":
    try:
        return sorted(name for name in os.listdir(directory) if name.startswith(prefix) and name != "fbcon")
    except OSError:
        return []
