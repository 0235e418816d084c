"""remote-viewer on a display of its own: it shows a guest, and what is typed into it arrives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.fleets import Desk, finish, open_desk, wait_for

pytestmark = pytest.mark.slow

SPICY = """
[vm.spicy]
memory = "256M"
accel = "tcg"
display = "spice"
"""


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        desk.write(SPICY)
        done = desk.run("start", "spicy", "--wait", "agent")
        assert done.exit_code == 0, done.stderr
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


@contextlib.contextmanager
def end_afterwards(words: list[str], **how: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, **how)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def display() -> Iterator[dict[str, str]]:
    """The environment of an X display that the server chooses itself."""
    if shutil.which("Xvfb") is None or shutil.which("remote-viewer") is None:
        pytest.fail("Xvfb or remote-viewer is not installed: make deps-install-browser", pytrace=False)
    reading, writing = os.pipe()
    words = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x1024x24", "-nolisten", "tcp", "-noreset"]
    with end_afterwards(words, pass_fds=(writing,), stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with os.fdopen(reading) as said:  # to its end: what cannot be written would end the server
            number = said.read().strip()
        assert server.poll() is None, "Xvfb has ended"
        yield {**os.environ, "DISPLAY": f":{number}"}
        assert server.poll() is None, "Xvfb has ended"


@pytest.fixture
def viewer(desk: Desk, display: dict[str, str], request: pytest.FixtureRequest) -> Iterator[str]:
    """A viewer that `unhinged view` has run, of the kind asked for; the number of its window."""
    viewing = desk.begin("view", "spicy", "--kind", request.param, environment=display)
    title = {"spice": "spicy", "vnc": "TigerVNC"}[request.param]
    try:

        def find_window() -> str:
            done = subprocess.run(
                ["xdotool", "search", "--name", title], env=display, capture_output=True, text=True, check=False
            )
            return done.stdout.split("\n")[0]

        def find_fault() -> str:
            return "" if viewing.poll() is None else f"it ended: {viewing.communicate()}"

        window = wait_for(lambda: find_window() or find_fault())
        assert window.isdecimal(), window
        yield window
    finally:
        viewing.terminate()
        _, stderr = viewing.communicate(timeout=20)
        print(stderr)  # shown when the test fails
    assert "Traceback" not in stderr


def focus(window: str, display: dict[str, str]) -> None:
    subprocess.run(["xdotool", "windowfocus", window], env=display, check=False, capture_output=True)


@pytest.mark.parametrize("viewer", ["spice", "vnc"], indirect=True)
def test_a_key_typed_into_the_viewer_arrives_in_the_guest(desk: Desk, display: dict[str, str], viewer: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        # Nothing tells when the viewer has drawn its window and takes keys, so they are typed until they arrive.
        focus(viewer, display)
        for text in ("root", "tty >/tmp/seen"):
            subprocess.run(["xdotool", "type", "--delay", "60", text], env=display, check=True)
            subprocess.run(["xdotool", "key", "Return"], env=display, check=True)
            time.sleep(1.5)  # a login shell takes that long to begin, and getty drops what comes before it
        done = desk.run("exec", "spicy", "-n", "--", "cat", "/tmp/seen")
        if "/dev/tty1" in done.stdout:
            break
    assert "/dev/tty1" in done.stdout


@pytest.mark.parametrize("viewer", ["spice"], indirect=True)
def test_the_clipboard_crosses_both_ways(desk: Desk, display: dict[str, str], viewer: str) -> None:
    """A program speaks for the guest's desktop (vdagent.py); a program here has the display's clipboard."""
    assert desk.run("put", "spicy", str(Path(__file__).with_name("vdagent.py")), "/root/").exit_code == 0

    giving = desk.begin("exec", "spicy", "--", "python3", "/root/vdagent.py", "give", "from the guest")
    deadline = time.monotonic() + 60
    said = b""
    while said != b"from the guest":
        assert time.monotonic() < deadline, said
        focus(viewer, display)
        said = subprocess.run(
            ["timeout", "5", "xclip", "-selection", "clipboard", "-o"], env=display, capture_output=True, check=False
        ).stdout
    assert finish(giving).exit_code == 0

    deadline = time.monotonic() + 60
    taking = desk.begin("exec", "spicy", "--", "python3", "/root/vdagent.py", "take")
    while taking.poll() is None:
        # Nothing tells when the viewer knows of the program in the guest, so the text is copied until it arrives.
        assert time.monotonic() < deadline
        focus(viewer, display)
        subprocess.run(["xclip", "-selection", "clipboard"], env=display, input=b"from outside", check=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            taking.wait(3)
    assert finish(taking).stdout == "from outside\n"
