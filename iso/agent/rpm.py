"""Makes the agent's RPM package (room: image; called by `iso/agent/build.py`)."""

from __future__ import annotations

from pathlib import Path

from iso.agent import content
from iso.failure import BuildError
from iso.newc import Tree
from iso.programs import run

# What keeps this machine out of the package and its tools from changing our files.
# Source: rpm, macros.in; rpmbuild(8).
_MACROS = {
    "_buildhost": "localhost",
    "use_source_date_epoch_as_buildtime": "1",
    "clamp_mtime_to_source_date_epoch": "1",
    "_build_id_links": "none",
    "__os_install_post": "%{nil}",
    "__check_files": "%{nil}",
    "debug_package": "%{nil}",
    "_build_name_fmt": "agent.rpm",
    # gzip is what every rpm reads; zstd came with 4.14.
    "_binary_payload": "w9.gzdio",
}


def make_rpm(version: str, scratch: Path) -> bytes:
    """Return `unhinged-agent-VERSION-1.noarch.rpm`.

    Raises:
        BuildError: rpmbuild is missing or fails.
    """
    root, top = scratch / "rpm-files", scratch / "rpm"
    tree = content.read_package(version)
    content.write(tree, root)
    top.mkdir()
    spec = top / "unhinged-agent.spec"
    spec.write_text(_spec(tree, version, root), encoding="utf-8")
    macros = {**_MACROS, "_topdir": str(top), "_rpmdir": str(top), "_tmppath": str(top)}
    defines = [word for name, value in macros.items() for word in ("--define", f"{name} {value}")]
    run(
        ["rpmbuild", "-bb", "--quiet", "--target", "noarch-unknown-linux", *defines, str(spec)],
        environment={"SOURCE_DATE_EPOCH": str(content.EPOCH), "HOME": str(top)},
    )
    made = list(top.glob("*.rpm"))
    if len(made) != 1:
        raise BuildError(f"rpmbuild left {len(made)} packages instead of one")
    return made[0].read_bytes()


def _spec(tree: Tree, version: str, root: Path) -> str:
    if any(letter in str(root) for letter in " %\"'$`\\"):
        raise BuildError(f"rpmbuild cannot work below {root}", hint="choose a --cache without blanks and % in its path")
    kinds = {"etc/": "%config(noreplace) ", "usr/share/man/": "%doc "}
    files = [
        "%attr({:o}, root, root) {}/{}".format(
            entry.mode & 0o7777, next((kind for start, kind in kinds.items() if path.startswith(start)), ""), path
        )
        for path, entry in sorted(tree.items())
    ]
    directories = sorted({f"/{path.rpartition('/')[0]}" for path in tree if content.NAME in path.rpartition("/")[0]})
    files += [f"%dir %attr(755, root, root) {directory}" for directory in directories]
    # A % begins a macro, in scriptlets too.
    lifecycle = content.read_script("lifecycle.sh").replace("%", "%%")
    return (
        content.read_script("rpm/unhinged-agent.spec")
        .replace("@VERSION@", version)
        .replace("@ROOT@", str(root))
        .replace("@FILES@", "\n".join(files))
        .replace("@LIFECYCLE@", lifecycle)
    )
