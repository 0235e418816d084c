"""What QEMU's options do, in a sentence each (floor 1); for `explain`, which says what a command line means.

Source: QEMU manual 7.2, "Invocation" (https://www.qemu.org/docs/master/system/invocation.html), in our own words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "This option is not known here; QEMU's manual may explain it."

FLAGS = {
    "S": "Does not let the guest run until it is told to, so that nothing of its start is missed.",
    "nodefaults": "Adds no device that was not asked for: no network card, no drives, no screen.",
    "no-user-config": "Reads no configuration of the user's or the system's, so that this line says it all.",
    "enable-kvm": "Runs guest code directly on the processor, through KVM; the same as -accel kvm.",
    "nographic": "Opens no window, and puts the guest's serial line and QEMU's monitor onto the terminal.",
    "snapshot": "Writes what the guest changes on its disks to temporary files, which are thrown away at the end.",
    "no-reboot": "Ends QEMU when the guest restarts itself.",
    "no-shutdown": "Keeps QEMU when the guest switches itself off, stopped, so that it can be looked at.",
    "daemonize": "Puts QEMU into the background once it is set up.",
    "full-screen": "Begins with the guest's screen over the whole display.",
    "no-acpi": "Gives the guest no ACPI tables.",
    "no-hpet": "Gives the guest no HPET timer.",
    "no-fd-bootchk": "Does not look for the boot signature of floppy disks.",
    "usb": "Adds a USB controller.",
    "mem-prealloc": "Takes all of the guest's memory from the host at the start.",
    "preconfig": "Waits for the monitor before the machine is made.",
    "singlestep": "Makes TCG translate one instruction at a time.",
    "s": "Lets a debugger attach to the guest at TCP port 1234; the same as -gdb tcp::1234.",
    "only-migratable": "Refuses devices that cannot be moved to another QEMU.",
    "async-teardown": "Gives the guest's memory back to the host in the background when QEMU ends.",
    "win2k-hack": "Slows a disk down, as the installer of Windows 2000 needs it.",
    "portrait": "Turns the guest's screen by 90 degrees.",
    "audio-help": "Prints how sound is configured and ends.",
    "xen-attach": "Attaches to a Xen domain that is there already.",
    "xen-domid-restrict": "Limits QEMU to its own Xen domain.",
    "enable-sync-profile": "Measures how QEMU's locks are used.",
    "h": "Prints a list of options and ends.",
    "help": "Prints a list of options and ends.",
    "version": "Prints QEMU's version and ends.",
}
"""Options that stand alone."""

OPTIONS = {
    "name": "Names the guest, as window titles and process lists show it.",
    "uuid": "Sets the machine's UUID.",
    "machine": "Chooses the kind of machine that is imitated, and its properties.",
    "M": "Chooses the kind of machine that is imitated; the same as -machine.",
    "accel": "Chooses how guest code is run: kvm on the processor itself, tcg by translation.",
    "cpu": "Chooses the model of the processor and its features.",
    "smp": "Sets how many processors the guest has, and how they are arranged.",
    "m": "Sets the guest's memory, in mebibytes unless a unit is given.",
    "numa": "Divides memory and processors into NUMA nodes.",
    "mem-path": "Takes the guest's memory from a file at this path.",
    "overcommit": "Says whether the guest's memory is locked and whether idle processors are yielded to the host.",
    "sandbox": "Keeps QEMU from system calls it does not need, so that a hostile guest gets less far.",
    "action": "Says what is done when the guest panics, reboots, shuts down or lets its watchdog run out.",
    "pidfile": "Writes QEMU's process number to this file.",
    "chardev": "Opens a channel of characters at the host's side, which a device or monitor then uses.",
    "mon": "Puts a monitor onto a channel.",
    "monitor": "Puts QEMU's monitor for people at this place.",
    "qmp": "Puts QEMU's monitor for programs (QMP) at this place.",
    "qmp-pretty": "Puts QEMU's monitor for programs (QMP) at this place, with line breaks.",
    "serial": "Connects the guest's next serial port to this place.",
    "parallel": "Connects the guest's next parallel port to this place.",
    "debugcon": "Sends what the guest writes to I/O port 0xe9 to this place.",
    "device": "Adds a device to the machine.",
    "global": "Sets a property of every device of one kind.",
    "set": "Sets a property of something that was named before.",
    "object": "Makes something that devices refer to: memory, a secret, a thread, a source of random numbers.",
    "blockdev": "Describes a disk at the host's side: a file, its format, how it is cached.",
    "drive": "Adds a disk: the file at the host's side, and, with if=, the device in the guest.",
    "hda": "Uses this file as the first IDE disk.",
    "hdb": "Uses this file as the second IDE disk.",
    "hdc": "Uses this file as the third IDE disk.",
    "hdd": "Uses this file as the fourth IDE disk.",
    "fda": "Uses this file as the first floppy disk.",
    "fdb": "Uses this file as the second floppy disk.",
    "sd": "Uses this file as an SD card.",
    "mtdblock": "Uses this file as on-board flash memory.",
    "cdrom": "Puts this image into a CD drive.",
    "pflash": "Uses this file as the flash memory that holds the firmware.",
    "bios": "Uses this file as the firmware.",
    "L": "Looks for firmware and key maps in this directory.",
    "boot": "Says from which devices the firmware boots, and in which order.",
    "kernel": "Starts this Linux kernel without a boot loader.",
    "initrd": "Gives that kernel this initial RAM disk.",
    "append": "Gives that kernel these words as its command line.",
    "dtb": "Gives that kernel this device tree.",
    "fw_cfg": "Puts a file where the guest's firmware can read it.",
    "acpitable": "Adds an ACPI table.",
    "smbios": "Sets what the guest reads about its machine: maker, model, serial numbers.",
    "option-rom": "Loads a ROM that the firmware runs at start.",
    "netdev": "Describes a network at the host's side, for a network card to use.",
    "nic": "Adds a network card together with its network.",
    "net": "Describes a network or a card; the old way.",
    "fsdev": "Describes a directory of the host that the guest can mount.",
    "virtfs": "Shares a directory of the host with the guest over 9p: directory and device in one.",
    "display": "Says where the guest's screen is shown; none shows it nowhere.",
    "vga": "Chooses the guest's graphics card.",
    "vnc": "Shows the guest's screen over VNC at this address.",
    "spice": "Shows the guest's screen over SPICE.",
    "g": "Sets the first resolution of the screen.",
    "k": "Chooses the keyboard's layout.",
    "rotate": "Turns the guest's screen.",
    "audiodev": "Describes where sound goes to and comes from at the host's side.",
    "audio": "Adds a sound card together with its place at the host's side.",
    "soundhw": "Adds a sound card; gone since QEMU 7.1.",
    "usbdevice": "Adds a USB device; the old way.",
    "tpmdev": "Describes a TPM at the host's side.",
    "iscsi": "Sets what connections to iSCSI disks use.",
    "rtc": "Says what time the guest's clock begins at and how it runs.",
    "icount": "Lets the guest's clock follow the instructions it has run.",
    "watchdog": "Adds a watchdog; the old way.",
    "watchdog-action": "Says what happens when the guest's watchdog runs out.",
    "incoming": "Waits for a machine's state from elsewhere, and goes on with it.",
    "loadvm": "Begins with a snapshot that is stored in a disk.",
    "gdb": "Lets a debugger attach to the guest at this place.",
    "d": "Logs what QEMU does, by topic.",
    "D": "Writes that log to this file.",
    "dfilter": "Logs only what concerns these addresses.",
    "trace": "Turns trace points on.",
    "plugin": "Loads a plugin that watches translated code.",
    "msg": "Chooses how QEMU's messages look.",
    "seed": "Begins QEMU's random numbers with this one, so that a run can be repeated.",
    "runas": "Gives up root's rights for this user's once QEMU is set up.",
    "chroot": "Locks QEMU into this directory once it is set up.",
    "readconfig": "Reads further options from this file.",
    "compat": "Says what happens when something deprecated is used.",
    "add-fd": "Hands an open file to QEMU by its number.",
    "echr": "Chooses the character that begins a command at a terminal.",
    "dump-vmstate": "Writes what a machine's saved state consists of to this file.",
    "xen-domid": "Attaches to this Xen domain.",
    "tb-size": "Sets how much memory translated code may take.",
}
"""Options with a value."""

DEVICES = {
    "virtio-rng-pci": "a source of random numbers",
    "virtio-serial-pci": "a controller for fast channels between host and guest",
    "virtserialport": "a channel that a program in the guest opens by its name",
    "virtconsole": "a second, fast console (hvc)",
    "virtio-blk-pci": "a fast disk",
    "virtio-scsi-pci": "a fast SCSI controller",
    "scsi-hd": "a SCSI disk",
    "scsi-cd": "a SCSI CD drive",
    "ide-hd": "an IDE or SATA disk",
    "ide-cd": "an IDE or SATA CD drive",
    "nvme": "an NVMe disk",
    "nvme-ns": "a namespace of an NVMe disk",
    "ahci": "a SATA controller",
    "virtio-net-pci": "a fast network card",
    "e1000": "an Intel network card",
    "e1000e": "an Intel network card",
    "rtl8139": "a Realtek network card",
    "virtio-9p-pci": "a directory of the host that the guest mounts over 9p",
    "vhost-user-fs-pci": "a directory of the host that the guest mounts through virtiofs",
    "virtio-balloon-pci": "a way to take memory back from the guest",
    "virtio-gpu-pci": "a fast graphics card",
    "virtio-vga": "a fast graphics card that can also do plain VGA",
    "VGA": "a plain graphics card",
    "qxl-vga": "a graphics card for SPICE",
    "usb-ehci": "a USB 2 controller",
    "qemu-xhci": "a USB 3 controller",
    "usb-kbd": "a USB keyboard",
    "usb-tablet": "a USB pointer that follows the host's",
    "usb-redir": "a place for a USB device of whoever looks at the screen over SPICE",
    "virtio-tablet-pci": "a pointer that is where the viewer's is",
    "usb-storage": "a USB stick",
    "intel-iommu": "an IOMMU, so that the guest can hand devices on",
    "intel-hda": "a sound controller",
    "hda-duplex": "sound in and out",
    "pvpanic": "a way for the guest to say that it has panicked",
    "pcie-root-port": "a slot for a PCI Express device",
    "vfio-pci": "a device of the host, handed to the guest",
    "vhost-vsock-pci": "sockets between host and guest",
    "isa-serial": "a serial port",
    "i6300esb": "a watchdog",
    "tpm-tis": "a TPM",
    "vmgenid": "a number that changes when the guest was copied",
}
"""What `-device NAME` adds."""

NETWORKS = {
    "user": "a network made by QEMU itself, which needs no rights: the guest reaches out, in only what is forwarded",
    "tap": "a network interface of the host",
    "bridge": "a bridge of the host",
    "socket": "a network among QEMUs",
    "stream": "a network among QEMUs",
    "dgram": "a network among QEMUs",
    "hubport": "a hub within this QEMU",
    "vde": "a VDE switch",
    "vhost-user": "another process that does the network's work",
}
"""What `-netdev KIND` is."""

_ALTERNATIVES = {"device": DEVICES, "netdev": NETWORKS, "nic": NETWORKS}


@dataclass(frozen=True)
class Explanation:
    """One option of a command line.

    Attributes:
        option: As it is written, with its dashes; empty for a word that belongs to none.
        value: The word after it; empty when it has none.
        meaning: One or two sentences.
        origin: Where it comes from, as the caller said it.
        is_known: Whether `meaning` says more than that we do not know.
    """

    option: str
    value: str
    meaning: str
    origin: str
    is_known: bool = True


def explain(parts: Iterable[tuple[str, Iterable[str]]]) -> tuple[Explanation, ...]:
    """Say of each option of a command line what it does.

    Args:
        parts: The words in their order, without the program, in pieces that each say where they come from. An option
            and its value may be in different pieces.
    """
    words = [(word, origin) for origin, piece in parts for word in piece]
    found = []
    index = 0
    while index < len(words):
        word, origin = words[index]
        index += 1
        name = _option_name(word)
        if not name:
            found.append(Explanation("", word, _explain_loose(word), origin))
            continue
        value = ""
        if name not in FLAGS and index < len(words) and (name in OPTIONS or not _option_name(words[index][0])):
            value = words[index][0]
            index += 1
        found.append(_explain_option(word, name, value, origin))
    return tuple(found)


def _option_name(word: str) -> str:
    """QEMU takes one dash or two (system/vl.c, lookup_opt)."""
    name = word[2:] if word.startswith("--") else word[1:] if word.startswith("-") else ""
    return name if name and not name[0].isdigit() else ""


def _explain_option(word: str, name: str, value: str, origin: str) -> Explanation:
    meaning = FLAGS.get(name) or OPTIONS.get(name)
    if meaning is None:
        return Explanation(word, value, UNKNOWN, origin, is_known=False)
    kind = _first_part(value, name)
    alternative = _ALTERNATIVES.get(name, {}).get(kind)
    if alternative is not None:
        meaning = f"{meaning} Here: {alternative}."
    return Explanation(word, value, meaning, origin)


def _explain_loose(word: str) -> str:
    return "A word without an option: QEMU takes it for the image of the first disk." if word else "An empty word."


def _first_part(value: str, name: str) -> str:
    """The driver in `virtio-net-pci,netdev=net0` or `{"driver": "virtio-net-pci"}`."""
    key = "driver" if name == "device" else "type"
    if not value.startswith("{"):
        return value.split(",", 1)[0].removeprefix(f"{key}=")
    try:
        kind = json.loads(value).get(key, "")
    except (ValueError, RecursionError):
        return ""
    return kind if isinstance(kind, str) else ""
