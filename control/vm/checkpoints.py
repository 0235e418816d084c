"""Checkpoints (floor 3): snapshots that are taken before a command, so that what it did can be undone. Blocking.

They are snapshots like any other, known by their tags; the newest few of a machine are kept.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from control.errors import StateError
from control.vm.lifetime import work_with_snapshot
from control.vm.reach import look
from control.vm.snapshots import Snapshot, list_snapshots

if TYPE_CHECKING:
    from control.paths import InstanceFiles
    from control.spec.fleet import Fleet
    from control.spec.locate import Location

KEPT = 5
_PREFIX = "checkpoint-"


def take_checkpoint(location: Location, name: str) -> None:
    """Keep the running VM `name` as it is now. Raises ControlError, as `work_with_snapshot` does."""
    tag = _PREFIX + datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    work_with_snapshot(location, None, name, "save", tag)
    for old in _list_checkpoints(look(location.runtime, name).files)[:-KEPT]:
        work_with_snapshot(location, None, name, "delete", old.tag)


def undo(location: Location, fleet: Fleet, name: str) -> dict[str, Any]:
    """Put the machine `name` back to its newest checkpoint, and forget that: the next one undoes what came before.

    Returns:
        What `snapshot` in docs/control.md answers.

    Raises:
        StateError: There is none.
        ControlError: As `work_with_snapshot` raises; the checkpoint is kept.
    """
    there = _list_checkpoints(look(location.runtime, name).files)
    if not there:
        raise StateError(
            f"{name} has no checkpoint to go back to",
            state="no checkpoint",
            required=("a checkpoint",),
            hint=f"take one with a command: unhinged exec --checkpoint {name} -- PROGRAM…",
        )
    done = work_with_snapshot(location, fleet, name, "restore", there[-1].tag)
    work_with_snapshot(location, fleet, name, "delete", there[-1].tag)
    return done


def _list_checkpoints(files: InstanceFiles) -> list[Snapshot]:
    return [each for each in list_snapshots(files) if each.tag.startswith(_PREFIX)]
