"""Boards at a serial port as machines; the ports are terminals that socat ties together, and servers on this host."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.errors import EXIT_QEMU_DIED, ConsoleError
from control.session import open_session
from tests.qemu.fleets import WITHIN_S, Desk, end_at_once, open_desk, wait_for
from tests.serial_ports import lay_cable, serve_rfc2217

BINARY = bytes(range(256)) * 400


@pytest.fixture
def desk(workdir: Path) -> Iterator[Desk]:
    with open_desk(workdir) as desk:
        declare(desk, "here")
        yield desk
        desk.run("kill", "--all")
        desk.wait_until_gone()


def declare(desk: Desk, port: str, more: str = "") -> None:
    desk.write(f'[vm.board]\nkind = "serial"\nport = "{port}"\n{more}')


def start(desk: Desk) -> None:
    done = desk.run("start", "board")
    assert done.exit_code == 0, done.stderr


def is_connected(desk: Desk) -> bool:
    return bool(desk.status("board")["holder"]["connected"])


def wait_until_said(desk: Desk, end: bytes) -> bytes:
    wait_for(lambda: desk.files("board").serial_log.read_bytes().endswith(end))
    return desk.files("board").serial_log.read_bytes()


def list_marks(desk: Desk) -> list[str]:
    events = map(json.loads, desk.run("cast", "board").stdout.splitlines()[1:])
    return [event[2] for event in events if event[1] == "m"]


def test_all_bytes_go_both_ways(desk: Desk) -> None:
    with lay_cable(desk.directory) as cable:
        start(desk)
        assert f"line     {desk.directory}/here, connected" in desk.run("status", "board").stdout
        speaking = threading.Thread(target=cable.say, args=(BINARY + b"end",))
        speaking.start()
        with open_session("board", config=desk.directory, timeout=WITHIN_S) as session:
            session.send(BINARY)
            assert cable.hear(len(BINARY)) == BINARY
        speaking.join()
        assert wait_until_said(desk, b"end") == BINARY + b"end"
        assert desk.run("stop", "board").exit_code == 0
        assert desk.status("board")["state"] == "STOPPED"


def test_a_session_runs_commands_on_a_board(desk: Desk) -> None:
    """Behind the cable is a shell on a terminal of its own, as a board's login is."""
    with lay_cable(desk.directory, "EXEC:bash --norc --noprofile -i,pty,setsid,ctty,stderr,sane"):
        start(desk)
        with open_session("board", config=desk.directory, timeout=WITHIN_S) as session:
            assert session.run("echo hello; (exit 4)").exit_code == 4
            assert session.run("echo $((6 * 7))").output == "42\n"
        script = desk.directory / "script"
        script.write_text("line 'echo 6 times 7'\nexpect '6 times 7'\nexpect '6 times 7'\nprint done\n")
        assert desk.ask("expect", "expect", "board", str(script))["printed"] == ["done"]


def test_a_cable_is_unplugged_and_plugged_again(desk: Desk) -> None:
    with lay_cable(desk.directory) as cable:
        start(desk)
        with open_session("board", config=desk.directory, timeout=WITHIN_S) as session:
            cable.say(b"before\r\n")
            session.expect_exact("before\r\n")
            cable.unplug()
            wait_for(lambda: not is_connected(desk))
            assert "the line is gone: the device was unplugged" in desk.run("status", "board").stdout
            with pytest.raises(ConsoleError, match=r"bytes were not typed: the line is gone: the device was unplugged"):
                for _ in range(100):
                    session.sendline("to nobody")
                    time.sleep(0.1)
            cable.plug()
            wait_for(lambda: is_connected(desk))
            cable.say(b"after\r\n")
            session.expect_exact("after\r\n")
            session.sendline("to you")
            assert cable.hear(7) == b"to you\n"
        notes = ["the line is gone: the device was unplugged", f"the line is there again: {cable.here}"]
        wait_for(lambda: desk.status("board")["notes"] == notes)
        # A recording waits for the echo of what was typed, which a board need not have.
        wait_for(lambda: list_marks(desk) == ["line down", "line up"])


def test_somebody_at_the_console_is_told_of_the_cable(desk: Desk) -> None:
    with lay_cable(desk.directory) as cable:
        start(desk)
        at_console = desk.begin("console", "board", "--until", "welcome back")
        assert at_console.stdout is not None
        cable.say(b"welcome\r\n")
        assert at_console.stdout.readline() == "welcome\n"
        cable.unplug()
        wait_for(lambda: not is_connected(desk))
        cable.plug()
        wait_for(lambda: len(desk.status("board")["notes"]) == 2)
        cable.say(b"welcome back\r\n")
        _, told = at_console.communicate(timeout=WITHIN_S)
        assert at_console.returncode == 0
        assert "the line is gone: the device was unplugged" in told
        assert "the line is there again" in told


def test_it_goes_on_without_its_supervisor(desk: Desk) -> None:
    with lay_cable(desk.directory) as cable:
        start(desk)
        end_at_once(int(desk.status("board")["supervisor_pid"]))
        cable.say(b"nobody listens")
        assert wait_until_said(desk, b"listens") == b"nobody listens"
        assert is_connected(desk)
        assert desk.run("send", "board", "x").exit_code == 0
        assert cable.hear(2) == b"x\n"


def test_the_lines_of_a_port_behind_tcp(desk: Desk) -> None:
    with serve_rfc2217() as server:
        declare(desk, f"rfc2217://127.0.0.1:{server.port}", "dtr = false\nrts = true\nbaud = 9600\n")
        start(desk)
        assert {"dtr off", "rts on"} <= set(server.changes)
        assert "dtr on" not in server.changes
        with open_session("board", config=desk.directory, timeout=WITHIN_S) as session:
            session.send("comes back\xff")
            session.expect_exact("comes back\xff")
        for words, wanted in (
            (["break", "--seconds", "0.1"], ["break on", "break off"]),
            (["dtr", "on"], ["dtr on"]),
            (["dtr", "pulse", "--seconds", "0.05"], ["dtr off", "dtr on"]),
            (["rts"], ["rts off", "rts on"]),
        ):
            del server.changes[:]
            desk.ask("line", "line", "board", *words)
            assert server.changes == wanted
        server.hang_up()
        wait_for(lambda: not is_connected(desk) or "the line is gone" in " ".join(desk.status("board")["notes"]))
        wait_for(lambda: is_connected(desk))
        assert desk.run("send", "board", "again").exit_code == 0
        assert wait_until_said(desk, b"again\n")


def test_a_bare_socket(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        declare(desk, f"socket://127.0.0.1:{listener.getsockname()[1]}")
        start(desk)
        for greeting in (b"first", b"second"):
            listener.settimeout(WITHIN_S)
            board, _ = listener.accept()
            with board:
                board.sendall(greeting)
                wait_until_said(desk, greeting)
                wait_for(lambda: is_connected(desk))
                assert desk.run("send", "board", greeting.decode()).exit_code == 0
                assert board.recv(100) == greeting + b"\n"
                done = desk.run("line", "board", "break")
                assert "a bare socket carries neither a break nor DTR and RTS" in done.stderr


def test_a_port_without_lines_says_so(desk: Desk) -> None:
    with lay_cable(desk.directory):
        start(desk)
        done = desk.run("line", "board", "dtr", "on")
        assert (done.exit_code != 0, "refuses: Inappropriate ioctl" in done.stderr) == (True, True)


def test_a_port_that_is_not_there_and_one_that_is_taken(desk: Desk) -> None:
    done = desk.run("start", "board")
    assert done.exit_code == EXIT_QEMU_DIED
    assert f"{desk.directory}/here cannot be opened: No such file or directory" in done.stderr
    assert "dialout" in done.stderr
    with lay_cable(desk.directory):
        desk.write('[vm.board]\nkind = "serial"\nport = "here"\n[vm.second]\nkind = "serial"\nport = "here"\n')
        start(desk)
        done = desk.run("start", "second")
        assert done.exit_code == EXIT_QEMU_DIED
        assert "cannot be opened" in done.stderr
        assert is_connected(desk)


def test_a_holder_that_is_killed_is_told(desk: Desk) -> None:
    with lay_cable(desk.directory):
        start(desk)
        os.kill(int(desk.status("board")["pid"]), 9)
        wait_for(lambda: desk.status("board")["state"] == "FAILED")
        assert "its holder was killed" in desk.status("board")["note"]
