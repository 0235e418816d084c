"""Makes a Debian disk image, or a seed for cloud images: `python3 iso/debian/build.py disk|seed` (room: image; a door).

Called by `make image-debian` and `make image-seed`. An image whose inputs have not changed is left alone; the old one
stays until the new one is whole.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if str(REPOSITORY) not in sys.path:
    # Started as a script, Python looks for modules beside this file only.
    sys.path.insert(0, str(REPOSITORY))

from iso import programs, publish  # noqa: E402
from iso.agent import content, deb  # noqa: E402
from iso.debian import disk, seed, system  # noqa: E402
from iso.debian.recipe import RECIPES, SUITE, Recipe  # noqa: E402
from iso.progress import Progress  # noqa: E402

_DISK_PROGRAMS = (
    "apt-cache", "apt-config", "apt-get", "dpkg-deb", "grub-mkimage", "mcopy", "mformat", "mmd", "mmdebstrap",
    "qemu-img", "zstd",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Make what the command line names, print its path, and return the exit code."""
    options = _parse(arguments)
    build = build_disk if options.what == "disk" else build_seed
    return publish.run_door("image", lambda: [build(options, Progress())], options.output)


def build_seed(options: argparse.Namespace, progress: Progress) -> Path:
    """Bring the seed ISO up to date and return its path.

    Raises:
        BuildError: What is missing, or why the key cannot be used; an older seed is as it was.
    """
    programs.require(("dpkg-deb", "xorriso"))
    output: Path = options.output
    key = seed.read_key(options.key) if options.key is not None else seed.make_key(output.parent / "seed", progress)
    target = output / "seed.iso"
    with tempfile.TemporaryDirectory(prefix="seed.") as scratch:
        publish.replace_changed(target, seed.make_seed(key, Path(scratch)))
    return target


def build_disk(options: argparse.Namespace, progress: Progress) -> Path:
    """Bring a disk image up to date and return its path.

    Raises:
        BuildError: What is missing, and what helps; the image is as it was.
    """
    recipe: Recipe = RECIPES[options.recipe]
    programs.require(_DISK_PROGRAMS)
    options.cache.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    target: Path = options.output / f"{recipe.name}.qcow2"
    with (options.cache / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        archive = system.make_system(recipe, options.cache, progress, refresh=options.refresh)
        with tempfile.TemporaryDirectory(prefix="disk.", dir=options.cache) as name:
            scratch = Path(name)
            agent = deb.make_deb(content.read_version(), scratch) if recipe.agent else None
            key = _key(recipe, archive, agent)
            if not options.force and _is_current(target, key):
                return target
            work = scratch / "disk"
            work.mkdir()
            made, packages = disk.make_disk(recipe, archive, agent, options.cache, work, progress)
            about = {
                "format": 1,
                "input_hash": key,
                "distribution": f"Debian {SUITE}",
                "agent": content.read_version() if agent is not None else None,
                "bytes": made.stat().st_size,
                "packages": packages,
            }
            manifest = _manifest(target)
            manifest.unlink(missing_ok=True)
            made.replace(target)
            publish.replace_changed(manifest, (json.dumps(about, indent=1) + "\n").encode())
    progress.step(f"done: {target.name} {target.stat().st_size / 1e6:.0f} MB, {len(packages)} packages")
    return target


def _manifest(image: Path) -> Path:
    return image.with_suffix(".json")


def _is_current(image: Path, key: str) -> bool:
    """Tell whether the image was made from these inputs. That it was booted since, and changed, is not looked for."""
    try:
        return bool(json.loads(_manifest(image).read_text(encoding="utf-8"))["input_hash"] == key) and image.exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _key(recipe: Recipe, archive: Path, agent: bytes | None) -> str:
    status = archive.stat()
    total = hashlib.sha256(f"{recipe} {archive.name} {status.st_size} {status.st_mtime_ns}".encode())
    total.update(agent or b"")
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="iso/debian/build.py", description="Make a Debian disk image or a seed ISO.")
    parser.add_argument("what", choices=["disk", "seed"], help="what to make")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="debian", help="which disk image (debian)")
    parser.add_argument("--output", type=Path, default=Path("build/image"), help="where it goes (build/image)")
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="where packages are kept (build/cache)")
    parser.add_argument("--key", type=Path, help="for seed: the public SSH key that may log in (one is made)")
    parser.add_argument("--force", action="store_true", help="make the image again, from the same packages")
    parser.add_argument("--refresh", action="store_true", help="install the current versions of the packages")
    options = parser.parse_args(arguments)
    options.output, options.cache = options.output.absolute(), options.cache.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
