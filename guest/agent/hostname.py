"""Gives the guest another name (guest floor); used by `set_hostname` and by first-boot directives."""

from . import system, textfile

_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")


def is_hostname(value: object) -> bool:
    """Whether `value` is a name by RFC 1123 that the kernel takes (64 characters. Source: sethostname(2))."""
    if not isinstance(value, str) or not 1 <= len(value) <= 64:
        return False
    labels = value.split(".")
    return all(
        1 <= len(label) <= 63 and _CHARACTERS.issuperset(label) and label[0] != "-" and label[-1] != "-"
        for label in labels
    )


def set_hostname(name: str, persistent: bool = True) -> None:
    """Names the running guest, and with `persistent` the one of the next boot, whose own name then has an address too.

    Raises:
        OSError: Not permitted, or a file cannot be written. The kernel's name is changed last.
    """
    import _socket

    if persistent:
        keep_hostname(system.read_hostname(), name)
    _socket.sethostname(name)


def keep_hostname(old: str, new: str) -> None:
    """Names the guest of the next boot. Raises OSError."""
    textfile.replace("/etc/hostname", new + "\n")
    _name_in_hosts(old, new)


def _name_in_hosts(old: str, new: str) -> None:
    """Where the old name has the address 127.0.1.1 the new one gets it. Source: Debian Reference, 5.1.1."""
    lines = textfile.read("/etc/hosts").splitlines()
    kept = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words[:1] == ["127.0.1.1"] and old in words[1:]:
            short = new.partition(".")[0]
            line = "127.0.1.1\t" + (new if short == new else "%s %s" % (new, short))
        kept.append(line)
    if kept != lines:
        textfile.replace("/etc/hosts", "\n".join(kept) + "\n")
