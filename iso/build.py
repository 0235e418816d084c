"""Builds the guest image: `python3 iso/build.py --output build/image --cache build/cache` (room: image; a door).

Called by `make image`. Steps: which packages (recorded in the cache), what comes from them alone (kept in the cache),
the guest's file system, the initrd, the ISO, the manifest. The old image stays until all of the new one is made.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    # Started as a script, Python looks for modules beside this file only.
    sys.path.insert(0, str(REPOSITORY))

from iso import base, initrd, isofile, layer, manifest, packages, programs, rootfs  # noqa: E402
from iso.distribution import Distribution, load, probe_key  # noqa: E402
from iso.failure import BuildError, disk_failure  # noqa: E402
from iso.newc import Tree  # noqa: E402
from iso.packages import Package  # noqa: E402
from iso.progress import Progress  # noqa: E402

PROGRAMS = ("apt-cache", "apt-get", "dpkg-deb", "grub-mkimage", "lz4", "mcopy", "mformat", "mmd", "xorriso", "zstd")
ISO_OWN = REPOSITORY / "iso"
GUEST_OWN = REPOSITORY / "guest" / "rootfs"
AGENT = REPOSITORY / "guest" / "agent"


def main(arguments: list[str] | None = None) -> int:
    """Build what is not up to date, say on stderr what happens, and return the exit code."""
    options = _parse(arguments)
    progress = Progress()
    try:
        build(options, progress)
    except BuildError as error:
        return _complain(error)
    except OSError as error:
        return _complain(disk_failure(error, options.output))
    except KeyboardInterrupt:
        print("image: interrupted; the image is as it was", file=sys.stderr)
        return 130
    return 0


def build(options: argparse.Namespace, progress: Progress) -> None:
    """Bring the output directory up to date.

    Raises:
        BuildError: What is missing, and what helps; the output directory is as it was.
    """
    distribution = load(options.distribution or probe_key())
    lock = options.cache / f"packages-{distribution.key}.json"
    present = manifest.read(options.output)
    exact = None if options.refresh else _recorded(lock, present, distribution)
    if not options.force and exact is not None and _is_current(present, exact, distribution, options.agent):
        _mark_current(options.output)
        return
    programs.require(PROGRAMS)
    with _exclusive(options.cache, progress):
        _build_exclusively(options, distribution, progress)


def _build_exclusively(options: argparse.Namespace, distribution: Distribution, progress: Progress) -> None:
    lock = options.cache / f"packages-{distribution.key}.json"
    # Looked at again, because the build we may have waited for has perhaps done all there is to do.
    present = manifest.read(options.output)
    exact = None if options.refresh else _recorded(lock, present, distribution)
    if not options.force and exact is not None and _is_current(present, exact, distribution, options.agent):
        return
    if exact is None:
        progress.step("asking apt for the packages' versions")
        exact = packages.resolve(distribution)
    packages.write_lock(lock, exact)
    # A place that cannot be written is found out now and not after all the work.
    options.output.mkdir(parents=True, exist_ok=True)
    _make(options, distribution, exact, progress)


@contextlib.contextmanager
def _exclusive(cache: Path, progress: Progress) -> Iterator[None]:
    """Hold the cache for this build; another one waits. The lock goes with the process, however it ends."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step("waiting for another build that uses the same cache")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_current(
    present: dict[str, Any] | None, exact: dict[str, Package], distribution: Distribution, agent: Path
) -> bool:
    return present is not None and present["input_hash"] == _hash(exact, distribution, agent)


def _mark_current(output: Path) -> None:
    """Tell make, which compares times, that the image is newer than its sources."""
    with contextlib.suppress(PermissionError):
        # Somebody else's image can be used as well as one's own; then make asks again next time.
        (output / manifest.NAME).touch()


def _recorded(lock: Path, present: dict[str, Any] | None, distribution: Distribution) -> dict[str, Package] | None:
    recorded = packages.read_lock(lock)
    if recorded is None and present is not None and present["distribution"] == distribution.title:
        recorded = {name: Package(**about) for name, about in present["packages"].items()}
    wanted = {*distribution.packages, *distribution.boot_packages}
    return recorded if recorded is not None and wanted <= recorded.keys() else None


def _make(
    options: argparse.Namespace, distribution: Distribution, exact: dict[str, Package], progress: Progress
) -> None:
    tree = _base(options, distribution, exact, progress)
    guest = {path.removeprefix("guest/"): entry for path, entry in tree.items() if path.startswith("guest/")}
    boot = {path.removeprefix("boot/"): entry for path, entry in tree.items() if path.startswith("boot/")}
    progress.step("putting the guest's files together")
    packed = initrd.pack_initrd(rootfs.assemble(guest, GUEST_OWN, options.agent, distribution, options.cache))
    input_hash = _hash(exact, distribution, options.agent)
    progress.step("making the ISO file")
    with tempfile.TemporaryDirectory(prefix="iso.", dir=options.cache) as scratch:
        iso = isofile.make_iso(boot, packed, manifest.KERNEL_COMMAND_LINE, input_hash[:16], Path(scratch))
    files = {"vmlinux": boot["vmlinux"].data, "bzImage": boot["bzImage"].data, "initrd": packed, "unhinged.iso": iso}
    about = manifest.describe(
        input_hash=input_hash,
        title=distribution.title,
        kernel=base.kernel_version(guest),
        python=distribution.python,
        packages=exact,
        files=files,
    )
    files[manifest.NAME] = manifest.as_text(about).encode()
    _publish(files, options.output)
    sizes = ", ".join(f"{name} {len(data) / 1e6:.1f} MB" for name, data in files.items() if name != manifest.NAME)
    progress.step(f"done: {sizes}")


def _base(
    options: argparse.Namespace, distribution: Distribution, exact: dict[str, Package], progress: Progress
) -> Tree:
    key = manifest.hash_inputs([ISO_OWN], exact, {"distribution": distribution.key})
    path = options.cache / f"base-{key[:16]}.tar"
    tree = layer.load(path)
    if tree is None or options.force:
        packages.fetch(exact, options.cache / "packages", progress)
        tree = base.build(distribution, exact, options.cache / "packages", progress)
        for old in options.cache.glob("base-*.tar"):
            old.unlink()
        layer.save(tree, path)
    return tree


def _hash(exact: dict[str, Package], distribution: Distribution, agent: Path) -> str:
    return manifest.hash_inputs([ISO_OWN, GUEST_OWN, agent], exact, {"distribution": distribution.key})


def _publish(files: dict[str, bytes], output: Path) -> None:
    """Put a whole new image in the place of the old one.

    The files are written in full and then renamed one by one, the manifest last; before the first rename the old
    manifest goes, so a build that is killed in between leaves an image that is seen to be incomplete.
    """
    output.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new.", dir=output))
    try:
        for name, data in files.items():
            with (fresh / name).open("wb") as target:
                target.write(data)
                target.flush()
                os.fsync(target.fileno())
        (output / manifest.NAME).unlink(missing_ok=True)
        for name in files:
            (fresh / name).replace(output / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="iso/build.py", description="Build the guest image from the distribution's packages."
    )
    parser.add_argument("--output", type=Path, default=Path("build/image"), help="where the image goes (build/image)")
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="where packages are kept (build/cache)")
    parser.add_argument("--force", action="store_true", help="build everything again, from the same packages")
    parser.add_argument("--refresh", action="store_true", help="take the current versions of the packages")
    parser.add_argument("--distribution", help="whose packages, for example debian-12 (this host's)")
    parser.add_argument("--agent", type=Path, default=AGENT, help="the agent's sources (guest/agent)")
    options = parser.parse_args(arguments)
    options.output, options.cache = options.output.absolute(), options.cache.absolute()
    return options


def _complain(error: BuildError) -> int:
    print(f"image: {error}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
