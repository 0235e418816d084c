"""Messages piped into a launcher: delivered, answered, and the exit code tells how it went."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.boot.launching import BOOT_S, MAKE, Launch, ask_monitor, open_launch, wait_until_gone

DIAGNOSTICS_LINE = (
    b'{"timestamp":"2026-01-01T00:00:00Z","direction":"host-to-vm","type":"command",'
    b'"data":{"message":"diagnostics","details":{}}}'
)
"""The line of issue 2, as a user would pipe it in."""


def message(text: str, details: dict[str, Any] | None = None, *, type_: str = "command", **further: str) -> bytes:
    envelope = {
        "timestamp": "2026-01-01T00:00:00Z",
        "direction": "host-to-vm",
        "type": type_,
        "data": {"message": text, "details": details or {}},
        **further,
    }
    return json.dumps(envelope).encode() + b"\n"


def run_with_input(lines: bytes, workdir: Path, *, exit_code: int) -> Launch:
    (workdir / "input").write_bytes(lines)
    with (
        (workdir / "input").open("rb") as source,
        open_launch("enhanced_vm", "--timeout", "90", cwd=workdir, stdin=source) as launch,
    ):
        launch.finish(exit_code)
    wait_until_gone(workdir, 2.0)
    return launch


def test_the_diagnostics_line_is_answered_and_the_vm_shut_down(workdir: Path) -> None:
    launch = run_with_input(DIAGNOSTICS_LINE, workdir, exit_code=0)  # without a line end, as printf '%s' leaves it
    assert b"[vm status] diagnostics done" in launch.stdout
    assert b"1 of 1 messages answered" in launch.stderr
    sent, answer = (m for m in launch.messages() if m["data"]["message"].startswith("diagnostics"))
    assert (sent["direction"], answer["direction"]) == ("host-to-vm", "vm-to-host")
    assert sent["id"] == answer["in_reply_to"]
    assert answer["data"]["details"]["system"]["kernel"]
    assert b"Power down" in launch.files.serial_log.read_bytes(), "the guest was asked to go, not cut off"


def test_through_make_the_same(checkout_instance: str, workdir: Path) -> None:
    """The command of issue 2, word for word but for the instance's name."""
    argv = [*MAKE, "start-enhanced", "TIMEOUT=60", "ACCEL=tcg", f"NAME={checkout_instance}"]
    with open_launch("make", cwd=workdir, argv=argv, stdin=subprocess.PIPE) as launch:
        launch.write(DIAGNOSTICS_LINE + b"\n")
        launch.end_input()
        launch.finish(0)
    assert b"[vm status] diagnostics done" in launch.stdout


@pytest.mark.slow
def test_every_one_of_many_messages_is_answered(workdir: Path) -> None:
    lines = b"".join(message("diagnostics", id=f"d.{number}") for number in range(100))
    launch = run_with_input(lines + b"\n\n", workdir, exit_code=0)
    assert b"100 of 100 messages answered" in launch.stderr
    answered = {m["in_reply_to"] for m in launch.messages() if "in_reply_to" in m}
    assert answered == {f"d.{number}" for number in range(100)}


def test_what_is_wrong_is_named_and_what_is_right_still_delivered(workdir: Path) -> None:
    lines = [
        b"restart please\n",
        message("diagnostics", direction="vm-to-host"),
        message("diagnostics")[:40] + b"\n",
        b'{"timestamp":"2026-01-01T00:00:00Z","type":"command"}\n',
        b"\xff\xfe\x1b[2J\n",
        b"[" * 5000 + b"\n",
        message("diagnostics", id="the.good.one"),
        message("juggle", id="unknown"),
        message("start service", {"name": "../../bin/sh"}, id="not.a.name"),
    ]
    launch = run_with_input(b"".join(lines), workdir, exit_code=1)
    for number in (1, 3, 4, 5, 6):
        assert f"error: line {number} of stdin: ".encode() in launch.stderr, launch.show()
    assert b"this is not JSON" in launch.stderr
    assert b"has the direction host-to-vm" in launch.stderr
    assert b"\x1b" not in launch.stderr and b"\xff" not in launch.stderr
    answers = {m["in_reply_to"]: m for m in launch.messages() if "in_reply_to" in m}
    assert answers["the.good.one"]["type"] == "status"
    assert answers["unknown"]["type"] == "error" and "juggle" in answers["unknown"]["data"]["message"]
    assert answers["not.a.name"]["type"] == "error"
    assert b"[vm error]" in launch.stdout


def test_an_unknown_verb_is_answered_with_an_error(workdir: Path) -> None:
    launch = run_with_input(message("juggle"), workdir, exit_code=1)
    assert b"[vm error] there is no command juggle" in launch.stdout


def test_a_shutdown_message_ends_the_vm_well(workdir: Path) -> None:
    launch = run_with_input(message("shutdown", id="bye"), workdir, exit_code=0)
    assert [m["data"]["message"] for m in launch.messages() if m.get("in_reply_to") == "bye"] == ["shutdown done"]
    assert b"Power down" in launch.files.serial_log.read_bytes()


class Talk:
    """A launch whose stdin stays open, to send messages one by one."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._count = 0

    def say(self, text: str, details: dict[str, Any] | None = None, *, type_: str = "command") -> dict[str, Any]:
        """Send a message and return its answer, as the journal has it."""
        self._count += 1
        id_ = f"talk.{self._count}"
        self.launch.write(message(text, details, type_=type_, id=id_))
        self.launch.wait_until(lambda: self._find(id_) is not None, f"the answer to {text!r}")
        answer = self._find(id_)
        assert answer is not None
        return answer

    def _find(self, id_: str) -> dict[str, Any] | None:
        if not self.launch.files.messages.exists():
            return None
        return next((m for m in self.launch.messages() if m.get("in_reply_to") == id_), None)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talk]:
    """One VM for the tests that send messages to it while it runs."""
    cwd = tmp_path_factory.mktemp("talk")
    with open_launch("enhanced_vm", cwd=cwd, stdin=subprocess.PIPE) as launch:
        launch.wait_for(rb"boot finished")
        yield Talk(launch)
        launch.write(message("shutdown"))
        launch.end_input()
        # Some of the tests ask for what cannot be done; then the launcher rightly ends with 1.
        assert launch.wait() in (0, 1), launch.show()


def test_services_are_stopped_and_started(talk: Talk) -> None:
    services = talk.say("diagnostics")["data"]["details"]["services"]
    running = [service["name"] for service in services if service["state"] == "started"]
    assert running, services
    name = "syslogd" if "syslogd" in running else running[0]
    assert talk.say("stop service", {"name": name})["data"]["details"] == {"service": name, "state": "stopped"}
    talk.launch.wait_for(rf"\[vm status\] service {name} stopped".encode())
    after = {s["name"]: s["state"] for s in talk.say("diagnostics")["data"]["details"]["services"]}
    assert after[name] == "stopped"
    assert talk.say("start service", {"name": name})["type"] == "status"
    talk.launch.wait_for(rf"\[vm status\] service {name} started".encode())
    after = {s["name"]: s["state"] for s in talk.say("diagnostics")["data"]["details"]["services"]}
    assert after[name] == "started"
    assert talk.say("start service", {"name": "no-such"})["type"] == "error"


def test_the_configuration_is_changed(talk: Talk) -> None:
    before = len([m for m in talk.launch.messages() if m["type"] == "heartbeat"])
    assert talk.say("set configuration", {"key": "heartbeat_s", "value": 0.5})["type"] == "status"
    talk.launch.wait_until(
        lambda: len([m for m in talk.launch.messages() if m["type"] == "heartbeat"]) >= before + 3, "quick heartbeats"
    )
    assert talk.say("set configuration", {"key": "heartbeat_s", "value": "often"})["type"] == "error"
    assert talk.say("set configuration", {"key": "no_such_key", "value": 1})["type"] == "error"


def read_screen(launch: Launch) -> bytes:
    picture = launch.files.directory / "screen.ppm"
    ask_monitor(launch, f"screendump {picture}")
    data = picture.read_bytes()
    assert data.startswith(b"P6\n")
    return data


def test_text_and_pictures_are_really_seen_on_the_screen(talk: Talk) -> None:
    before = read_screen(talk.launch)
    answer = talk.say("show text", {"text": "Grüße\nfrom the host"}, type_="graphics")
    assert answer["type"] == "status", answer
    talk.launch.wait_until(lambda: read_screen(talk.launch) != before, "the text on the screen")
    with_text = read_screen(talk.launch)
    pixels = with_text.split(b"\n", 3)[3]
    assert len({pixels[at : at + 3] for at in range(0, len(pixels) - 2, 3)}) >= 2, "one colour is no text"
    # A picture of one red pixel in every place, given as data.
    picture = b"UDYKMSAxCjI1NQr/AAA="  # P6, 1 by 1, 255, ff 00 00
    answer = talk.say("show picture", {"format": "ppm", "data": picture.decode()}, type_="graphics")
    assert answer["type"] == "status", answer
    talk.launch.wait_until(lambda: b"\xff\x00\x00" in read_screen(talk.launch), "the picture on the screen")
    assert talk.say("show picture", {"format": "ppm", "data": "AAAA"}, type_="graphics")["type"] == "error"


def test_the_mode_is_set(talk: Talk) -> None:
    answer = talk.say("set mode", {"width": 800, "height": 600}, type_="graphics")
    assert answer["type"] == "status", answer
    talk.launch.wait_until(lambda: read_screen(talk.launch).startswith(b"P6\n800 600\n"), "the new mode")


@pytest.mark.slow
def test_restart_reboots_the_guest_and_its_agent_comes_back(talk: Talk) -> None:
    """The last but one thing done with the shared VM; its shutdown is the last."""
    before = talk.say("diagnostics")["data"]["details"]["system"]["uptime_s"]
    seen = len(talk.launch.stdout)
    assert talk.say("restart")["data"]["message"] == "restart done"
    talk.launch.wait_for(rb"the guest restarts", on="stderr", within_s=BOOT_S)
    talk.launch.wait_for(rb"\[vm status\] agent ready", after=seen)
    after = talk.say("diagnostics")["data"]["details"]["system"]["uptime_s"]
    assert after < before + 60
    talk.launch.wait_for(rb"\[vm status\] boot finished", after=seen)
