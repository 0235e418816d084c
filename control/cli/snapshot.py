"""`unhinged snapshot save|restore|delete|list NAME [TAG]` and `unhinged undo NAME` (floor 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from control.cli.desk import Desk
from control.cli.table import draw_table
from control.units import format_duration, format_size
from control.vm.lifetime import work_with_snapshot
from control.vm.snapshots import Snapshot, check_tag, list_snapshots

_DONE = {"save": "kept as", "restore": "back at", "delete": "forgot"}


def snapshot(desk: Desk) -> int:
    name, action = desk.check_name(desk.options.name), desk.options.action
    if action == "list":
        kept = list_snapshots(desk.look(name).files)
        document = {"name": name, "snapshots": [each.describe() for each in kept]}
        desk.show(document, _draw_table(kept) if kept else "")
        if not kept and not desk.is_json:
            desk.note(f"{name} has no snapshot; unhinged snapshot save {name} takes one")
        return 0
    tag = check_tag(desk.options.tag) if desk.options.tag else ""
    if action == "diff":
        return _diff(desk, name, tag)
    live = action == "save" and desk.options.live
    done = work_with_snapshot(desk.location, desk.fleet, name, action, tag, live=live)
    desk.show({"name": name, **done})
    if not desk.is_json:
        desk.note(_describe(name, action, done))
    return 0


def _diff(desk: Desk, name: str, tag: str) -> int:
    from control.vm.twins import describe, find_changes

    kept, changes = find_changes(desk.location, name, tag)
    desk.show({"name": name, "snapshot": kept.describe(), "changes": describe(changes)}, "\n".join(map(str, changes)))
    if not changes and not desk.is_json:
        desk.note(f"nothing has changed since {kept.tag}")
    return 0


def undo(desk: Desk) -> int:
    from control.vm import checkpoints

    name = desk.check_name(desk.options.name)
    done = checkpoints.undo(desk.location, desk.fleet, name)
    desk.show({"name": name, **done})
    if not desk.is_json:
        taken = done["snapshot"]["taken_at"][:19].replace("T", " ")
        desk.note(f"{name}: back to {taken} ({format_duration(done['seconds'])})")
    return 0


def _describe(name: str, action: str, done: Mapping[str, Any]) -> str:
    kept = done["snapshot"]
    told = format_duration(done["seconds"])
    if action == "save":
        told += f", {format_size(kept['bytes'])}"
        if kept["was_running"]:
            told += f"; it stood still for {format_duration(kept['stood_still_s'])}"
    return f"{name}: {_DONE[action]} {kept['tag']} ({told})"


def _draw_table(kept: list[Snapshot]) -> str:
    rows = [("TAG", "TAKEN", "SIZE", "DISKS", "GUEST")]
    for each in kept:
        guest = "ran" if each.was_running else "stood still"
        taken = each.taken_at[:19].replace("T", " ")
        rows.append((each.tag, taken, format_size(each.bytes), str(len(each.disks)), guest))
    return draw_table(rows)
