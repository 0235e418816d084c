"""`unhinged run -- PROGRAM ARGUMENT…` (floor 6): a command in a machine that is thrown away after it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.cli.desk import Desk
from control.errors import ConfigError
from control.paths import cache_directory
from control.units import MIB
from control.vm.hire import hire

if TYPE_CHECKING:
    from control.share.changes import Change
    from control.spec.vm_spec import Share
    from control.vm.disposable import Disposable

COPY_TIMEOUT_S = 24 * 3600.0
READ_ONLY = ":ro"

FILE_BYTES = 8192 * MIB
"""What a guest can make a file of this host grow to, by its disk or its console, when nothing else is said."""


def run(desk: Desk) -> int:
    options = desk.options
    if not options.words:
        raise ConfigError("no program is named", hint="unhinged run -- PROGRAM ARGUMENT…")
    if options.apply and not options.sync:
        raise ConfigError("--apply goes with --sync", hint="a directory that is given with --mount changes at once")
    # It loads while we do.
    with hire(f"run-{os.getpid()}", cache_directory() / "run") as hired:
        from control.spec.limits import Limits, read_limits
        from control.spec.network import Network
        from control.units import parse_size_bytes
        from control.vm.disposable import Shape, open_disposable

        memory_bytes = parse_size_bytes(options.memory, key="--memory") if options.memory else None
        share = _choose_share(options.mount) if options.mount else None
        limits = read_limits(options.limit, Limits(file_bytes=FILE_BYTES))
        shape = Shape(options.image, memory_bytes, options.cpus, (Network(options.net),), share, limits=limits)
        with open_disposable(shape, fresh=options.fresh, say=desk.note, hired=hired) as machine:
            try:
                if share is not None:
                    machine.mount_share(share)
                return _run(desk, machine, _give_copy(desk, machine) if options.sync else dict)
            finally:
                if options.keep:
                    machine.keep()
                    where = f"unhinged -c {machine.configuration}"
                    desk.note(f"{machine.name} goes on: {where} exec {machine.name} -t -- sh")
                    desk.note(f"throw it away: {where} discard {machine.name}")


def _run(desk: Desk, machine: Disposable, find_more: Callable[[], dict[str, Any]]) -> int:
    from control.cli.guest import run_in_guest
    from control.vm.disposable import WORK

    options = desk.options
    params: dict[str, Any] = {"argv": options.words}
    if options.timeout is not None:
        params["timeout_s"] = options.timeout
    if options.mount or options.sync:
        params["cwd"] = WORK
    is_terminal = options.tty or (os.isatty(0) and os.isatty(1) and not desk.is_json)
    return run_in_guest(
        desk,
        machine.name,
        params,
        runtime=machine.runtime,
        reads_stdin=not options.no_stdin,
        is_terminal=is_terminal,
        find_more=find_more,
    )


def _choose_share(text: str) -> Share:
    """Read `DIR` or `DIR:ro`. Raises ImageError for what is no directory that can be used."""
    from control.spec.vm_spec import Share
    from control.vm import media
    from control.vm.disposable import WORK_TAG
    from control.vm.provision import takes_attributes

    read_only = text.endswith(READ_ONLY)
    path = Path(text.removesuffix(READ_ONLY)).absolute()
    if read_only:
        # Nothing is kept there, so it is shown as it is, links too.
        return Share(media.check_share(path, is_written=False), WORK_TAG, "none", read_only=True, has_mailboxes=False)
    path = media.check_share(path)
    return Share(path, WORK_TAG, "mapped-xattr" if takes_attributes(path) else "mapped-file", has_mailboxes=False)


def _give_copy(desk: Desk, machine: Disposable) -> Callable[[], dict[str, Any]]:
    """Give the machine a copy of the current directory; what is returned says what has been changed in it since."""
    from control.share.changes import apply, compare, list_tree
    from control.vm.disposable import WORK
    from control.vm.reach import connect

    here = Path.cwd()
    before = list_tree(here)
    with connect(machine.runtime, machine.name) as remote:
        remote.call("put", {"sources": [str(here)], "target": WORK}, timeout_s=COPY_TIMEOUT_S)

    def find_changes() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="unhinged-sync.") as scratch:
            copy = Path(scratch) / "work"
            with connect(machine.runtime, machine.name) as remote:
                remote.call("get", {"sources": [WORK], "target": str(copy)}, timeout_s=COPY_TIMEOUT_S)
            changes = compare(before, list_tree(copy))
            left = apply(changes, copy, here, before) if desk.options.apply else []
        if not desk.is_json:
            _tell_changes(desk, changes, left)
        return {"changes": [asdict(change) for change in changes], "left_alone": left}

    return find_changes


def _tell_changes(desk: Desk, changes: Sequence[Change], left: Sequence[str]) -> None:
    for change in changes:
        desk.note(f"{change}{' (left alone: it has changed here, too)' if change.path in left else ''}")
    if not changes:
        desk.note("nothing was changed")
    elif not desk.options.apply:
        desk.note("nothing of that is changed here; --apply would")
