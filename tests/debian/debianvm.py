"""The Debian image in a bare QEMU: its disk an overlay, its serial console a socket that tests type into.

`DebianVM` is the `AgentVM` of `tests/guest` with another boot, so that one suite can run against both guests.
"""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from control.paths import IMAGE
from tests.guest.agentvm import AgentVM

DISK = IMAGE / "debian.qcow2"
BOOT_S = 240.0
"""A systemd boot under emulation; 10 to 40 seconds are usual, the longer the more else the machine does."""

COMMAND_S = 180.0


class DebianVM(AgentVM):
    """A Debian guest that runs until the end of the `with` block; the image itself is never written to.

    Args:
        disk: The image its own disk lies over.
        port: Whether it has the agent's ports.
    """

    deadline_s = BOOT_S

    def __init__(self, directory: Path, *, disk: Path = DISK, port: bool = True, extra: Sequence[str] = ()) -> None:
        overlay = directory / "overlay.qcow2"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk.absolute()), str(overlay)]
        subprocess.run(make, check=True, timeout=60)
        super().__init__(
            directory,
            port=port,
            # Without a screen of its own the firmware speaks to the serial console. A later -m and -cpu is the one that
            # counts; the features left out are slow to emulate (docs/image.md).
            boot=["-machine", "graphics=off", "-m", "1024", "-cpu", "max,-erms,-la57"],
            extra=[
                *("-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe"),
                *("-netdev", "user,id=net0,restrict=on", "-device", "virtio-net-pci,netdev=net0,romfile="),
                *extra,
            ],
        )
        self.console: Console | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console is not None:
            self.console.close()
        super().__exit__(kind, error, trace)

    def boot(self) -> None:
        """Start the guest and wait until its agent answers."""
        self.qmp("cont")
        self.wait_for(self.connect())

    def connect_console(self) -> socket.socket:
        """The host's end of the serial console, for whoever drives it."""
        return self._connect("console")

    def log_in(self) -> Console:
        """A shell of root on the serial console, which needs no agent."""
        if self.console is None:
            self.console = Console(self.connect_console())
            self.console.enter()
        return self.console

    def wait_for_version(self, version: str) -> None:
        """Wait until an agent of this version says that it is ready.

        It is not asked: a question that the agent which is being replaced has read already is answered by nobody.
        """
        while True:
            note = self.wait_for_notification("message")
            if note["data"]["message"] == "agent ready" and note["data"]["details"]["version"] == version:
                return


class Console:
    """A shell on the serial line, driven as a person would; for when no agent can be asked."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.seen = b""

    def close(self) -> None:
        self._connection.close()

    def wait_for(self, pattern: bytes, within_s: float) -> re.Match[bytes]:
        """Read until `pattern` came; what was read up to its end is forgotten."""
        end = time.monotonic() + within_s
        while (match := re.search(pattern, self.seen)) is None:
            left = end - time.monotonic()
            assert left > 0, f"{pattern!r} did not come within {within_s:g} s; last: {self.seen[-600:]!r}"
            self._connection.settimeout(left)
            try:
                chunk = self._connection.recv(65536)
            except TimeoutError:
                continue
            assert chunk, f"QEMU closed the console; last: {self.seen[-600:]!r}"
            self.seen += chunk
        self.seen = self.seen[match.end() :]
        return match

    def write(self, data: bytes) -> None:
        self._connection.settimeout(COMMAND_S)
        self._connection.sendall(data)

    def enter(self) -> None:
        """Log in as root; the line feed brings up the prompt again if it came before we listened."""
        self.write(b"\n")
        self.wait_for(rb"login: ", BOOT_S)
        self.write(b"root\n")
        self.wait_for(rb"# ", BOOT_S)
        # No colours, links and pagers in what programs say to a test.
        assert self.run("export TERM=dumb SYSTEMD_URLIFY=0 SYSTEMD_COLORS=0 SYSTEMD_PAGER=") == (0, "")

    def run(self, command: str, within_s: float = COMMAND_S) -> tuple[int, str]:
        """Run one line of shell; gives its exit code and what it said."""
        mark = secrets.token_hex(6)
        # The echo of this line holds the marks in two halves, so only the output holds them whole.
        first, second = mark[:6], mark[6:]
        begin, end = f"printf '%s%s\\n' {first} {second}", f"printf '\\n%s%s=%d\\n' {second} {first} $?"
        self.write(f"{begin}; {command}; {end}\n".encode())
        self.wait_for(f"{first}{second}\r?\n".encode(), within_s)
        match = self.wait_for(rf"(?s)(.*?)\r?\n{second}{first}=(\d+)\r?\n".encode(), within_s)
        return int(match[2]), match[1].decode("utf-8", "replace").replace("\r\n", "\n").strip()
