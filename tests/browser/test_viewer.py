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

from tests.qemu.fleets import Desk, open_desk, wait_for

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


def test_a_key_typed_into_the_viewer_arrives_in_the_guest(desk: Desk, display: dict[str, str], workdir: Path) -> None:
    os.environ["DISPLAY"] = display["DISPLAY"]
    viewing = desk.begin("view", "spicy")
    try:

        def find_window() -> str:
            done = subprocess.run(
                ["xdotool", "search", "--name", "spicy"], env=display, capture_output=True, text=True, check=False
            )
            return done.stdout.split("\n")[0]

        def find_fault() -> str:
            return "" if viewing.poll() is None else f"it ended: {viewing.communicate()}"

        window = wait_for(lambda: find_window() or find_fault())
        assert window.isdecimal(), window
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            # Nothing tells when the viewer has drawn its window and takes keys, so they are typed until they arrive.
            subprocess.run(["xdotool", "windowfocus", window], env=display, check=False, capture_output=True)
            for text in ("root", "tty >/tmp/seen"):
                subprocess.run(["xdotool", "type", "--delay", "60", text], env=display, check=True)
                subprocess.run(["xdotool", "key", "Return"], env=display, check=True)
                time.sleep(1.5)  # a login shell takes that long to begin, and getty drops what comes before it
            done = desk.run("exec", "spicy", "-n", "--", "cat", "/tmp/seen")
            if "/dev/tty1" in done.stdout:
                break
        assert "/dev/tty1" in done.stdout
    finally:
        del os.environ["DISPLAY"]
        viewing.terminate()
        _, stderr = viewing.communicate(timeout=20)
    assert "Traceback" not in stderr
