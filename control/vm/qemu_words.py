"""What QEMU says when it cannot go on, and what a user can do about it (floor 3). Data, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """One thing QEMU says: the pattern of its words, our sentence, the way out."""

    pattern: re.Pattern[str]
    sentence: str
    hint: str


KVM_BROKEN = Explanation(
    re.compile(
        r"failed to set MSR|KVM internal error|kvm run failed|Could not access KVM|failed to initialize kvm"
        r"|ioctl\(KVM_|kvm_\w+: Assertion",
        re.I,
    ),
    "KVM does not work here",
    "use software emulation: ACCEL=tcg (or ACCEL=auto, which finds that out by itself)",
)

EXPLANATIONS = (
    Explanation(
        re.compile(r'Failed to get (?:shared )?"\w+(?: \w+)*" lock'),
        "a disk image is in use by another VM",
        "stop that VM, or give this one a copy: qemu-img create -f qcow2 -b IMAGE -F FORMAT overlay.qcow2",
    ),
    Explanation(
        re.compile(r"cannot set up guest memory|Cannot allocate memory|cannot allocate memory"),
        "this host cannot give the guest that much memory",
        "ask for less: MEMORY=512M; make doctor shows what is free",
    ),
    KVM_BROKEN,
    Explanation(
        re.compile(r"Image is not in (\w+) format|could not read .* header|Could not open '[^']*': .*format", re.I),
        "a disk image is damaged, or not of the format it was taken for",
        "qemu-img info IMAGE tells what it is",
    ),
    Explanation(
        re.compile(
            r"could not load kernel|invalid kernel header|Error loading uncompressed kernel|qemu: linux kernel too old",
            re.I,
        ),
        "that file is not a kernel QEMU can start",
        "KERNEL= takes a bzImage (vmlinuz), or a vmlinux that is built with PVH",
    ),
    Explanation(re.compile(r"No space left on device", re.I), "the disk of this host is full", "make room: make clean"),
    Explanation(
        re.compile(r"is not a valid device model name|machine type|invalid option|unrecognized|unknown option", re.I),
        "this QEMU does not know an option it was given",
        "is it a word from ARGS=?",
    ),
    Explanation(
        re.compile(r"Permission denied"),
        "QEMU may not open one of its files",
        "look at the rights of the file it names",
    ),
)


def explain_words(lines: tuple[str, ...]) -> Explanation | None:
    """Find the explanation of QEMU's last words; None when they are not among the known ones."""
    text = "\n".join(lines)
    return next((explanation for explanation in EXPLANATIONS if explanation.pattern.search(text)), None)
