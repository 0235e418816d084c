"""Hands at a guest's keyboard and pointer (floor 3): for whoever has a connection to the supervisor. Blocking.

Source of key names and events: QEMU QMP reference, `QKeyCode` and `input-send-event`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from control.errors import ConfigError, StateError
from control.failure import RemoteError
from control.vm.remote import Remote

PACE_S = 0.012
"""Between two keys. An emulated PS/2 keyboard holds 16 bytes, three for a key, and tells nobody when it is full
(QEMU sources, hw/input/ps2.c); a guest under emulation takes some milliseconds to read them."""

POSITION_MAX = 0x7FFF
"""The right and the lower edge for `input-send-event`."""

NO_POINTER = "Input handler not found"
"""QEMU sources, ui/input.c, qmp_input_send_event."""

Button = Literal["left", "middle", "right"]

_PLAIN = {
    "`": "grave_accent", "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right", "\\": "backslash",
    ";": "semicolon", "'": "apostrophe", ",": "comma", ".": "dot", "/": "slash", " ": "spc", "\n": "ret", "\t": "tab",
}  # fmt: skip
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))
_ALIASES = {
    "space": "spc", "control": "ctrl",
    "enter": "ret", "return": "ret", "escape": "esc", "del": "delete", "ins": "insert",
    "pageup": "pgup", "page_up": "pgup", "pagedown": "pgdn", "page_down": "pgdn", "win": "meta_l", "super": "meta_l",
    "meta": "meta_l", "altgr": "alt_r", "bksp": "backspace", "printscreen": "print", "capslock": "caps_lock",
}  # fmt: skip
_NAMED = frozenset(
    key
    for keys in (
        "shift shift_r alt alt_r ctrl ctrl_r menu esc minus equal backspace tab bracket_left bracket_right ret",
        "semicolon apostrophe grave_accent backslash comma dot slash asterisk spc caps_lock f1 f2 f3 f4 f5 f6 f7 f8 f9",
        "f10 f11 f12 num_lock scroll_lock sysrq home pgup pgdn end left up down right insert delete pause print meta_l",
        "meta_r compose less kp_0 kp_1 kp_2 kp_3 kp_4 kp_5 kp_6 kp_7 kp_8 kp_9 kp_add kp_subtract kp_multiply",
        "kp_divide kp_enter kp_decimal volumeup volumedown audiomute power sleep wake",
    )
    for key in keys.split()
)


def find_keys(character: str) -> tuple[str, ...]:
    """The keys of a US keyboard that make `character`, in the order they go down; none when there are none."""
    if character in _SHIFTED:
        return ("shift", *find_keys(_SHIFTED[character]))
    if character in _PLAIN:
        return (_PLAIN[character],)
    if character.isascii() and character.isalnum():
        return ("shift", character.lower()) if character.isupper() else (character,)
    return ()


def parse_keys(text: str) -> tuple[str, ...]:
    """Read keys that are pressed together, as people write them.

    >>> parse_keys("ctrl-alt-F2")
    ('ctrl', 'alt', 'f2')
    >>> parse_keys("ctrl--")
    ('ctrl', 'minus')

    Raises:
        ConfigError: There is no such key.
    """
    words = (
        (text[:-1].removesuffix("-").split("-") if len(text) > 1 else []) + ["minus"]
        if text.endswith("-")
        else (text.split("-"))
    )
    keys: list[str] = []
    for word in words:
        name = word.lower() if len(word) > 1 else word
        name = _ALIASES.get(name, name)
        found = (name,) if name in _NAMED else find_keys(name) if len(name) == 1 else ()
        if not found:
            raise ConfigError(
                f"there is no key {word!r}" if word else f"{text!r} names no key",
                key="KEYS",
                hint="as ctrl-alt-delete, alt-f2, shift-tab, esc, ret, a; docs/screens.md lists them",
            )
        keys += found
    return tuple(dict.fromkeys(keys))


def press(remote: Remote, keys: str) -> None:
    """Press keys together, and let them go.

    Raises:
        ConfigError: There is no such key; nothing was pressed.
        RemoteError: QEMU refused it.
    """
    _press(remote, parse_keys(keys))


def type_text(remote: Remote, text: str) -> None:
    """Type `text` on a US keyboard; a line end is the key Return.

    Raises:
        ConfigError: A character is on no key; nothing was typed.
        RemoteError: QEMU refused it; what went before was typed.
    """
    strokes = []
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        keys = find_keys(character)
        if not keys:
            raise ConfigError(
                f"{character!r} is on no key of a US keyboard",
                key="TEXT",
                hint="use a console (unhinged send NAME TEXT --console ttyS0), or put it into a file (unhinged put)",
            )
        strokes.append(keys)
    for keys in strokes:
        _press(remote, keys)
        time.sleep(PACE_S)  # nothing tells when the guest has read a key


def point(remote: Remote, x: float, y: float, click: Button | None = None) -> None:
    """Move the guest's pointer to a part of its screen (0 to 1 from the left, and from the top), and click there.

    Raises:
        StateError: The VM has no pointer that can be put somewhere, or its guest does not use it (yet).
    """
    position = [("x", x), ("y", y)]
    try:
        _send(
            remote,
            [{"type": "abs", "data": {"axis": axis, "value": round(at * POSITION_MAX)}} for axis, at in position],
        )
    except RemoteError as error:
        if NO_POINTER not in str(error):
            raise
        raise StateError(
            "the guest has no pointer that can be put at a place",
            state="RUNNING",
            required=("a driver for it in the guest",),
            hint='display = "vnc" gives it a virtio tablet (Linux: virtio_input), "spice" a USB tablet',
        ) from error
    if click is not None:
        for down in (True, False):
            time.sleep(PACE_S)  # a guest that finds both at once may see no click
            _send(remote, [{"type": "btn", "data": {"button": click, "down": down}}])


def _press(remote: Remote, keys: Sequence[str]) -> None:
    _send(remote, [*(_key(key, down=True) for key in keys), *(_key(key, down=False) for key in reversed(keys))])


def _key(key: str, *, down: bool) -> dict[str, Any]:
    return {"type": "key", "data": {"down": down, "key": {"type": "qcode", "data": key}}}


def _send(remote: Remote, events: list[dict[str, Any]]) -> None:
    remote.call("qmp", {"command": "input-send-event", "arguments": {"events": events}})
