"""Carrying changes of a copy over to the directory: what must not be followed, and what must not be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.errors import HostError
from control.share.changes import apply, compare, list_tree


def carry_over(here: Path, copy: Path, before: object = None) -> list[str]:
    known = list_tree(here) if before is None else before
    assert isinstance(known, dict)
    return apply(compare(known, list_tree(copy)), copy, here, known)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "here/folder").mkdir(parents=True)
    (tmp_path / "here/folder/file").write_text("file")
    (tmp_path / "here/name").write_text("name")
    return tmp_path / "here"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


def test_everything_goes(here: Path, copy: Path) -> None:
    assert carry_over(here, copy) == []
    assert list_tree(here) == {}


def test_kinds_that_change(here: Path, copy: Path) -> None:
    (copy / "folder").write_text("a file now")
    (copy / "name").mkdir()
    (copy / "name/in").write_text("in")
    assert carry_over(here, copy) == []
    assert list_tree(here) == list_tree(copy)
    (copy / "folder").unlink()
    (copy / "folder").symlink_to("name")
    assert carry_over(here, copy) == []
    assert (here / "folder").readlink() == Path("name")


def test_a_link_that_came_here_meanwhile_is_not_followed(here: Path, copy: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = list_tree(here)
    (copy / "folder").mkdir()
    (copy / "folder/file").write_text("changed")
    (copy / "folder/new").write_text("new")
    (copy / "name").write_text("name")
    (here / "folder/file").unlink()
    (here / "folder").rmdir()
    (here / "folder").symlink_to(elsewhere)
    assert carry_over(here, copy, before) == ["folder/file", "folder/new"]
    assert list(elsewhere.iterdir()) == [] and (here / "folder").is_symlink()


def test_what_is_new_in_a_folder_that_goes_stays(here: Path, copy: Path) -> None:
    before = list_tree(here)
    (copy / "name").write_text("name")
    (here / "folder/mine").write_text("mine")
    assert carry_over(here, copy, before) == []
    assert (here / "folder/mine").read_text() == "mine" and not (here / "folder/file").exists()


def test_what_is_there_on_both_sides_is_not_overwritten(here: Path, copy: Path) -> None:
    before = list_tree(here)
    (copy / "name").write_text("name")
    (copy / "folder").mkdir()
    (copy / "folder/file").write_text("file")
    (copy / "new").write_text("theirs")
    (here / "new").write_text("mine")
    assert carry_over(here, copy, before) == ["new"]
    assert (here / "new").read_text() == "mine"


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="missing cannot be read: No such file"):
        list_tree(tmp_path / "missing")
