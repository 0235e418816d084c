"""The files of the packaged agent, as data (room: image; called by the other modules here).

One tree for every package, laid out as in the guest, so that the .deb and the .rpm cannot differ.
"""

from __future__ import annotations

import ast
import gzip
import os
import re
from pathlib import Path

from iso.failure import BuildError
from iso.newc import Entry, Tree, file

REPOSITORY = Path(__file__).resolve().parents[2]
AGENT = REPOSITORY / "guest" / "agent"
PACKAGING = REPOSITORY / "guest" / "packaging"
LIBRARY = "usr/lib/unhinged-agent"
NAME = "unhinged-agent"

# One moment for every date, so that two builds are alike: 2024-01-01T00:00:00Z, as in the ISO.
EPOCH = 1704067200

_VERSION = re.compile(r'^VERSION = "([^"]+)"$', re.MULTILINE)

# What a version may be for both package tools. Source: deb-version(7); RPM, "Spec file format", Version.
_GOOD_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]*")


def read_licence() -> str:
    """Return the licence of all this: the checkout's file, or that of the installed package."""
    path = REPOSITORY / "LICENSE"
    if path.exists():
        return path.read_text(encoding="utf-8")
    from importlib.metadata import distribution

    return distribution("unhinged-vm").read_text("licenses/LICENSE") or ""


def read_version(agent: Path = AGENT) -> str:
    """Return the agent's own version."""
    match = _VERSION.search((agent / "__init__.py").read_text(encoding="utf-8"))
    if match is None:
        raise BuildError(f'{agent / "__init__.py"} holds no line VERSION = "..."')
    return match.group(1)


def read_agent(version: str) -> Tree:
    """Return the agent's package below `agent/`, as sources: which Python will read it is not known here.

    Args:
        version: What the agent shall say it is; an upgrade is tested with two of the same sources.

    Raises:
        BuildError: `version` is none.
    """
    if not _GOOD_VERSION.fullmatch(version):
        raise BuildError(f"{version!r} cannot be the version of a package", hint="begin with a digit, as in 0.2.0")
    tree = {
        f"agent/{path.relative_to(AGENT).as_posix()}": file(path.read_bytes()) for path in sorted(AGENT.rglob("*.py"))
    }
    own = tree["agent/__init__.py"].data.decode()
    tree["agent/__init__.py"] = file(_VERSION.sub(f'VERSION = "{version}"', own).encode())
    return tree


def read_package(version: str) -> Tree:
    """Return every file of the installed package, but for what only one kind of package has."""
    tree = {f"{LIBRARY}/{path}": entry for path, entry in read_agent(version).items()}
    tree[f"{LIBRARY}/start.py"] = own("start.py")
    tree["usr/sbin/unhinged-agent"] = own("unhinged-agent", 0o755)
    tree["usr/lib/systemd/system/unhinged-agent.service"] = own("unhinged-agent.service")
    tree["usr/lib/udev/rules.d/60-unhinged-agent.rules"] = own("60-unhinged-agent.rules")
    tree["etc/unhinged-agent/config.json"] = own("config.json")
    tree["usr/share/unhinged-agent/strict.conf"] = own("strict.conf")
    tree["usr/share/unhinged-agent/strict.json"] = own("strict.json")
    manual = (PACKAGING / "unhinged-agent.8").read_text(encoding="utf-8").replace("@KEYS@", _describe_keys())
    tree["usr/share/man/man8/unhinged-agent.8.gz"] = file(compress(manual.encode()))
    return tree


def own(name: str, permissions: int = 0o644) -> Entry:
    """Return a file of `guest/packaging/`."""
    return file((PACKAGING / name).read_bytes(), permissions)


def read_script(name: str) -> str:
    """Return a text of `guest/packaging/`."""
    return (PACKAGING / name).read_text(encoding="utf-8")


def compress(data: bytes) -> bytes:
    """gzip without a name and a time in it."""
    return gzip.compress(data, 9, mtime=0)


def write(tree: Tree, root: Path) -> None:
    """Write the files of `tree` below `root`, with fixed permissions and times whatever this process's umask is."""
    for path, entry in sorted(tree.items()):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.data)
        target.chmod(entry.mode & 0o7777)
        os.utime(target, (EPOCH, EPOCH))
    for directory in sorted((path for path in (root, *root.rglob("*")) if path.is_dir()), reverse=True):
        directory.chmod(0o755)
        os.utime(directory, (EPOCH, EPOCH))


def _describe_keys() -> str:
    """The keys of the configuration as paragraphs of the manual; their comments in `config.py` describe them."""
    source = (AGENT / "config.py").read_text(encoding="utf-8")
    parts: list[str] = []
    comment: list[str] = []
    described = False
    for line in _lines_of_keys(source):
        if line.startswith("#"):
            if described:
                comment, described = [], False
            comment.append(line.removeprefix("#").strip())
        elif found := re.match(r'"([a-z_]+)":', line):
            name = found.group(1).replace("_", "\\_")
            text = " ".join(comment).replace("\\", "\\e").replace("-", "\\-")
            parts.append(f".TP\n.B {name}\n{text[:1].upper()}{text[1:]}.")
            described = True  # the next key, if no comment of its own comes before it, shares this one
    return "\n".join(parts)


def _lines_of_keys(source: str) -> list[str]:
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.unparse(node).startswith(("KEYS =", "KEYS:")):
            return [line.strip() for line in source.splitlines()[node.lineno : node.end_lineno]]
    raise BuildError(f"{AGENT / 'config.py'} holds no table KEYS")
