"""Gives the built-in guest a kernel's modules: `iso/moduleinitrd.py RELEASE DIRECTORY --initrd OLD --output NEW`.

Room: image; a door, called for `unhinged run --image KERNEL`. The directory is like `/lib/modules/RELEASE`, or the
sources that the kernel was built in. The new initrd is an archive of the modules and, after it, the old one: the kernel
unpacks one after the other. The guest makes the modules' index itself (/init). Beside it lies `NEW.json`, which names
the files that it was made of; it is written last.

Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    # Started as a script, Python looks for modules beside this file only.
    sys.path.insert(0, str(REPOSITORY))

from iso import kernelmodules, newc, publish  # noqa: E402
from iso.failure import BuildError  # noqa: E402

_ALIGNED = 4
"""Bytes, to which the kernel has every archive begin."""

_KNOWN_BY_THE_KERNEL = ("modules.builtin", "modules.builtin.modinfo")


def main(arguments: list[str] | None = None) -> int:
    """Make the initrd, print its path, and return the exit code."""
    options = _parse(arguments)
    return publish.run_door("image", lambda: [make(options)], options.output.parent)


def make(options: argparse.Namespace) -> Path:
    """Make the initrd, and the list of what it stands on.

    Raises:
        BuildError: There are no modules in that directory.
    """
    root: Path = options.directory
    initrd: Path = options.output
    found = kernelmodules.list_built(root) or kernelmodules.list_installed(root)
    if not found:
        raise BuildError(f"{root} holds no kernel modules", hint="build them: make modules")
    names = [name for names in kernelmodules.load_lists().values() for name in names]
    tree, read = kernelmodules.take(root, options.release, found, names)
    for name in _KNOWN_BY_THE_KERNEL:
        if (root / name).exists():
            tree[f"usr/lib/modules/{options.release}/{name}"] = newc.file((root / name).read_bytes())
    modules = newc.pack(tree)
    padding = b"\0" * (-len(modules) % _ALIGNED)
    publish.replace_changed(initrd, modules + padding + options.initrd.read_bytes())
    note = json.dumps(_tell_apart([options.initrd, *read]), indent=1).encode()
    publish.replace_changed(initrd.with_suffix(".json"), note)
    return initrd


def _tell_apart(paths: Iterable[Path]) -> dict[str, list[int]]:
    """What tells each file from an earlier one of its name: its size in bytes, and when it was written, in ns."""
    found = {}
    for path in paths:
        told = path.stat()
        found[str(path)] = [told.st_size, told.st_mtime_ns]
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="give a kernel's modules to the built-in guest")
    parser.add_argument("release", metavar="RELEASE", help="what uname -r says under that kernel")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY", help="where its modules are")
    parser.add_argument("--initrd", type=Path, required=True, metavar="FILE", help="the built-in guest's")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the new initrd")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
