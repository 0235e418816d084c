"""`unhinged template`, `fork` and `discard` (floor 6)."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from control.cli.desk import Desk
from control.cli.life import Fate, conclude, for_each
from control.cli.table import draw_table
from control.errors import ConfigError
from control.units import format_duration, format_size, parse_size_bytes
from control.vm import cloning
from control.vm.clones import list_clones
from control.vm.templates import Template, list_templates, make_room

if TYPE_CHECKING:
    from control.process.detach import Detached


def template(desk: Desk) -> int:
    options = desk.options
    wishes = [options.name is not None, options.list, options.delete is not None]
    if sum(wishes) != 1 or (options.template is not None and options.name is None):
        raise ConfigError(
            "template takes one of: NAME, --list, --delete TEMPLATE", hint="unhinged template NAME [--as TEMPLATE]"
        )
    if options.list:
        return _list(desk)
    if options.delete is not None:
        cloning.delete_template(desk.runtime, options.delete)
        desk.show({"deleted": options.delete})
        if not desk.is_json:
            desk.note(f"the template {options.delete} is gone")
        return 0
    name = desk.check_name(options.name)
    budget = parse_size_bytes(options.budget, key="--budget")
    made, took = cloning.make_template(desk.location, name, options.template or name)
    removed = make_room(desk.runtime, budget, made.name)
    desk.show({"made": made.describe(), **took, "removed": removed})
    if not desk.is_json:
        desk.note(
            f"{made.name}: a template of {name}, {format_size(made.bytes)} ({format_duration(took['seconds'])}; "
            f"{name} stood still for {format_duration(took['frozen_s'])})"
        )
        for each in removed:
            desk.note(f"the template {each} is gone: all were to take no more than {format_size(budget)} (--budget)")
    return 0


def _list(desk: Desk) -> int:
    found = list_templates(desk.runtime)
    document = {"templates": [{**each.describe(), "clones": list_clones(desk.runtime, each.name)} for each in found]}
    desk.show(document, _draw_table(desk, found) if found else "")
    if not found and not desk.is_json:
        desk.note("there is no template; unhinged template NAME makes one of a running VM")
    return 0


def _draw_table(desk: Desk, found: list[Template]) -> str:
    rows = [("TEMPLATE", "OF", "MADE", "SIZE", "CLONES")]
    for each in found:
        made = each.made_at[:19].replace("T", " ")
        rows.append((each.name, each.vm, made, format_size(each.bytes), str(len(list_clones(desk.runtime, each.name)))))
    return draw_table(rows)


def fork(desk: Desk, find_supervisor: Callable[[], AbstractContextManager[Detached]]) -> int:
    """Make the clones; for each `find_supervisor` gives one that loads already."""
    options = desk.options
    # Before names are taken for clones of nothing.
    cloning.refresh_template(desk.location, options.template, desk.note)
    exact = options.name is not None and options.count == 1
    names = cloning.reserve_names(desk.fleet, options.name or options.template, options.count, exact=exact)

    def make(name: str) -> Fate:
        started = time.monotonic()
        with find_supervisor() as hired:
            cloning.make_clone(desk.location, options.template, name, hired=hired)
        return Fate(name, "forked", time.monotonic() - started)

    return conclude(desk, for_each(names, make))


def discard(desk: Desk) -> int:
    options = desk.options
    if bool(options.names) == (options.of is not None):
        raise ConfigError("discard takes names, or --of TEMPLATE", hint="unhinged template --list")
    names: list[str] = options.names or list_clones(desk.runtime, options.of)

    def end(name: str) -> Fate:
        started = time.monotonic()
        did_run = cloning.discard(desk.location, name)
        return Fate(name, "discarded", time.monotonic() - started if did_run else 0.0)

    return conclude(desk, for_each(list(dict.fromkeys(names)), end))
