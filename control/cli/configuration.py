"""`unhinged config`, `explain` and `version` (floor 6): what the file says, and what comes of it."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import control
from control.cli.desk import Desk, describe_error, printable, show_error, write_out
from control.errors import EXIT_USAGE, ConfigError, HostError
from control.paths import SCHEMAS
from control.spec.fleet import build_words, get_vm
from control.spec.held import HeldSpec
from control.spec.vm_spec import RawSpec, VMSpec

if TYPE_CHECKING:
    from control.vm.declared import Planned


def config(desk: Desk) -> int:
    action: str = desk.options.action
    if action == "schema":
        write_out((SCHEMAS / "config.json").read_text(encoding="utf-8"))
        return 0
    return _check(desk) if action == "check" else _show(desk)


def _check(desk: Desk) -> int:
    from control.spec.fleet import find_problems

    problems = find_problems(desk.location)
    notes = list(desk.fleet.notes) if not problems else []
    if desk.is_json:
        found = [describe_error(problem) for problem in problems]
        desk.show({"file": str(desk.location.path), "problems": found, "notes": notes})
    else:
        for problem in problems:
            show_error(problem, is_json=False)
        for note in notes:
            desk.note(note)
        if not problems:
            desk.note(f"{desk.location.file}: {len(desk.fleet.names)} VMs, nothing is wrong")
    return EXIT_USAGE if problems else 0


def _plan(desk: Desk, name: str) -> tuple[Planned, tuple[str, ...]]:
    """What the VM comes to on this host, and its command line; nothing is made."""
    from control.argv import build_argv
    from control.paths import find_instance_files

    planned = desk.plan(desk.check_name(name), make=False)
    return planned, build_argv(planned.spec, find_instance_files(desk.runtime, name))


def _show(desk: Desk) -> int:
    import shlex

    from control.spec.plain import to_plain

    name = desk.options.name
    planned, argv = _plan(desk, name)
    document = {
        "name": name,
        "argv": list(argv),
        "spec": to_plain(planned.spec),
        "ports": dict(planned.ports),
        "notes": list(planned.notes),
    }
    lines = [f"# {note}" for note in planned.notes]
    lines += [f"# {key} = {json.dumps(value)}" for key, value in document["spec"].items() if key != "words"]
    desk.show(document, "\n".join([*lines, shlex.join(argv)]))
    return 0


def explain(desk: Desk) -> int:
    from control.spec.qemu_options import explain as explain_words

    name = desk.options.name
    planned, argv = _plan(desk, name)
    if isinstance(planned.spec, HeldSpec):
        raise ConfigError(f"{name} is no VM: there is no command line of QEMU", hint=f"unhinged config show {name}")
    words = build_words(desk.fleet, get_vm(desk.fleet, name), planned.ports)
    rest = argv[1:]
    if isinstance(planned.spec, RawSpec):
        parts = [("cmd", rest[: len(words)]), ("unhinged", rest[len(words) :])]
    else:
        end = len(rest) - len(words) if isinstance(planned.spec, VMSpec) else 0
        parts = [("declared", rest[:end]), ("cmd", rest[end:])]
    found = explain_words(parts)
    document = {
        "name": name,
        "options": [
            {"option": each.option, "value": each.value, "meaning": each.meaning, "origin": each.origin}
            for each in found
        ],
    }
    lines = []
    for each in found:
        lines.append(printable(f"{each.option} {each.value}".strip()))
        lines.append(f"    {each.meaning} [{each.origin}]")
    desk.show(document, "\n".join(lines))
    return 0


def version(desk: Desk) -> int:
    import asyncio
    import os

    from control.host import find_qemu, look_around, probe_qemu_version
    from control.process.run import run

    try:
        found = find_qemu(look_around(dict(os.environ)))
        qemu = ".".join(map(str, asyncio.run(probe_qemu_version(found, run))))
    except HostError as error:
        qemu = f"none: {error}"[:200]
    document = {"version": control.__version__, "python": platform.python_version(), "qemu": qemu}
    desk.show(document, f"unhinged {control.__version__} (Python {document['python']}, QEMU {qemu})")
    return 0
