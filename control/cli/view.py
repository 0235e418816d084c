"""`unhinged view` and `tunnel` (floor 6): a guest's screen in a native viewer, here or from another host."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from control.cli.desk import Desk
from control.errors import ConfigError, HostError, StateError
from control.host import find_program, look_around
from control.vm.viewers import build_vnc, build_vv

PROGRAMS = {"spice": ("remote-viewer", "virt-viewer"), "vnc": ("vncviewer", "tigervnc-viewer")}
"""For each protocol a viewer that takes a UNIX socket, and the package that has it. (remote-viewer 11 takes one for
SPICE only.)"""


def view(desk: Desk) -> int:
    """Write a connection file for the VM's screen, and run the viewer for it, until that is closed."""
    options = desk.options
    name = desk.check_name(options.name)
    kind, socket = find_socket(desk, name, options.kind)
    suffix = {"spice": "vv", "vnc": "vnc"}[kind]
    path = Path(options.file) if options.file else desk.look(name).files.directory / f"screen.{suffix}"
    _write(path, build_vv(name, socket) if kind == "spice" else build_vnc(str(socket)))
    desk.show({"name": name, "type": kind, "socket": str(socket), "file": str(path)}, str(path))
    if options.no_run:
        return 0
    program, package = PROGRAMS[kind]
    viewer = find_program(program, look_around().search_path)
    if viewer is None:
        raise HostError(
            f"{program}, the viewer for {kind.upper()}, is not installed",
            hint=f"apt-get install {package}; or use unhinged web, which needs none",
        )
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise HostError(
            f"there is no display for {program} here (DISPLAY and WAYLAND_DISPLAY are empty)",
            hint=f"from a desktop: unhinged tunnel {name} USER@THIS-HOST; or unhinged web",
        )
    full_screen = {"spice": ["--full-screen"], "vnc": ["-FullScreen=1"]}[kind] if options.full_screen else []
    return _become([viewer, *full_screen, str(path)])


def tunnel(desk: Desk) -> int:
    """Print the ssh command that brings the VM's screen to another host's loopback; with --run, be that ssh."""
    options = desk.options
    name = desk.check_name(options.name)
    kind, socket = find_socket(desk, name, options.kind)
    port = options.port or {"vnc": 5900, "spice": 5930}[kind]
    if options.host.startswith("-"):
        raise ConfigError(f"{options.host!r} is no host", key="HOST", hint="USER@HOST, as ssh knows it")
    words = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{port}:{socket}", options.host]
    link = f"{kind}://127.0.0.1:{port}"
    desk.show({"name": name, "command": words, "link": link}, shlex.join(words))
    desk.note(f"run that where you sit, then open {link} (HOST is this host, as you reach it from there)")
    if not options.run:
        return 0
    ssh = find_program("ssh", look_around().search_path)
    if ssh is None:
        raise HostError("ssh is not installed", hint="apt-get install openssh-client")
    return _become([ssh, *words[1:]])


def _become(words: list[str]) -> int:
    """Go on as that program: nothing is left to do here, and whoever ends us ends it."""
    sys.stdout.flush()
    try:
        os.execv(words[0], words)  # noqa: S606 - no shell is wanted; it returns nothing, whatever the type says
    except OSError as error:
        raise HostError(f"{words[0]} cannot be started: {error.strerror}") from error


def find_socket(desk: Desk, name: str, wanted: str | None) -> tuple[str, Path]:
    """The protocol and the socket of a VM's screen: SPICE where there is one, which can do more.

    Raises:
        StateError: The VM does not run, or shows no such screen.
    """
    seen = desk.look(name)
    if not seen.is_running:
        raise StateError(f"{name} does not run", state=seen.state, required=("RUNNING",), hint=f"unhinged start {name}")
    files = seen.files
    sockets = {"spice": files.spice_socket, "vnc": files.vnc_socket}
    for kind in (wanted,) if wanted else ("spice", "vnc"):
        if sockets[kind].exists():
            return kind, sockets[kind]
    raise StateError(
        f"{seen.name} shows no screen over {wanted or 'SPICE or VNC'}",
        state=seen.state,
        required=(f'display = "{wanted or "vnc"}"',),
        hint="declare that, and start it again",
    )


def _write(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
    except OSError as error:
        raise HostError(f"{path} cannot be written: {error.strerror}", hint="name another with --file") from error
