"""What is handed to native viewers: files and commands that lead to a VM's own private socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.fleets import Desk, open_desk


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with open_desk(Path(tmp_path_factory.mktemp("view"))) as desk:
        desk.declare("spicy", more='display = "spice"\n')
        text = (desk.directory / "unhinged.toml").read_text()
        (desk.directory / "plain.img").write_bytes((desk.directory / "spicy.img").read_bytes())
        desk.write(text + text.replace("spicy", "plain").replace('display = "spice"\n', ""))
        desk.start("spicy", "plain")
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


def test_a_spice_viewer_is_given_a_file(desk: Desk) -> None:
    found = desk.ask("view", "view", "spicy", "--no-run")
    socket = desk.files("spicy").spice_socket
    assert (found["type"], found["socket"]) == ("spice", str(socket))
    text = Path(found["file"]).read_text()
    assert text.startswith("[virt-viewer]\ntype=spice\n") and f"unix-path={socket}\n" in text
    assert Path(found["file"]).stat().st_mode & 0o777 == 0o600
    assert socket.stat().st_mode & 0o077 == 0 or desk.files("spicy").directory.stat().st_mode & 0o077 == 0


def test_a_vnc_viewer_is_given_a_file(desk: Desk) -> None:
    for name in ("plain", "spicy"):
        text = desk.run("web", "--vnc-file", name).stdout
        assert f"ServerName={desk.files(name).vnc_socket}\n" in text
    assert desk.ask("view", "view", "plain", "--no-run")["type"] == "vnc"


def test_a_tunnel_is_printed(desk: Desk) -> None:
    found = desk.ask("tunnel", "tunnel", "plain", "me@host", "--port", "5907")
    assert found["command"][-2:] == [f"127.0.0.1:5907:{desk.files('plain').vnc_socket}", "me@host"]
    assert found["link"] == "vnc://127.0.0.1:5907"


def test_a_viewer_that_is_missing_is_named_with_its_package(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    done = desk.run("view", "spicy")
    assert done.exit_code == 1 and "apt-get install virt-viewer" in done.stderr
    done = desk.run("view", "plain")
    assert done.exit_code == 1 and "apt-get install tigervnc-viewer" in done.stderr


def test_a_desktop_that_is_missing_is_told(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remote-viewer").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "remote-viewer").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    done = desk.run("view", "spicy")
    assert done.exit_code == 1 and "no display" in done.stderr and "unhinged tunnel" in done.stderr
    monkeypatch.setenv("DISPLAY", ":99")
    assert desk.run("view", "spicy").exit_code == 9, "its own exit code"
