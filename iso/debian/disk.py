"""Makes a bootable disk image of an installed system (room: image; called by `iso/debian/build.py`).

Nothing is mounted and no loop device is used: the file system is written from a directory, GRUB's sectors are patched
by us, and the result boots under SeaBIOS and UEFI.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from iso.agent.content import EPOCH
from iso.debian import grub
from iso.debian.gpt import BIOS_BOOT, EFI_SYSTEM, ROOT_X86_64, SECTOR, Partition, build_tables
from iso.debian.recipe import Recipe
from iso.programs import run
from iso.progress import Progress

LABEL = "debian-root"

# One identity for every image: a machine made from it gets what must be its own when it first starts.
_DISK = uuid.UUID("7d1f6d0e-5a53-4c1b-9f0c-64656269616e")
_MIB = 2048
"""Sectors in a mebibyte; partitions begin at whole ones, as every tool has them."""

_ROOT_NUMBER = 3

_FILL = """
set -eu
umask 022
mkdir root
tar --extract --file system.tar.zst --directory root --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
ln -sf ../run/resolv.conf root/etc/resolv.conf
echo debian > root/etc/hostname
if [ -e agent.deb ]; then
	cp agent.deb root/agent.deb
	chroot root dpkg --install /agent.deb
	rm root/agent.deb root/var/log/dpkg.log
fi
# Our stand-ins for devices: the kernel mounts its own over them.
rm -rf root/dev
mkdir root/dev
chroot root dpkg-query --show --showformat='${Package} ${Version}\\n' > packages
# systemd does once what an update of /usr asks for (systemd-update-done.service(8)); here dpkg has done it.
touch root/usr root/etc/.updated root/var/.updated
mke2fs -q -F -t ext4 -L "$LABEL" -U "$IDENTITY" -d root -m 1 \
	-O ^metadata_csum_seed,^orphan_file -J size=32 \
	-E "offset=$OFFSET,hash_seed=$IDENTITY,lazy_itable_init=0,lazy_journal_init=0,nodiscard" disk.raw "$SIZE_KIB"k
rm -rf root
"""


def make_disk(
    recipe: Recipe, system: Path, agent: bytes | None, cache: Path, scratch: Path, progress: Progress
) -> tuple[Path, dict[str, str]]:
    """Return a qcow2 file in `scratch`, and the versions of the packages in it.

    Args:
        system: The archive of `make_system`.
        agent: The agent's Debian package, None for an image without.
        cache: Where GRUB's packages are kept.
        scratch: An empty directory on a disk with room for all of the system.

    Raises:
        BuildError: A program is missing or fails.
    """
    sectors = recipe.size_mib * _MIB
    boot = Partition(BIOS_BOOT, _MIB, _MIB, "bios-boot")
    esp = Partition(EFI_SYSTEM, 2 * _MIB, 14 * _MIB, "efi-system")
    root = Partition(ROOT_X86_64, 16 * _MIB, sectors - 17 * _MIB, LABEL)
    raw = scratch / "disk.raw"
    modules = grub.fetch(cache, progress)
    progress.step("putting the file system together")
    _fill(system, agent, raw, root, sectors, scratch)
    progress.step("writing partitions and boot loader")
    first_sector, core = grub.make_bios(modules, _ROOT_NUMBER, boot.first, boot.sectors * SECTOR, scratch)
    with raw.open("r+b") as disk:
        for sector, data in {
            **build_tables(_DISK, sectors, (boot, esp, root)),
            boot.first: core,
            esp.first: grub.make_esp(modules, _ROOT_NUMBER, esp.sectors, scratch),
        }.items():
            disk.seek(sector * SECTOR)
            disk.write(data)
        disk.seek(0)
        disk.write(first_sector)
    progress.step("compressing the disk image")
    image = scratch / f"{recipe.name}.qcow2"
    # zstd: QEMU reads it from 5.1 on, and twice as fast as deflate. Source: QEMU, docs/interop/qcow2.txt.
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", str(raw), str(image)])
    lines = (scratch / "packages").read_text(encoding="ascii").split("\n")
    return image, dict(line.split(" ", 1) for line in lines if line)


def _fill(system: Path, agent: bytes | None, raw: Path, root: Partition, sectors: int, scratch: Path) -> None:
    """Write the root partition's file system, in a user namespace when we are not root."""
    scratch.chmod(0o777)
    os.link(system, scratch / "system.tar.zst")
    if agent is not None:
        (scratch / "agent.deb").write_bytes(agent)
    with raw.open("wb") as disk:
        disk.truncate(sectors * SECTOR)
    raw.chmod(0o666)
    helper = ["mmdebstrap", "--unshare-helper"] if os.geteuid() != 0 else []
    run(
        [*helper, "sh", "-c", _FILL],
        cwd=scratch,
        environment={
            "LABEL": LABEL,
            "IDENTITY": str(uuid.uuid5(_DISK, "root")),
            "OFFSET": str(root.first * SECTOR),
            "SIZE_KIB": str(root.sectors * SECTOR // 1024),
            "E2FSPROGS_FAKE_TIME": str(EPOCH),
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "DEBIAN_FRONTEND": "noninteractive",
        },
    )
