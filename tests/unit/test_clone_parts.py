"""Names of clones and what is kept of them on disk; the clones themselves are in tests/boot/test_clones.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from control.errors import StateError
from control.paths import find_instance_files, open_instance_files
from control.spec.fleet import load_fleet
from control.spec.locate import Location
from control.vm import cloning, templates
from control.vm.clones import Parentage, _build_hostname, list_clones, load_fleet_with_clones, write_parentage


@pytest.fixture
def location(tmp_path: Path) -> Location:
    (tmp_path / "unhinged.toml").write_text('[vm.web]\nforward = "8080:80"\n[vm.web.ssh]\nport = 2222\n')
    return Location(tmp_path / "unhinged.toml", tmp_path, tmp_path / ".unhinged", tmp_path)


@pytest.mark.parametrize(
    ("name", "hostname"), [("web-1", "web-1"), ("my_vm.1", "my-vm-1"), ("a_", "a"), ("x" * 63, "x" * 63), ("0-", "0")]
)
def test_a_hostname_is_what_comes_nearest(name: str, hostname: str) -> None:
    assert _build_hostname(name) == hostname


def test_names_are_numbered_past_what_there_is(location: Location) -> None:
    fleet = load_fleet(location)
    open_instance_files(location.runtime, "web-2")
    assert cloning.reserve_names(fleet, "web", 2, exact=False) == ["web-1", "web-3"]
    assert cloning.reserve_names(fleet, "other", 1, exact=True) == ["other"]
    for taken in ("other", "web", "web-2"):
        with pytest.raises(StateError, match="already"):
            cloning.reserve_names(fleet, taken, 1, exact=True)


def test_a_name_that_a_killed_process_took_is_free_again_after_a_while(location: Location) -> None:
    fleet = load_fleet(location)
    assert cloning.reserve_names(fleet, "web", 1, exact=False) == ["web-1"]
    note = find_instance_files(location.runtime, "web-1").clone_note
    long_ago = time.time() - cloning.ABANDONED_S - 1
    os.utime(note, (long_ago, long_ago))
    assert cloning.reserve_names(fleet, "web", 1, exact=False) == ["web-1"]
    write_parentage(find_instance_files(location.runtime, "web-1"), Parentage("web", "web", "7.2"))
    os.utime(note, (long_ago, long_ago))
    assert cloning.reserve_names(fleet, "web", 1, exact=False) == ["web-2"]


def test_a_clone_is_declared_as_its_parent_at_ports_of_its_own(location: Location) -> None:
    for name, parentage in (("web-1", Parentage("t", "web", "7.2")), ("gone-1", Parentage("t", "gone", "7.2"))):
        write_parentage(open_instance_files(location.runtime, name), parentage)
    files = open_instance_files(location.runtime, "half")
    files.clone_note.write_text("{")
    assert list_clones(location.runtime, "t") == ["gone-1", "web-1"] and list_clones(location.runtime, "x") == []
    fleet = load_fleet_with_clones(location)
    assert sorted(fleet.vms) == ["web", "web-1"]
    clone = fleet.vms["web-1"]
    assert [forward.host for forward in clone.host_forwards] == ["auto", "auto"]
    assert [forward.host for forward in fleet.vms["web"].host_forwards] == [2222, 8080]


def test_what_a_killed_maker_left_is_removed_and_what_another_makes_is_not(location: Location) -> None:
    home = location.runtime / "templates"
    left = home / ".web.1.draft"
    left.mkdir(parents=True)
    (left / "stream").write_bytes(b"x")
    (left / ".lock").touch()
    with templates.open_draft(location.runtime, "web") as mine:
        assert not left.exists() and mine.is_dir()
        with templates.open_draft(location.runtime, "other"):
            assert mine.is_dir()
    assert [path.name for path in home.iterdir()] == []


def test_a_template_that_is_damaged_is_named_and_can_be_removed(location: Location) -> None:
    note = templates.find_directory(location.runtime, "web") / "template.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"name": "web"}')
    with pytest.raises(StateError, match="damaged"):
        templates.read_template(location.runtime, "web")
    assert templates.list_templates(location.runtime) == []
    cloning.delete_template(location.runtime, "web")
    with pytest.raises(StateError, match="no template web"):
        cloning.delete_template(location.runtime, "web")
