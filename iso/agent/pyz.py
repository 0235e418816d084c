"""Packs the agent into one file that any Python from 3.9 on runs (room: image; called by `iso/agent/build.py`)."""

from __future__ import annotations

import io
import stat
import zipfile

from iso.agent import content

# The oldest time a ZIP archive can hold. Source: APPNOTE.TXT, 4.4.6.
_TIME = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def make_pyz(version: str) -> bytes:
    """Return the zipapp `unhinged-agent.pyz`; the same sources always give the same bytes.

    It is not compressed: a guest's Python may lack zlib, and unpacking would cost time at each start. It holds sources,
    since bytecode would tie it to one version of Python.
    """
    tree = content.read_agent(version)
    tree["__main__.py"] = content.own("start.py")
    target = io.BytesIO(b"#!/usr/bin/python3 -ISB\n")
    target.seek(0, io.SEEK_END)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        for path, entry in sorted(tree.items()):
            member = zipfile.ZipInfo(path, _TIME)
            member.create_system = _UNIX
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(member, entry.data)
    return target.getvalue()
