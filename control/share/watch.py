"""Watches the shared directory's `inbox/` and `outbox/` (floor 2); `control.vm` is told of what moves in them.

The guest writes there too, and is not trusted: a file is opened without following links, and read only up to a limit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from asyncinotify import Event, Inotify, Mask

from control.errors import HostError

FILE_LIMIT_BYTES = 1024 * 1024
"""As docs/protocol.md has it for both boxes."""


def make_mailboxes(share: Path) -> None:
    """Make `inbox/` and `outbox/` in the shared directory.

    Raises:
        HostError: They cannot be made, or are something else than directories (a link the guest left, say).
    """
    for box in (share / "inbox", share / "outbox"):
        try:
            box.mkdir(exist_ok=True)
            if not stat.S_ISDIR(box.lstat().st_mode):
                raise NotADirectoryError(20, "it is not a directory")
        except OSError as error:
            raise HostError(
                f"{box} cannot be used: {error.strerror}", hint="remove it, or share another directory"
            ) from error


async def watch_mailboxes(
    share: Path, on_command: Callable[[], Awaitable[None]], on_answer: Callable[[bytes | None], Awaitable[None]]
) -> None:
    """Call `on_command` when something was put into the inbox, and `on_answer` with each file put into the outbox,
    None for one that is no mail (see `read_mail`).

    Runs until it is cancelled. Files that were there before are not reported.
    """
    with Inotify() as notifier:
        arrival = Mask.MOVED_TO | Mask.CLOSE_WRITE | Mask.ONLYDIR
        inbox = notifier.add_watch(share / "inbox", arrival)
        notifier.add_watch(share / "outbox", arrival)
        async for event in _named_events(notifier):
            if event.watch is inbox:
                await on_command()
            else:
                await on_answer(read_mail(share / "outbox" / str(event.name)))


async def _named_events(notifier: Inotify) -> AsyncIterator[Event]:
    """Yield the events of finished files: a name that begins with a dot is still being written."""
    async for event in notifier:
        if event.name is not None and not str(event.name).startswith("."):
            yield event


def read_mail(path: Path) -> bytes | None:
    """Read a regular file of at most `FILE_LIMIT_BYTES`; None for anything else, a link included."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None  # gone again, or a link
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_LIMIT_BYTES:
            return None
        return file.read(FILE_LIMIT_BYTES)
