"""What is on a screen and what is done at it, on a machine whose firmware writes in text mode: no guest is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.fleets import Desk, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(Path(tmp_path_factory.mktemp("screen"))) as desk:
        desk.declare("one", more='display = "std"\n')
        (desk.directory / "two.img").write_bytes((desk.directory / "one.img").read_bytes())
        text = (desk.directory / "unhinged.toml").read_text()
        desk.write(text + text.replace("one", "two").replace('"std"', '"none"'))
        done = desk.run("start", "one", "two")
        assert done.exit_code == 0, done.stderr
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


def test_text_mode_is_read_exactly(desk: Desk) -> None:
    found = desk.ask("wait-text", "wait-text", "one", r"Booting from Hard Disk\.\.\.", "--timeout", "30")
    assert found["found"] == "Booting from Hard Disk..."
    assert found["screen"].splitlines()[0].startswith("SeaBIOS (version ")


def test_what_does_not_come_is_told_with_what_there_was(desk: Desk) -> None:
    done = desk.run("wait-text", "one", "no such text", "--timeout", "0.5")
    assert done.exit_code == 124
    assert "no such text on the screen of one" in done.stderr and "| SeaBIOS" in done.stderr


def test_pictures_are_taken_again_and_again_until_a_text_comes(desk: Desk) -> None:
    path = desk.directory / "shot.png"
    found = desk.ask("screenshot", "screenshot", "one", str(path), "--every", "0.1", "--count", "3")
    assert found["pictures"] == 3
    names = [f"shot-{number:04}.png" for number in (1, 2, 3)]
    assert all((desk.directory / name).read_bytes().startswith(b"\x89PNG") for name in names)
    until = desk.ask("screenshot", "screenshot", "one", str(path), "--every", "0.2", "--until", "SeaBIOS")
    assert until["pictures"] >= 1
    assert desk.run("screenshot", "one", str(path), "--until", "x").exit_code == 2


def test_keys_and_text_are_taken(desk: Desk) -> None:
    assert desk.ask("type", "type", "one", "Hello, World!", "--enter")["characters"] == 14
    assert desk.ask("key", "key", "one", "ctrl-alt-f2", "esc")["keys"] == ["ctrl-alt-f2", "esc"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("key", "one", "ctrl-nothing"), "no key 'nothing'"),
        (("type", "one", "żółw"), "no key of a US keyboard"),
        (("mouse", "one", "5000", "1"), "720 times 400 pixels"),
        (("mouse", "one", "10", "20"), "no pointer that can be put"),
        (("wait-text", "one", "("), "no regular expression"),
        (("screenshot", "two", "x.png"), "screen"),
        (("view", "one"), "no screen over SPICE or VNC"),
        (("tunnel", "one", "-oProxyCommand=x"), ""),
        (("tunnel", "two", "me@host"), "no screen over"),
        (("web", "--vnc-file", "two"), "no screen over vnc"),
    ],
)
def test_what_cannot_be_is_told(desk: Desk, words: tuple[str, ...], wanted: str) -> None:
    done = desk.run(*words)
    assert done.exit_code in (1, 2) and wanted in done.stderr, done


def test_a_screen_that_is_a_picture_without_a_reader_of_pictures(desk: Desk, tmp_path: Path) -> None:
    """A machine without a card has neither text nor picture; tesseract is not looked for in an empty PATH."""
    done = desk.run("wait-text", "two", "x", "--timeout", "1")
    assert done.exit_code == 1 and "Traceback" not in done.stderr
