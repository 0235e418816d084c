"""Finds and opens the virtio-serial port, or whatever stands in for it (guest floor); called by `main`.

Names of ports are in sysfs; the nodes `/dev/virtio-ports/NAME` exist only where udev makes them.
Source: Linux, drivers/char/virtio_console.c; Documentation/ABI/testing/sysfs-bus-... (`/sys/class/virtio-ports`).
"""

import os

NAME = "org.unhinged.agent.0"
BULK_NAME = "org.unhinged.bulk.0"
_CLASS = "/sys/class/virtio-ports"


def find_port(name: str = NAME) -> "str | None":
    """Gives the device node of the virtio-serial port `name`, None while there is none."""
    try:
        devices = os.listdir(_CLASS)
    except FileNotFoundError:
        devices = []
    for device in devices:
        try:
            with open("%s/%s/name" % (_CLASS, device), "rb", 0) as file:
                found = file.read(256).strip()
        except OSError:
            continue  # the device went away between the listing and the reading
        if found == name.encode():
            return "/dev/" + device
    link = "/dev/virtio-ports/" + name
    return link if os.path.exists(link) else None


def open_port(path: str) -> "tuple[int, str]":
    """Opens a port, terminal or socket for both directions without blocking.

    Returns:
        The file descriptor, and what it is: `virtio-serial` (the only one that stays after its peer has gone),
        `terminal` or `socket`, or `descriptor` for anything else.

    Raises:
        OSError: It does not exist, or another process has it open (EBUSY).
    """
    import stat

    mode = os.stat(path).st_mode
    if stat.S_ISSOCK(mode):
        return _connect(path), "socket"
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if os.isatty(fd):
        _make_raw(fd)
        return fd, "terminal"
    return fd, "virtio-serial" if stat.S_ISCHR(mode) else "descriptor"


def _connect(path: str) -> int:
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.connect(path)
    sock.setblocking(False)
    return sock.detach()


def _make_raw(fd: int) -> None:
    """Takes echo, line editing and signals off a terminal, so that bytes pass through it unchanged."""
    import termios

    attributes = termios.tcgetattr(fd)
    attributes[0] = 0
    attributes[1] = 0
    attributes[2] = (attributes[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8 | termios.CREAD | termios.CLOCAL
    attributes[3] = 0
    termios.tcsetattr(fd, termios.TCSANOW, attributes)
