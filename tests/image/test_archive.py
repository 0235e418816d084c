"""The cpio archive the kernel unpacks: read back by a reader written for this test from the format's description."""

from __future__ import annotations

import stat

import pytest

from iso import newc
from iso.newc import Entry, Tree


def read_archive(archive: bytes) -> list[tuple[str, Entry, dict[str, int]]]:
    """Read a newc archive entry by entry, as Linux's early-userspace/buffer-format.rst describes it."""
    names = ["ino", "mode", "uid", "gid", "nlink", "mtime", "filesize", "maj", "min"]
    names += ["rmaj", "rmin", "namesize", "chksum"]
    entries: list[tuple[str, Entry, dict[str, int]]] = []
    at = 0
    while True:
        assert at % 4 == 0
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        fields = dict(zip(names, numbers, strict=True))
        name_end = at + 110 + fields["namesize"]
        assert archive[name_end - 1] == 0
        name = archive[at + 110 : name_end - 1].decode()
        begin = (name_end + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        data = archive[begin : begin + fields["filesize"]]
        entries.append((name, Entry(fields["mode"], data, (fields["rmaj"], fields["rmin"])), fields))
        at = (begin + fields["filesize"] + 3) // 4 * 4


TREE: Tree = {
    "init": newc.file(b"#!/bin/sh\n", 0o755),
    "etc/empty": newc.file(b""),
    "usr/bin/sh": newc.symlink("busybox"),
    "dev/console": newc.character_device(5, 1),
    "tmp": newc.directory(0o1777),
    "etc/n\u00e4me": newc.file(bytes(range(256))),
}


def test_every_entry_comes_back_as_it_went_in() -> None:
    back = {name: entry for name, entry, _ in read_archive(newc.pack(TREE))}
    for path, entry in TREE.items():
        assert back[path] == entry


def test_directories_come_before_what_is_in_them() -> None:
    names = [name for name, _, _ in read_archive(newc.pack(TREE))]
    for name in names:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)


def test_nothing_of_the_host_is_in_it() -> None:
    for _, _, fields in read_archive(newc.pack(TREE)):
        assert fields["uid"] == fields["gid"] == fields["mtime"] == fields["maj"] == fields["min"] == 0


def test_the_order_of_the_tree_does_not_matter() -> None:
    assert newc.pack(TREE) == newc.pack(dict(reversed(TREE.items())))


def test_inode_numbers_differ_so_that_no_two_files_are_taken_for_one() -> None:
    numbers = [fields["ino"] for _, _, fields in read_archive(newc.pack(TREE))]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("length", range(9))
def test_any_length_of_name_and_data_is_padded(length: int) -> None:
    tree: Tree = {"n" * (length + 1): newc.file(b"d" * length), "z": newc.file(b"last")}
    back = {name: entry.data for name, entry, _ in read_archive(newc.pack(tree))}
    assert back == {"n" * (length + 1): b"d" * length, "z": b"last"}


def test_parents_that_are_named_keep_their_permissions() -> None:
    tree = newc.with_parents({"a/b/c": newc.file(b""), "a": newc.directory(0o700)})
    assert stat.S_IMODE(tree["a"].mode) == 0o700
    assert stat.S_ISDIR(tree["a/b"].mode)
