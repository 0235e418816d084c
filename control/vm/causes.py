"""Why a boot failed (floor 3): what each known failure leaves on the console, and what to do about it. Data, no I/O.

A cause counts only when its text stands at the end of a console that has fallen silent: a guest that prints an old log
with a panic in it and then goes on is well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from control.errors import EXIT_BOOT_HUNG, EXIT_GUEST_PANICKED


@dataclass(frozen=True)
class Cause:
    """One way a boot fails.

    Attributes:
        code: Its short name.
        pattern: A regular expression, searched in the last lines of the console, as plain text. It is compiled then:
            most boots come up.
        sentence: What happened, for the user.
        hint: What to do next.
        waits_for_person: The guest stands at a prompt where somebody at the console could go on.
        exit_code: What a launcher ends with.
    """

    code: str
    pattern: str
    sentence: str
    hint: str
    waits_for_person: bool = False
    exit_code: int = EXIT_BOOT_HUNG


def _at_end(pattern: str) -> str:
    return rf"(?i:{pattern})[^\n]*\s*\Z"


PANIC = Cause(
    "panic",
    r"Kernel panic - not syncing: (?P<what>[^\n]*)",
    "the guest's kernel panicked",
    "the lines above the panic say what failed; the whole console is in the instance's file `serial`",
    exit_code=EXIT_GUEST_PANICKED,
)

CAUSES = (
    Cause(
        "no-root",
        r"Kernel panic - not syncing: VFS: Unable to mount root fs|No working init found",
        "the kernel found no root file system",
        "give it one: INITRD=… or DISK=… with root=… on the kernel command line (ARGS=\"--append 'root=/dev/vda1'\"); "
        "is the driver of that disk built into the kernel or in its initrd?",
        exit_code=EXIT_GUEST_PANICKED,
    ),
    PANIC,
    Cause(
        # SeaBIOS: "No bootable device."; OVMF: "BdsDxe: No bootable option or device was found."
        "no-bootable-device",
        r"No bootable (?:device|option or device was found)[^\n]*(?:\n[^\n]*){0,3}\s*\Z",
        "the firmware found nothing to boot from",
        "is the ISO or disk bootable, and made for this firmware (--firmware bios or uefi)? "
        "A kernel is started with KERNEL= and INITRD=",
    ),
    Cause(
        "boot-loader",
        _at_end(
            r"grub rescue>|Boot failed: [^\n]*|isolinux: [^\n]*(?:error|missing)"
            r"|Missing operating system|Operating system not found"
        ),
        "the boot loader could not start a system",
        "the image is incomplete or damaged; compare its checksum, or build it again",
    ),
    Cause(
        # initramfs-tools: after "ALERT!  /dev/… does not exist.  Dropping to a shell!" (scripts/local).
        "initramfs-shell",
        _at_end(r"\(initramfs\) ?|dracut:/# ?|Dropping to a shell!"),
        "the guest's initramfs gave up and opened a shell",
        "the lines above say which device it waited for; compare root=… with the guest's disks",
        waits_for_person=True,
    ),
    Cause(
        # systemd and util-linux: emergency.service, sulogin.
        "emergency-mode",
        _at_end(
            r"Give root password for maintenance[^\n]*(?:\n[^\n]*)?|Press Enter for maintenance[^\n]*(?:\n[^\n]*)?"
            r"|Cannot open access to console, the root account is locked[^\n]*(?:\n[^\n]*){0,3}"
        ),
        "the guest's system came up in emergency mode",
        "a unit that the system cannot do without has failed, often a mount in /etc/fstab; its journal says which",
        waits_for_person=True,
    ),
)

_PROMPT = r"(?i:login|password|username): ?\Z|[$#>%?:\]] ?\Z"


def find_cause(console_end: str) -> Cause | None:
    """Find the cause that the end of a silent console shows; the most telling one first, None when there is none.

    A panic prints much behind its sentence, so that is looked for everywhere; but a kernel that panicked has no prompt.
    """
    at_prompt = looks_like_prompt(console_end)
    for cause in CAUSES:
        if re.search(cause.pattern, console_end) and not (at_prompt and cause.exit_code == EXIT_GUEST_PANICKED):
            return cause
    return None


def looks_like_prompt(console_end: str) -> bool:
    """Whether the console's last line reads like a prompt, at which a guest rightly waits in silence.

    >>> looks_like_prompt("unhinged login: "), looks_like_prompt("[    1.0] random: crng init done")
    (True, False)
    """
    return bool(re.search(_PROMPT, console_end.rpartition("\n")[2]))
