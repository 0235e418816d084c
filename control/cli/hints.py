"""Says in a configuration's words what errors of the lower floors say in those of `make` (floor 6)."""

from __future__ import annotations

import re

from control.paths import IS_CHECKOUT

_KEYS = "ISO|IMAGE|DISK|KERNEL|INITRD|SHARE|MEMORY|CPUS|ACCEL"
_WORDS: tuple[tuple[re.Pattern[str], str], ...] = (
    # What has no counterpart goes with the words around it.
    (re.compile(r"; --no-boot-watch lets it go on"), ""),
    (re.compile(r",? or use --no-boot-watch if silence is right"), ""),
    (re.compile(r"\(KERNEL=: (ARGS=[^)]*)\)"), r"(\1)"),
    (re.compile(r"""ARGS="--append '([^']*)'\""""), r'append = "\1"'),
    (re.compile(r"a word from ARGS="), "a word from cmd or qemu_args"),
    (re.compile(r"--firmware bios or uefi"), 'firmware = "bios" or "uefi"'),
    (re.compile(r"start it with `make start` or `make start-enhanced`"), "declare agent = true, and start it again"),
    (re.compile(r" \(NAME=…\)"), ""),
    (re.compile(r"\bname one with QEMU=(\S+)"), r'name one in [qemu]: bin = "\1"'),
    (re.compile(r"\bmake doctor\b"), "unhinged doctor"),
    (re.compile(r"\bmake clean\b(?! image)"), "unhinged stop --all, and remove what is not needed"),
)
_PAIR = re.compile(rf"\b({_KEYS})=(…|[\w./-]*)")


if not IS_CHECKOUT:  # an installed package has no `make`; its doctor names the packages that are missing
    _WORDS = (*_WORDS, (re.compile(r"\bmake deps-install-essential\b"), "unhinged doctor"))


def respell(text: str) -> str:
    """Return `text` with keys of the file instead of variables of `make`.

    >>> respell("use software emulation: ACCEL=tcg (or ACCEL=auto); see make doctor")
    'use software emulation: accel = "tcg" (or accel = "auto"); see unhinged doctor'
    """
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return _PAIR.sub(_to_key, text)


def _to_key(pair: re.Match[str]) -> str:
    key, value = pair[1].lower(), pair[2]
    if not value:
        return key
    return f"{key} = {value}" if value == "…" or value.isdecimal() else f'{key} = "{value}"'
