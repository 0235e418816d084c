"""Makes the agent's Debian package (room: image; called by `iso/agent/build.py`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from iso.agent import content
from iso.newc import Tree, file
from iso.programs import run

_SCRIPTS = ("postinst", "prerm", "postrm")


def make_deb(version: str, scratch: Path) -> bytes:
    """Return `unhinged-agent_VERSION_all.deb`.

    It is for every Debian that has Python 3.9, so it is compressed with xz, which all of them read, and by one thread,
    whose output does not depend on the machine. Owners are root's without root.

    Source: deb(5); dpkg-deb(1), --root-owner-group, --threads-max, SOURCE_DATE_EPOCH.
    """
    root, target = scratch / "deb", scratch / "agent.deb"
    tree = content.read_package(version)
    documents = f"usr/share/doc/{content.NAME}"
    tree[f"{documents}/copyright"] = file(_copyright().encode())
    tree[f"{documents}/changelog.gz"] = file(content.compress(_changelog(version).encode()))
    content.write(tree | _control(tree, version), root)
    run(
        ["dpkg-deb", "--root-owner-group", "-Zxz", "-z9", "--threads-max=1", "--build", str(root), str(target)],
        environment={"SOURCE_DATE_EPOCH": str(content.EPOCH)},
    )
    return target.read_bytes()


def _control(tree: Tree, version: str) -> Tree:
    size_kib = sum(-(-len(entry.data) // 1024) for entry in tree.values())
    control = content.read_script("deb/control").replace("@VERSION@", version)
    # Maintainer scripts stand alone: the package's own files are not there yet, or not any more, when they run.
    lifecycle = content.read_script("lifecycle.sh")
    sums = "".join(
        f"{hashlib.md5(entry.data, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, entry in sorted(tree.items())
        if not path.startswith("etc/")
    )
    return {
        "DEBIAN/control": file(control.replace("@INSTALLED_KIB@", str(size_kib)).encode()),
        "DEBIAN/conffiles": content.own("deb/conffiles"),
        "DEBIAN/md5sums": file(sums.encode()),
    } | {
        f"DEBIAN/{name}": file(
            f"#!/bin/sh\nset -e\n\n{lifecycle}\n{content.read_script(f'deb/{name}')}".encode(), 0o755
        )
        for name in _SCRIPTS
    }


def _copyright() -> str:
    licence = content.read_licence()
    body = licence[licence.index("Permission is hereby") :].strip()
    return content.read_script("deb/copyright") + "".join(f" {line or '.'}\n" for line in body.splitlines())


def _changelog(version: str) -> str:
    return f"""{content.NAME} ({version}) unstable; urgency=medium

  * Made from the sources of unhinged-vm, whose CHANGELOG.md says what is new.

 -- The unhinged-vm authors <unhinged-vm@localhost>  Mon, 01 Jan 2024 00:00:00 +0000
"""
