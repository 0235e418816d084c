"""Chooses the guest's kernel modules and indexes them (room: image; called by `base.py` and `moduleinitrd.py` here)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from iso.failure import BuildError
from iso.newc import Tree, file
from iso.programs import run

DATA = Path(__file__).resolve().parent / "modules.toml"
_COMPRESSED = {".zst": ["zstd", "-dcq"], ".xz": ["xz", "-dc"], ".gz": ["gzip", "-dc"]}
_INDEX_FILES = ("modules.order", "modules.builtin", "modules.builtin.modinfo")


def load_lists() -> dict[str, list[str]]:
    """Read which modules the guest has, by group."""
    lists: dict[str, list[str]] = tomllib.loads(DATA.read_text(encoding="utf-8"))
    return lists


def select(kernel: Path, version: str, names: Iterable[str]) -> Tree:
    """Take the modules `names`, and all that they depend on, out of an unpacked kernel.

    Raises:
        BuildError: The kernel neither has nor builds in one of them.
    """
    root = _modules_root(kernel, version)
    found = list_installed(root)
    built_in = {_name(Path(line)) for line in (root / "modules.builtin").read_text().splitlines()}
    unknown = sorted(name for name in map(_plain, names) if name not in found and name not in built_in)
    if unknown:
        raise BuildError(f"the kernel {version} has no module {', '.join(unknown)}", hint="correct iso/modules.toml")
    tree, _ = take(root, version, found, names)
    for index in _INDEX_FILES:
        if (root / index).exists():
            tree[f"usr/lib/modules/{version}/{index}"] = file((root / index).read_bytes())
    return tree


def list_installed(root: Path) -> dict[str, Path]:
    """The modules below a directory like `/lib/modules/VERSION`, by name."""
    return {_name(path): path for path in root.rglob("*.ko*")}


def list_built(sources: Path) -> dict[str, Path]:
    """The modules that were built in the sources of Linux, by name; none where no `make` has got that far.

    Source: Linux, scripts/Makefile.modinst, of several versions: `modules.order` has named `kernel/a/b.ko`, `a/b.ko`
    and, since 6.3, `a/b.o`.
    """
    order = sources / "modules.order"
    lines = order.read_text().split() if order.exists() else []
    paths = [(sources / line.removeprefix("kernel/")).with_suffix(".ko") for line in lines]
    return {_name(path): path for path in paths if path.exists()}


def take(root: Path, version: str, found: Mapping[str, Path], names: Iterable[str]) -> tuple[Tree, list[Path]]:
    """Take those of the modules `names` that were found below `root`, and all found that they depend on.

    Returns:
        Where they lie in a guest, unpacked, and the files that they were read from.
    """
    tree: Tree = {}
    read: list[Path] = []
    waiting = [_plain(name) for name in names]
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done or name not in found:
            continue
        done.add(name)
        path = found[name]
        data = _read(path)
        relative = path.relative_to(root).with_suffix("") if path.suffix in _COMPRESSED else path.relative_to(root)
        tree[f"usr/lib/modules/{version}/{relative}"] = file(data)
        read.append(path)
        waiting += _dependencies(data)
    return tree, read


def index(tree: Path, version: str, depmod: list[str]) -> Tree:
    """Run depmod over a tree on disk and return the files that modprobe reads.

    Args:
        tree: A directory with `lib/modules/VERSION` in it.
        version: The kernel's version.
        depmod: How to start depmod.
    """
    run([*depmod, "-b", str(tree), version])
    root = tree / "lib" / "modules" / version
    # modprobe of kmod reads the .bin files, that of busybox the text ones. depmod also writes modules.devname and
    # modules.symbols; nothing in the guest reads the latter's text form.
    wanted = [path for path in sorted(root.glob("modules.*")) if path.name not in (*_INDEX_FILES, "modules.symbols")]
    return {f"usr/lib/modules/{version}/{path.name}": file(path.read_bytes()) for path in wanted}


def _modules_root(kernel: Path, version: str) -> Path:
    for top in ("usr/lib/modules", "lib/modules"):
        if (kernel / top / version).is_dir():
            return kernel / top / version
    raise BuildError(f"the kernel's packages hold no modules for {version}")


def _read(path: Path) -> bytes:
    if path.suffix in _COMPRESSED:
        return run([*_COMPRESSED[path.suffix], str(path)])
    return path.read_bytes()


def _dependencies(module: bytes) -> list[str]:
    # Every module carries "depends=a,b" and perhaps "softdep=pre: c" in its section .modinfo, each ended by a zero.
    needs: list[str] = []
    for value in re.findall(rb"\0depends=([^\0]*)\0", module):
        needs += [_plain(name) for name in value.decode().split(",") if name]
    for value in re.findall(rb"\0softdep=([^\0]*)\0", module):
        needs += [_plain(word) for word in value.decode().split() if not word.endswith(":")]
    return needs


def _name(path: Path) -> str:
    return _plain(path.name.split(".ko")[0])


def _plain(name: str) -> str:
    return name.replace("-", "_")
