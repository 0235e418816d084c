"""What a Debian image holds, as data (room: image; called by the other modules here)."""

from __future__ import annotations

from dataclasses import dataclass

SUITE = "bookworm"

# Ordinary, and no more than that: what a small server has. usr-is-merged keeps out usrmerge and with it all of Perl.
_PACKAGES = (
    "usr-is-merged", "systemd-sysv", "udev", "dbus", "libpam-systemd", "kmod",
    "linux-image-amd64", "initramfs-tools", "zstd", "e2fsprogs",
    "openssh-server", "python3", "sudo", "ca-certificates",
    "iproute2", "iputils-ping", "procps", "less", "nano",
)  # fmt: skip

_MODULES = "/usr/lib/modules/*/kernel"

# Half a gigabyte of documentation, translations and drivers of devices that no virtual machine has.
# dpkg takes the last rule that fits. Source: dpkg(1), --path-exclude.
_LEFT_OUT = (
    *("exclude=/usr/share/doc/*", "include=/usr/share/doc/*/copyright", "exclude=/usr/share/man/*"),
    *("exclude=/usr/share/locale/*", "exclude=/usr/share/info/*", "exclude=/usr/lib/udev/hwdb.d/*"),
    *("exclude=/lib/udev/hwdb.d/*",),
    *(
        f"exclude={root}/{part}"
        for root in (_MODULES, _MODULES.removeprefix("/usr"))
        for part in (
            "drivers/net/ethernet/*", "drivers/net/wireless/*", "drivers/net/can/*", "drivers/gpu/drm/amd/*",
            "drivers/gpu/drm/i915/*", "drivers/gpu/drm/nouveau/*", "drivers/gpu/drm/radeon/*", "drivers/media/*",
            "drivers/scsi/*/*", "drivers/infiniband/*", "drivers/iio/*", "drivers/staging/*", "drivers/hwmon/*",
            "drivers/comedi/*", "drivers/mtd/*", "drivers/bluetooth/*", "drivers/platform/*", "drivers/isdn/*",
            "sound/*", "net/bluetooth/*", "net/wireless/*", "net/mac80211/*", "lib/test_*",
        )
    ),
    *(
        f"include={root}/{part}"
        for root in (_MODULES, _MODULES.removeprefix("/usr"))
        for part in (
            "drivers/net/ethernet/intel/e1000*",
            "sound/soundcore*", "sound/core/*", "sound/hda/*", "sound/pci/hda/*",  # of SPICE
        )
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """One Debian image.

    Attributes:
        name: Its file's name, without `.qcow2`.
        packages: What is installed, with what they depend on.
        agent: Whether our own package is installed as well.
        left_out: dpkg's rules for files of packages that stay away, `include=PATTERN` or `exclude=PATTERN`.
        size_mib: The size of the disk; little of it is used, and the file holds no more than that.
    """

    name: str
    packages: tuple[str, ...] = _PACKAGES
    agent: bool = True
    left_out: tuple[str, ...] = _LEFT_OUT
    size_mib: int = 8192


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # With what a viewer needs for the clipboard, dropped files and a screen that follows its window.
        Recipe("debian", (*_PACKAGES, "spice-vdagent")),
        # Somebody else's cloud image, as far as the seed ISO can tell; only tests build it.
        Recipe("debian-cloud", (*_PACKAGES, "cloud-init"), agent=False),
    )
}
