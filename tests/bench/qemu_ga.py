"""The peer of the agent's benchmarks: QEMU's own guest agent, in the same guest, over a port of the same kind.

The built-in guest does not hold it, so the distribution's package is brought in as an archive in front of the initrd's,
together with the host's own copies of the libraries it is linked to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iso import newc

PORT = "org.qemu.guest_agent.0"
FILE_CHUNK_BYTES = 1024 * 1024
"""What one `guest-file-read` or `-write` carries: as fast here as any from 64 KiB to 12 MiB."""

_HOME = "opt/qemu-ga"
_LOADER = "ld-linux-x86-64.so.2"
COMMAND = (
    f"/{_HOME}/{_LOADER}",
    "--library-path",
    f"/{_HOME}",
    f"/{_HOME}/qemu-ga",
    "--daemonize",
    "--statedir=/run",
    "--pidfile=/run/qemu-ga.pid",
    "--logfile=/run/qemu-ga.log",
)
"""Starts it in the guest; the port's node is added by whoever knows it, as `--path`."""


def write_initrd(initrd: Path, directory: Path) -> Path:
    """Write the initrd with qemu-ga in it to `directory`, and return where it is."""
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "qemu-guest-agent"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)
    package = next(directory.glob("qemu-guest-agent_*.deb"))
    subprocess.run(["dpkg-deb", "-x", package, directory / "unpacked"], check=True)
    program = directory / "unpacked" / "usr" / "sbin" / "qemu-ga"
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    tree = {f"{_HOME}/qemu-ga": newc.file(program.read_bytes(), 0o755)}
    for match in re.finditer(r"(/\S+)", linked.replace(str(program), "")):
        library = Path(match.group(1))
        tree[f"{_HOME}/{library.name}"] = newc.file(library.read_bytes(), 0o755)
    target = directory / "initrd"
    archive = newc.pack(tree)
    # The kernel unpacks several archives one after the other, each beginning at a multiple of four bytes. Ours comes
    # first: behind one that lz4 compressed in its old format the kernel looks for none.
    # Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst, lib/decompress_unlz4.c.
    target.write_bytes(archive + bytes(-len(archive) % 4) + initrd.read_bytes())
    return target


class QemuGA:
    """A blocking client of qemu-ga, as short as one can be."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def execute(self, command: str, **arguments: Any) -> Any:
        """Call one command and return its result; `ValueError` when it failed."""
        self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):  # it speaks only when asked, so the end of a line is the end
            parts.append(self._connection.recv(1024 * 1024))
            if not parts[-1]:
                raise ConnectionError("QEMU hung up")
        answer = json.loads(b"".join(parts))
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["return"]

    def run_true(self) -> None:
        """Run /bin/true and wait for its end; qemu-ga has to be asked until it has ended."""
        pid = self.execute("guest-exec", path="/bin/true")["pid"]
        while not self.execute("guest-exec-status", pid=pid)["exited"]:
            pass

    def put(self, source: Path, target: str) -> None:
        """Write the file `source` to the guest's `target`."""
        handle = self.execute("guest-file-open", path=target, mode="w")
        with source.open("rb") as file:
            while chunk := file.read(FILE_CHUNK_BYTES):
                encoded = base64.b64encode(chunk).decode()
                self.execute("guest-file-write", handle=handle, **{"buf-b64": encoded})
        self.execute("guest-file-close", handle=handle)

    def get(self, source: str, target: Path) -> None:
        """Read the guest's `source` into the file `target`."""
        handle = self.execute("guest-file-open", path=source, mode="r")
        with target.open("wb") as file:
            while True:
                part = self.execute("guest-file-read", handle=handle, count=FILE_CHUNK_BYTES)
                file.write(base64.b64decode(part["buf-b64"]))
                if part["eof"]:
                    break
        self.execute("guest-file-close", handle=handle)


@contextlib.contextmanager
def open_qemu_ga(path: Path, timeout_s: float) -> Iterator[QemuGA]:
    """Connect to the port's socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        yield QemuGA(connection)
