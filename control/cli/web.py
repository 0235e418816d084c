"""`unhinged web` (floor 6): serves the web console, or does what belongs to it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import ipaddress
import os
import signal
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from control.cli.desk import Desk
from control.errors import ConfigError
from control.paths import open_web_directory
from control.units import parse_size_bytes

if TYPE_CHECKING:
    from control.spec.locate import Location
    from control.web.context import Settings


def web(desk: Desk) -> int:
    options = desk.options
    if options.libraries:
        from control.web.libraries import ensure_libraries

        ensure_libraries(desk.note)
        return 0
    location = _find_location(desk)
    directory = open_web_directory(location.runtime, is_shared=location.is_shared)
    if options.add_user or options.remove_user:
        return _change_users(desk, directory)
    from control.web.access import read_or_make_token

    token = read_or_make_token(directory / "token", renew=options.new_token)
    if options.show_token:
        desk.show({"token": token}, token)
        return 0
    if options.vnc_file:
        return _show_vnc_file(desk)
    settings = _build_settings(desk, directory)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(desk, settings, location, token))
    return 0


async def _serve(desk: Desk, settings: Settings, location: Location, token: str) -> None:
    from control.web.server import serve

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serve(settings, location, token) as server:
        desk.show({"url": server.url, "token": token}, f"{server.url}?token={token}")
        what = location.path if location.path.exists() else location.runtime
        desk.note(f"the web console of {what} runs at {server.url} until Ctrl-C; the line above logs you in")
        if not _is_loopback(settings.address):
            desk.note(f"it listens at {settings.address}: other hosts reach it")
        await ended.wait()
        desk.note("the web console ends")


def _build_settings(desk: Desk, directory: Path) -> Settings:
    from control.web.context import Settings
    from control.web.libraries import ensure_libraries

    options = desk.options
    certificate, key = find_certificate(options, directory)
    return Settings(
        address=_read_address(options.address),
        port=options.port,
        directory=directory,
        libraries=ensure_libraries(desk.note),
        hosts=tuple(options.host_name),
        certificate=certificate,
        key=key,
        upload_bytes=parse_size_bytes(options.upload_limit, key="--upload-limit"),
    )


def find_certificate(options: Namespace, directory: Path) -> tuple[Path | None, Path | None]:
    """The files of a TLS server, made in `directory` where none are named; off loopback it is one unless the user says
    otherwise.

    Raises:
        ConfigError: The options contradict each other.
        HostError: They cannot be made.
    """
    if bool(options.certificate) != bool(options.key):
        raise ConfigError("--certificate and --key go together", key="--certificate", hint="give both, or neither")
    if options.no_tls and (options.tls or options.certificate):
        raise ConfigError("--no-tls excludes --tls and --certificate", key="--no-tls", hint="leave one of them out")
    if options.certificate:
        return Path(options.certificate), Path(options.key)
    if options.no_tls or (not options.tls and _is_loopback(_read_address(options.address))):
        return None, None
    from control.web.tls import ensure_certificate

    address = _read_address(options.address)
    own = [] if ipaddress.ip_address(address).is_unspecified else [address]
    return ensure_certificate(directory, ("localhost", "127.0.0.1", socket.gethostname(), *own, *options.host_name))


def _read_address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no IP address", key="--address", hint="127.0.0.1, 0.0.0.0, ::1") from error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _find_location(desk: Desk) -> Location:
    """The configuration's; where there is none, that of VMs which `make start` has started here."""
    from control.spec.locate import PROJECT_FILE, find_location, locate

    home = Path(os.environ.get("HOME", "/"))
    try:
        return find_location(Path(desk.options.config) if desk.options.config else None, cwd=Path.cwd(), home=home)
    except ConfigError:
        if desk.options.config:
            raise
        return locate(Path(PROJECT_FILE), cwd=Path.cwd(), home=home)


def _change_users(desk: Desk, directory: Path) -> int:
    from control.web.users import Users

    options, users = desk.options, Users(directory / "users.json")
    if options.remove_user:
        if not users.remove(options.remove_user):
            raise ConfigError(f"there is no user {options.remove_user!r}", hint=f"{users.path} lists them")
        desk.note(f"{options.remove_user} may not come in any more")
        return 0
    users.add(options.add_user, options.role, _read_password())
    desk.note(f"{options.add_user} may come in, as {options.role}")
    return 0


def _read_password() -> str:
    """Read a password that is not shown, or the first line of a stdin that is no terminal. Raises ConfigError."""
    if not os.isatty(0):
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass("password: ")
    if getpass.getpass("once more: ") != first:
        raise ConfigError("these two passwords are not the same", hint="type it again")
    return first


def _show_vnc_file(desk: Desk) -> int:
    from control.cli.view import find_socket
    from control.vm.viewers import build_vnc

    name = desk.check_name(desk.options.vnc_file)
    _, socket = find_socket(desk, name, "vnc")
    desk.show({"name": name, "socket": str(socket)}, build_vnc(str(socket)))
    return 0
