"""Makes the part of the image that comes from the distribution alone (room: image; called by `iso/build.py`).

The result is one tree. Below `guest/` lies what the guest's file system holds, below `boot/` what boots it.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from iso import guestpython, kernelmodules, vmlinux
from iso.distribution import Distribution
from iso.failure import BuildError
from iso.newc import Entry, Tree, file
from iso.packages import Package, read_files, unpack
from iso.progress import Progress


def build(distribution: Distribution, packages: Mapping[str, Package], debs: Path, progress: Progress) -> Tree:
    """Unpack the packages and return the base tree.

    Args:
        distribution: What to take from which package.
        packages: The exact packages; their files are in `debs`.
        debs: Where the packages are; a scratch directory lives and goes beside them.
        progress: Told about each step.
    """
    tree: Tree = {}
    with tempfile.TemporaryDirectory(prefix="base.", dir=debs) as name:
        scratch = Path(name)
        progress.step("unpacking the packages of the guest")
        guest = _take(distribution.packages, packages, debs, scratch)
        progress.step("compiling Python's library to bytecode")
        guest = _with_bytecode(distribution, guest, scratch)
        progress.step("unpacking the kernel")
        boot, modules = _kernel(packages, debs, scratch)
        guest |= modules
        progress.step("indexing the kernel modules")
        guest |= _module_index(guest, scratch)
        boot |= _take(distribution.boot_packages, packages, debs, scratch)
    tree |= {f"guest/{path}": entry for path, entry in guest.items()}
    tree |= {f"boot/{path}": entry for path, entry in boot.items()}
    return tree


def host_command(root: Path, program: str) -> list[str]:
    """Say how to run one of the guest's programs on the host: by the guest's own loader and libraries.

    Args:
        root: The guest's files on disk.
        program: The path of the program in the guest.
    """
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    # --argv0: kmod tells by its name which of its tools it is. Source: ld.so(8).
    return [
        str(loader), "--library-path", str(libraries), "--argv0", f"/{program}", str(root / program),
    ]  # fmt: skip


def write_to_disk(tree: Mapping[str, Entry], root: Path) -> None:
    """Write files and symbolic links of a tree below `root`; device nodes are left out, which need root."""
    for path, entry in sorted(tree.items()):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISLNK(entry.mode):
            target.symlink_to(entry.data.decode())
        elif stat.S_ISREG(entry.mode):
            target.write_bytes(entry.data)
            target.chmod(stat.S_IMODE(entry.mode))


def kernel_version(tree: Mapping[str, Entry]) -> str:
    """Read the kernel's version off the path of its modules."""
    for path in tree:
        _, found, after = path.partition("usr/lib/modules/")
        if found:
            return after.split("/")[0]
    raise BuildError("the guest has no kernel modules")


def _take(wanted: Mapping[str, Iterable[str]], packages: Mapping[str, Package], debs: Path, scratch: Path) -> Tree:
    tree: Tree = {}
    for name, patterns in wanted.items():
        if patterns := list(patterns):
            unpacked = scratch / "unpacked" / name
            unpack(debs / packages[name].file_name, unpacked)
            tree |= read_files(unpacked, patterns, package=name)
    return tree


def _with_bytecode(distribution: Distribution, guest: Tree, scratch: Path) -> Tree:
    root = scratch / "root"
    library = f"usr/lib/{distribution.python}"
    write_to_disk(guest, root)
    sources = {
        path: entry for path, entry in guest.items() if path.startswith(f"{library}/") and guestpython.is_wanted(path)
    }
    interpreter = host_command(root, f"usr/bin/{distribution.python}")
    (scratch / "bytecode").mkdir()
    compiled = guestpython.compile_tree(interpreter, root / "usr", sources, library, scratch / "bytecode", level=2)
    rest = {path: entry for path, entry in guest.items() if not path.startswith(f"{library}/")}
    return rest | compiled


def _kernel(packages: Mapping[str, Package], debs: Path, scratch: Path) -> tuple[Tree, Tree]:
    unpacked = scratch / "kernel"
    for name, package in packages.items():
        if name.startswith("linux-"):
            unpack(debs / package.file_name, unpacked)
    images = sorted((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise BuildError("the kernel's packages do not hold exactly one kernel")
    version = images[0].name.removeprefix("vmlinuz-")
    bz_image = images[0].read_bytes()
    kernel = vmlinux.extract(bz_image)
    if not vmlinux.has_pvh_entry(kernel):
        raise BuildError(f"the kernel {version} cannot be entered through PVH (it is built without CONFIG_PVH)")
    lists = kernelmodules.load_lists()
    modules = kernelmodules.select(unpacked, version, [name for names in lists.values() for name in names])
    return {"vmlinux": file(kernel), "bzImage": file(bz_image)}, modules


def _module_index(guest: Tree, scratch: Path) -> Tree:
    version = kernel_version(guest)
    root = scratch / "root"
    write_to_disk({path: entry for path, entry in guest.items() if path.startswith("usr/lib/modules/")}, root)
    (root / "lib").symlink_to("usr/lib")
    depmod = host_command(root, "usr/bin/kmod")
    depmod[depmod.index("/usr/bin/kmod")] = "depmod"
    return kernelmodules.index(root, version, depmod)
