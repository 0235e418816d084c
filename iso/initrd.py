"""Packs the guest's file system into what the kernel unpacks (room: image; called by `iso/build.py`)."""

from __future__ import annotations

from iso.newc import Tree, pack
from iso.programs import run


def pack_initrd(tree: Tree) -> bytes:
    """Return the initrd of a tree: a cpio archive compressed with lz4.

    lz4 in its old frame format is the only one of lz4's the kernel reads; it is unpacked fastest. The figures are in
    docs/image.md.

    Source: Linux, lib/decompress_unlz4.c.
    """
    return run(["lz4", "-l", "-9", "-c", "-q"], stdin=pack(tree))
