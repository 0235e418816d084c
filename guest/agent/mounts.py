"""The mounted file systems (guest floor): which there are, how full they are, which lie on a disk.

Source: proc_pid_mountinfo(5); statvfs(3).
"""

import os

from . import system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Their size is asked of somebody else, who may never answer and hold up the agent.
_REMOTE = ("9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "ceph", "afs", "autofs")
_MAX_MOUNTS = 4096
_MAX_BYTES = 4 * 1024 * 1024


class Mount:
    """One line of the table of mounts.

    Attributes:
        id: The kernel's number of the mount; of two on one directory the later one is seen.
        device: Major and minor number of the file system; two mounts of one file system share it.
        source: The disk, or whatever the file system gives as its name.
    """

    __slots__ = ("device", "id", "options", "path", "source", "type")

    def __init__(self, line: str) -> None:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        self.id = int(fields[0])
        self.device = fields[2]
        self.path = _unescape(fields[4])
        self.type = rest[0]
        self.source = _unescape(rest[1])
        options = fields[5].split(",")
        self.options = options + [option for option in rest[2].split(",") if option not in options]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options

    @property
    def is_remote(self) -> bool:
        return self.type in _REMOTE or self.type.startswith("fuse")

    @property
    def is_on_disk(self) -> bool:
        """Whether a block device of this guest holds it. Source: Documentation/admin-guide/devices.txt, major 0."""
        return not self.device.startswith("0:") or self.type in ("btrfs", "zfs")


def read_mounts() -> "list[Mount]":
    """The mounts in the order in which they were made, at most 4096; a line that is none is passed over."""
    found = []
    for line in system.read_text("/proc/self/mountinfo", _MAX_BYTES).splitlines()[:_MAX_MOUNTS]:
        try:
            found.append(Mount(line))
        except (IndexError, ValueError):
            continue  # cut by our own limit, or by a file system that writes nonsense about itself
    return found


def measure(mount: Mount) -> "dict[str, int] | None":
    """Sizes and numbers of files; None where there are none to be had without asking somebody else."""
    if mount.is_remote:
        return None
    try:
        sizes = os.statvfs(mount.path)
    except OSError:
        return None  # hidden by a later mount, or not ours to see
    if not sizes.f_blocks:
        return None
    return {
        "total_bytes": sizes.f_blocks * sizes.f_frsize,
        "free_bytes": sizes.f_bfree * sizes.f_frsize,
        "available_bytes": sizes.f_bavail * sizes.f_frsize,
        "files_total": sizes.f_files,
        "files_free": sizes.f_ffree,
    }


def list_disks() -> "list[dict[str, Any]]":
    """What `diagnostics` says of the mounted file systems that have a size, at most 32."""
    disks: "list[dict[str, Any]]" = []
    for mount in read_mounts():
        sizes = measure(mount)
        if sizes is not None and len(disks) < 32:
            disks.append(
                {
                    "path": mount.path[:4096],
                    "type": mount.type[:64],
                    "total_bytes": sizes["total_bytes"],
                    "available_bytes": sizes["available_bytes"],
                }
            )
    return disks


def _unescape(text: str) -> str:
    r"""Turns the octal escapes of space, tab, line feed and backslash (`\040`) back into these characters."""
    if "\\" not in text:
        return text
    head, *pieces = text.split("\\")
    for piece in pieces:
        code = piece[:3]
        head += chr(int(code, 8)) + piece[3:] if len(code) == 3 and code.isdigit() else "\\" + piece
    return head
