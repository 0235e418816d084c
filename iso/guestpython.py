"""Turns Python sources into the guest's bytecode with the guest's own interpreter (room: image).

The host's Python may be another version, whose bytecode the guest could not read. The guest's runs here because host
and guest have the same processor.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from iso.newc import Entry, Tree, file
from iso.programs import run

# Parts of the standard library that a guest without display, compiler and other people's test suites has no use for.
LEFT_OUT = (
    "*/test/*", "*/tests/*", "*/idlelib/*", "*/tkinter/*", "*/turtle*", "*/lib2to3/*", "*/distutils/*",
    "*/ensurepip/*", "*/pydoc_data/*", "*/config-3*", "*/EXTERNALLY-MANAGED", "*/sitecustomize.py", "*/LICENSE.txt",
    "*/_test*.so", "*/_ctypes_test*", "*/_xx*", "*/xxlimited*", "*/_codecs_*", "*/_multibytecodec*", "*/ossaudiodev*",
    "*/nis.*", "*/_sqlite3*", "*/sqlite3/*", "*/_dbm*", "*/_curses*", "*/curses/*", "*/_aix_support.py",
    "*/_osx_support.py", "*/antigravity.py", "*/_bootsubprocess.py", "*/this.py", "*/__phello__/*", "*/msilib/*",
)  # fmt: skip

_COMPILE = """
import importlib.util, marshal, sys
from pathlib import Path
base, prefix, level = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for source in sorted(base.rglob("*.py")):
    name = prefix + source.relative_to(base).as_posix()
    code = compile(source.read_bytes(), name, "exec", dont_inherit=True, optimize=level)
    # PEP 552: flags 1 = hash-based, not checked against the source, which is not shipped.
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    source.with_suffix(".pyc").write_bytes(header + marshal.dumps(code))
"""


def is_wanted(path: str) -> bool:
    """Tell whether a file of the standard library goes into the guest."""
    return not any(fnmatch.fnmatchcase(path, pattern) for pattern in LEFT_OUT)


def compile_tree(
    interpreter: list[str], home: Path, sources: Mapping[str, Entry], base: str, scratch: Path, *, level: int
) -> Tree:
    """Replace every `.py` below `base` by its bytecode beside it (`name.pyc`, which Python imports without a source).

    Args:
        interpreter: How to start the guest's Python on the host.
        home: The directory whose `lib` holds the guest's library, so that the host's is not used.
        sources: Files of the guest; those not ending in `.py` are passed on as they are.
        base: The directory in the guest that all of them lie in, without slashes around it.
        scratch: An empty directory.
        level: Python's optimisation level; 2 leaves out assertions and docstrings.
    """
    tree: Tree = {}
    for path, entry in sources.items():
        if path.endswith(".py"):
            target = scratch / path.removeprefix(f"{base}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.data)
        else:
            tree[path] = entry
    # A fixed hash seed, so that the order of sets of constants is the same in every build.
    run(
        [*interpreter, "-S", "-B", "-c", _COMPILE, str(scratch), f"/{base}/", str(level)],
        environment={"PYTHONHASHSEED": "0", "PYTHONHOME": str(home)},
    )
    for compiled in sorted(scratch.rglob("*.pyc")):
        tree[f"{base}/{compiled.relative_to(scratch).as_posix()}"] = file(compiled.read_bytes())
    return tree
