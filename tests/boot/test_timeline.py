"""`unhinged timeline` of real boots, a template and a clone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.fleets import Desk, open_desk

FILE = '[vm.one]\nimage = "builtin"\nmemory = "256M"\ncpus = 1\naccel = "tcg"\nrestart = "no"\n'


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A desk whose VM has booted twice, was made a template of, and has a clone."""
    with open_desk(Path(tmp_path_factory.mktemp("timeline"))) as desk:
        desk.write(FILE)
        for _ in range(2):
            done = desk.run("start", "--wait", "agent", "one")
            assert done.exit_code == 0, done.stderr
            until = ("--until", "boot finished", "--timeout", "120")
            assert desk.run("console", "one", "--read-only", *until).exit_code == 0
            if not desk.files("one").timeline_before.exists():
                assert desk.run("stop", "one").exit_code == 0
        assert desk.run("template", "one").exit_code == 0
        assert desk.run("fork", "one").exit_code == 0
        yield desk
        desk.run("discard", "one-1")
        desk.run("kill", "one")


def test_a_boot_is_all_there(desk: Desk) -> None:
    document = desk.ask("timeline", "timeline", "one")
    by_lane = {
        lane: [e for e in document["entries"] if e["lane"] == lane] for lane in ("phase", "agent", "qmp", "console")
    }
    assert [entry["text"] for entry in by_lane["phase"]] == ["firmware", "kernel", "init", "agent"]
    told = [entry["text"] for entry in by_lane["agent"]]
    assert told[0] == "booting" and "agent ready" in told and told[-1] == "boot finished" and "alive" not in told
    assert any(entry["text"].startswith("RESUME") for entry in by_lane["qmp"])
    console = desk.files("one").serial_log.read_bytes().decode("utf-8", "replace")
    for entry in by_lane["console"]:
        assert entry["text"][:80] in console
    assert sum("Linux version" in entry["text"] for entry in by_lane["console"]) == 1
    times = [entry["time"] for entry in document["entries"]]
    assert times == sorted(times) and document["what"] == "a boot"
    text = desk.run("timeline", "one").stdout
    for words in ("PHASE", "kernel", "QEMU sets itself up", "SILENT", "boot finished"):
        assert words in text, text


def test_the_steps_of_a_template_and_of_a_clone(desk: Desk) -> None:
    made = desk.run("timeline", "one", "--all").stdout
    for step in ("memory and devices are written down (", "its disks are copied (", "it stands still for a template ("):
        assert step in made
    clone = desk.ask("timeline", "timeline", "one-1")
    steps = [entry["text"] for entry in clone["entries"] if entry["lane"] == "step"]
    assert steps == [
        "QEMU sets itself up", "the state of its devices is loaded", "the agent wakes",
        "it becomes a machine of its own", "a machine of its own",
    ]  # fmt: skip
    assert clone["what"] == "a clone"


def test_two_are_compared(desk: Desk) -> None:
    text = desk.run("timeline", "one", "--compare").stdout
    assert "PHASE OR STEP" in text and "all of it" in text and text.count("one: a boot under tcg") == 2
    document = desk.ask("timeline", "timeline", "one", "--compare", "one-1")
    assert document["comparison"]["first"]["name"] == "one-1"
    saved = desk.directory / "saved.json"
    assert desk.run("timeline", "one", "--before", "--format", "json", "-o", str(saved)).exit_code == 0
    again = desk.ask("timeline", "timeline", "one", "--compare", str(saved))
    assert again["comparison"]["first"]["entries"] == json.loads(saved.read_text())["entries"]


def test_pictures(desk: Desk) -> None:
    for form in ("svg", "html", "chrome"):
        path = desk.directory / f"one.{form}"
        assert desk.run("timeline", "one", "--compare", "one-1", "--format", form, "-o", str(path)).exit_code == 0
    picture = ET.fromstring((desk.directory / "one.svg").read_text())
    words = [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert any("the agent wakes" in each for each in words) and any(each.startswith("kernel ") for each in words)
    page = (desk.directory / "one.html").read_text()
    assert "default-src 'none'" in page and "<script" not in page and page.count("<details>") == 2
    assert json.loads((desk.directory / "one.chrome").read_text())["traceEvents"]


def test_what_cannot_be_shown(desk: Desk) -> None:
    done = desk.run("timeline", "one", "--compare", "nobody")
    assert done.exit_code == 2 and "nobody is no VM, and cannot be read" in done.stderr
    (desk.directory / "no.json").write_text("{")
    assert "is not JSON" in desk.run("timeline", "one", "--compare", "./no.json").stderr
    done = desk.run("timeline", "one-1", "--before")
    assert "there is no timeline of one-1 of a run before" in done.stderr
    assert "cannot be written" in desk.run("timeline", "one", "-o", "/proc/no/file").stderr
