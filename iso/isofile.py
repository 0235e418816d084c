"""Makes the ISO file: SeaBIOS and UEFI, from CD and from a disk (room: image; called by `iso/build.py`)."""

from __future__ import annotations

from pathlib import Path

from iso.newc import Entry, Tree
from iso.programs import run

# One moment for every date in the ISO, so that two builds are alike. 2024-01-01T00:00:00Z.
EPOCH = 1704067200
_FAT_SERIAL = "756e6869"
_VOLUME = "UNHINGED"

_ISOLINUX = """SERIAL 0 115200
DEFAULT unhinged
PROMPT 0
TIMEOUT 0
LABEL unhinged
 KERNEL /boot/bzImage
 INITRD /boot/initrd
 APPEND {command_line}
"""

_GRUB = """set timeout=0
linux /boot/bzImage {command_line}
initrd /boot/initrd
boot
"""

# Finds the ISO by a file that only this ISO has, whether it is a CD or was copied to a disk.
_GRUB_EARLY = """search --no-floppy --file --set=root /boot/unhinged.{mark}
set prefix=($root)/boot/grub
source $prefix/grub.cfg
"""

_GRUB_MODULES = (
    "normal", "linux", "search", "search_fs_file", "iso9660", "part_msdos", "part_gpt", "configfile", "boot", "minicmd",
    "echo",
)  # fmt: skip


def make_iso(boot: Tree, initrd: bytes, command_line: str, mark: str, scratch: Path) -> bytes:
    """Return a bootable ISO file.

    Args:
        boot: Kernel, isolinux and GRUB, as `iso/base.py` leaves them below `boot/`.
        initrd: The guest's file system, packed.
        command_line: The kernel's command line.
        mark: A short name of this image, by which GRUB finds it.
        scratch: An empty directory.
    """
    content = scratch / "iso"
    _write(content / "boot" / "bzImage", boot["bzImage"])
    _write_bytes(content / "boot" / "initrd", initrd)
    _write_bytes(content / "boot" / f"unhinged.{mark}", b"")
    _write_bytes(content / "boot" / "grub" / "grub.cfg", _GRUB.format(command_line=command_line).encode())
    _write(content / "isolinux" / "isolinux.bin", boot["usr/lib/ISOLINUX/isolinux.bin"])
    _write(content / "isolinux" / "ldlinux.c32", boot["usr/lib/syslinux/modules/bios/ldlinux.c32"])
    _write_bytes(content / "isolinux" / "isolinux.cfg", _ISOLINUX.format(command_line=command_line).encode())
    _write(scratch / "isohdpfx.bin", boot["usr/lib/ISOLINUX/isohdpfx.bin"])
    _write_bytes(content / "boot" / "grub" / "efi.img", _efi_image(boot, mark, scratch))
    return _xorriso(content, scratch)


def _xorriso(content: Path, scratch: Path) -> bytes:
    _fix_permissions(content)
    target = scratch / "unhinged.iso"
    date = "2024010100000000"
    run(
        [
            "xorriso", "-as", "mkisofs", "-quiet", "-o", str(target), "-R", "-J", "-V", _VOLUME,
            f"--modification-date={date}", "--set_all_file_dates", date, "-uid", "0", "-gid", "0",
            "-isohybrid-mbr", str(scratch / "isohdpfx.bin"),
            "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat",
            "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
            "-eltorito-alt-boot", "-e", "boot/grub/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat",
            str(content),
        ],
        environment={"SOURCE_DATE_EPOCH": str(EPOCH)},
    )  # fmt: skip
    return target.read_bytes()


def _efi_image(boot: Tree, mark: str, scratch: Path) -> bytes:
    """Return a FAT file system with GRUB in it, where UEFI firmware looks for it."""
    modules = scratch / "grub"
    for path, entry in boot.items():
        if path.startswith("usr/lib/grub/"):
            _write(modules / path.rpartition("/")[2], entry)
    early = scratch / "early.cfg"
    _write_bytes(early, _GRUB_EARLY.format(mark=mark).encode())
    program = scratch / "bootx64.efi"
    run(
        [
            "grub-mkimage", "-d", str(modules), "-O", "x86_64-efi", "-p", "/boot/grub",
            "-c", str(early), "-o", str(program),
            *_GRUB_MODULES,
        ]
    )  # fmt: skip
    image = scratch / "efi.img"
    # A whole number of 32 KiB blocks with room for GRUB and the directories.
    size_kib = (program.stat().st_size // 32768 + 4) * 32
    image.write_bytes(bytes(size_kib * 1024))
    fixed = {"SOURCE_DATE_EPOCH": str(EPOCH), "MTOOLS_SKIP_CHECK": "1", "MTOOLSRC": "/dev/null"}
    run(
        [
            "mformat",
            "-i",
            str(image),
            "-T",
            str(size_kib * 2),
            "-h",
            "2",
            "-s",
            "16",
            "-N",
            _FAT_SERIAL,
            "-v",
            _VOLUME,
            "::",
        ],
        environment=fixed,
    )
    run(["mmd", "-i", str(image), "::/EFI", "::/EFI/BOOT"], environment=fixed)
    run(["mcopy", "-i", str(image), str(program), "::/EFI/BOOT/BOOTX64.EFI"], environment=fixed)
    return image.read_bytes()


def _fix_permissions(content: Path) -> None:
    """Give everything the same permissions whatever this process's umask is; they are stored in the ISO."""
    for path in (content, *content.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write(path: Path, entry: Entry) -> None:
    _write_bytes(path, entry.data)


def _write_bytes(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
