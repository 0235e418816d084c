"""A guest that means harm: what it sends costs the launcher bounded memory, and changes nothing but what is shown."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.boot.launching import GuestShell, Launch, open_guest_shell, open_launch
from tests.boot.test_stdin_messages import Talk, message

PEAK_BYTES = 60_000_000
"""What issue 2 allows the launcher, and under attack it gets no more; it was seen to need 37 MB."""


@dataclass
class Siege:
    """A VM under attack: the launch, a root shell to attack from, and what the launcher wrote to stdout, a file."""

    launch: Launch
    shell: GuestShell
    talk: Talk
    console: Path

    def see_well(self) -> None:
        """The launcher runs, has not grown, and the guest's agent answers."""
        assert self.launch.process.poll() is None, self.launch.show()
        assert self.talk.say("diagnostics")["type"] == "status"
        assert self.launch.peak_bytes() <= PEAK_BYTES

    def print_on_console(self, data: bytes) -> None:
        """Let the guest write exactly these bytes to its serial console."""
        self.shell.put("/run/bytes", data)
        self.shell.run("stty -F /dev/ttyS0 -opost; cat /run/bytes > /dev/ttyS0")

    def wait_for_text(self, text: bytes, after: int = 0) -> None:
        self.launch.wait_until(lambda: text in self.console.read_bytes()[after:], f"{text!r} on the console")


@pytest.fixture(scope="module")
def siege() -> Iterator[Siege]:
    with tempfile.TemporaryDirectory(prefix="uh-", dir="/tmp") as name:
        cwd = Path(name)
        console = cwd / "console"
        with (
            console.open("wb") as stdout,
            open_launch("enhanced_vm", cwd=cwd, stdin=subprocess.PIPE, stdout=stdout) as launch,
        ):
            launch.wait_until(lambda: b"boot finished" in console.read_bytes(), "the boot")
            with open_guest_shell(launch) as shell:
                # The attacker has the serial console and the second one to itself.
                yield Siege(launch, shell, Talk(launch), console)
            if launch.process.poll() is None:
                launch.write(message("shutdown"))
                launch.end_input()
                launch.finish(0)


def test_broken_utf8_passes_through_untouched(siege: Siege) -> None:
    data = b'\xff\xfe{"type": \xc3(\x80\xf5 \x00 \xed\xa0\x80 after-the-broken-bytes\n'
    siege.print_on_console(data)
    siege.wait_for_text(data)
    siege.see_well()


def test_escapes_inside_a_message_do_not_reach_our_line(siege: Siege) -> None:
    evil = "owned\x1b[2J\x1b]0;title\x07\u009b31m\r\nunhinged: all is well\u202e"
    line = message(evil, {"sneaky": evil, "\x1b[1A": "key"}, direction="vm-to-host", type_="status")
    before = siege.console.stat().st_size
    siege.print_on_console(b"\n" + line)
    siege.wait_for_text(b"[vm status] owned", before)
    siege.print_on_console(b"after-the-escapes\n")
    siege.wait_for_text(b"after-the-escapes", before)
    shown = siege.console.read_bytes()[before:]
    (rendered,) = (part for part in shown.splitlines() if part.startswith(b"[vm status] owned"))
    assert b"after-the-escapes" in shown
    assert not any(character in rendered.decode() for character in "\x1b\x07\r\x9b\u202e")
    assert b"unhinged: all is well" in rendered, "a line end inside a text does not begin a line of ours"
    siege.see_well()


def test_half_a_message_is_shown_as_text(siege: Siege) -> None:
    before = siege.console.stat().st_size
    siege.print_on_console(b'{"timestamp": "2026-01-01T00:00:00Z", "direction": "vm-to')
    siege.wait_for_text(b'"direction": "vm-to', before)
    siege.print_on_console(b"\n")
    siege.see_well()


def test_a_message_that_claims_to_come_from_the_host_has_no_effect(siege: Siege) -> None:
    line = message("shutdown", id="forged.1")
    siege.print_on_console(line * 3)
    siege.launch.wait_for(rb"the guest sent a message that claims to come from the host; it has no effect", on="stderr")
    siege.see_well()
    assert not any(found.get("id") == "forged.1" for found in siege.launch.messages())
    assert bytes(siege.launch.stderr).count(b"claims to come from the host") == 1, "said once, not three times"


def test_answers_nobody_asked_for_are_only_shown(siege: Siege) -> None:
    line = message("diagnostics done", direction="vm-to-host", type_="status", in_reply_to="host-0000000000000000")
    siege.print_on_console(line)
    siege.see_well()


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("beginning", "name"), [(b"", "text"), (b'{"timestamp": "', "message")], ids=["text", "begun as a message"]
)
def test_an_endless_line(siege: Siege, beginning: bytes, name: str) -> None:
    before = siege.console.stat().st_size
    siege.print_on_console(beginning)
    # ttyS0 carries about 0.3 MB/s under software emulation: QEMU writes it byte by byte.
    siege.shell.run("head -c 1000000 /dev/zero | tr '\\0' 'x' > /dev/ttyS0", within_s=120)
    siege.print_on_console(f"end-of-{name}\n".encode())
    siege.wait_for_text(f"xxend-of-{name}".encode(), before)
    assert siege.console.read_bytes()[before:].count(b"x") >= 1_000_000, "not a byte of it is lost"
    siege.see_well()


# Run by the guest's Python while the agent is away from its port.
FLOOD = """
import json, os, sys
port = os.open(sys.argv[1], os.O_WRONLY)
def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(port, view):]
if sys.argv[2] == "line":
    block = b"x" * 1048576
    for _ in range(64):
        write(block)
    write(b"\\n")
elif sys.argv[2] == "heartbeats":
    data = {"message": "alive", "details": {"sequence": 1, "uptime_s": 1.5, "load_1": 0.1, "memory_available_bytes": 1}}
    beat = {"timestamp": "2026-01-01T00:00:00Z", "direction": "vm-to-host", "type": "heartbeat", "data": data}
    line = json.dumps({"jsonrpc": "2.0", "method": "message", "params": beat}).encode() + b"\\n"
    for _ in range(100):
        write(line * 1000)
else:
    write(b"[" * 500000 + b"\\n")
    write(b'{"jsonrpc": "2.0", "id": "made-up", "result": {}}\\n' * 1000)
    write(b'{"jsonrpc": "2.0", "id": 1, "error": {"code": "x"}}\\n' * 1000)
    write(b'{"jsonrpc": "2.0", "method": "message", "params": {"timestamp": 1}}\\n' * 1000)
    write(b'{"jsonrpc": "2.0", "method": "mess\\n')
    write(b"\\xff\\xfe\\x00" * 10000 + b"\\n")
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("flood", ["line", pytest.param("heartbeats", marks=pytest.mark.slow), "nonsense"])
def test_a_flood_over_the_agents_port(siege: Siege, flood: str) -> None:
    """64 MiB without a line end; 100 000 heartbeats; lines that are nothing, or answers to nothing."""
    shell = siege.shell
    shell.put("/run/flood.py", FLOOD.encode())
    # The agent is stopped with all that would start it again; two programs cannot have the port at once.
    shell.run("read -r agent < /run/unhinged-agent/pid && keeper=$(cut -d' ' -f4 /proc/$agent/stat)")
    shell.run("kill -STOP $keeper && kill -KILL $agent")
    shell.run(f"python3 -I /run/flood.py /dev/virtio-ports/org.unhinged.agent.0 {flood}", within_s=150)
    before = siege.console.stat().st_size
    shell.run("kill -CONT $keeper")
    # What is sent between two agents may reach neither: the guest's kernel drops what nobody has the port open for.
    siege.wait_for_text(b"agent ready", before)
    siege.see_well()
    if flood == "heartbeats":
        kept = siege.launch.files.messages
        journals = (kept, kept.with_name(kept.name + ".1"))
        beats = sum(journal.read_bytes().count(b'"heartbeat"') for journal in journals)
        assert beats >= 100_000, "all of them were taken"


@pytest.mark.slow  # three minutes and a half for each: QEMU passes ttyS0 on byte by byte
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["tr '\\0' 'x' < /dev/zero", "yes 'a line of the flood'"], ids=["one line", "lines"])
def test_fifty_megabytes_on_the_console(siege: Siege, source: str) -> None:
    before = siege.console.stat().st_size
    try:
        siege.shell.run(f"{source} | head -c 50000000 > /dev/ttyS0", within_s=800)
    except AssertionError as error:
        error.add_note(
            f"the console has {siege.console.stat().st_size - before} bytes of it"
        )  # slow, or standing still
        raise
    siege.print_on_console(b"\nafter-the-flood\n")
    siege.wait_for_text(b"after-the-flood", before)
    assert siege.console.stat().st_size - before >= 50_000_000
    siege.see_well()


def test_what_was_of_no_use_is_reported_at_the_end(siege: Siege) -> None:
    """The last test of this file, and about all of it: what the guest sent in vain is counted, not swallowed."""
    siege.launch.write(message("shutdown"))
    siege.launch.end_input()
    siege.launch.finish(0)
    assert json.loads(siege.launch.files.state.read_bytes())["state"] == "STOPPED"
    assert b"Traceback" not in siege.launch.stderr
    text = siege.launch.stderr.decode()
    assert "lines of the guest that had no effect: " in text
    # What the tests above sent: 3 forged messages; a flood of 1000 lines of each sort, and some.
    for least, what in ((3, "claiming to come from the host"), (1000, "looking like"), (2000, "on the agent's port")):
        match = re.search(rf"(\d+) [^,]*{what}", text)
        assert match and int(match[1]) >= least, text
