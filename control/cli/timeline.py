"""`unhinged timeline` (floor 6): when what happened to a VM, drawn from its files, whether or not it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from control.cli.desk import Desk
from control.errors import ConfigError, StateError
from control.timeline.compare import compare
from control.timeline.reader import Timeline, from_plain, read_timeline
from control.vm.reach import look

BEFORE = "the run before"
"""What `--compare` means without a name."""

READ_MAX_BYTES = 64 << 20


def timeline(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    shown = _read(desk, name, is_before=options.before)
    other = _find_other(desk, name, options.compare) if options.compare is not None else None
    if not options.all:
        shown, other = shown.boot, other.boot if other is not None else None
    text = _draw(options.format, shown, other, every=options.all)
    if options.output is not None:
        _write(Path(options.output), text)
    if desk.is_json:
        desk.show(_describe(shown, other))
    elif options.output is None:
        desk.show({}, text)
    return 0


def _describe(shown: Timeline, other: Timeline | None) -> dict[str, Any]:
    return shown.describe() if other is None else {"comparison": compare(other, shown).describe()}


def _draw(form: str, shown: Timeline, other: Timeline | None, *, every: bool) -> str:
    """The one that it is compared with comes first: it is mostly the earlier one."""
    both = [shown] if other is None else [other, shown]
    if form == "json":
        return json.dumps(_describe(shown, other), indent=1) + "\n"
    if form == "chrome":
        from control.timeline.chrome import build_trace

        return json.dumps(build_trace(both)) + "\n"
    comparison = compare(other, shown) if other is not None else None
    if form == "text":
        from control.timeline.text import draw_comparison, draw_text

        return draw_comparison(comparison) if comparison is not None else draw_text(shown, every=every)
    from control.timeline.picture import draw_page, draw_svg

    return draw_svg(both) if form == "svg" else draw_page(both, comparison)


def _find_other(desk: Desk, name: str, wanted: str) -> Timeline:
    """Another VM's, one that was saved with `--format json`, or that of the run before."""
    if wanted == BEFORE:
        return _read(desk, name, is_before=True)
    if "/" not in wanted and wanted in desk.fleet.vms:
        return _read(desk, desk.check_name(wanted), is_before=False)
    path = Path(wanted)
    try:
        if path.stat().st_size > READ_MAX_BYTES:
            raise ConfigError(f"{path} is too large for a timeline", key="--compare")
        return from_plain(json.loads(path.read_bytes()), path)
    except OSError as error:
        raise ConfigError(
            f"{wanted} is no VM, and cannot be read: {error.strerror}",
            key="--compare",
            hint="name a VM, or what `unhinged timeline NAME --format json` has written",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}", key="--compare") from error


def _read(desk: Desk, name: str, *, is_before: bool) -> Timeline:
    files = look(desk.runtime, name).files
    try:
        return read_timeline(files.timeline_before if is_before else files.timeline, name)
    except FileNotFoundError:
        raise StateError(
            f"there is no timeline of {name}" + (" of a run before" if is_before else ""),
            state="DEFINED",
            required=("started",),
            hint=f"it is written while the VM runs: unhinged {'restart' if is_before else 'start'} {name}",
        ) from None


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror}", key="-o", hint="name another file") from error
