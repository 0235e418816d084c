"""`unhinged exec`, `put`, `get` and `send` (floor 6): what is done with the guest, through its agent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from control.cli.desk import Desk
from control.errors import EXIT_TIMEOUT, ConfigError
from control.vm.reach import connect, look

COPY_TIMEOUT_S = 24 * 3600.0
"""A copy takes as long as it takes; that its guest is lost is noticed elsewhere."""


def exec_(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    if not options.words:
        raise ConfigError("no program is named", hint=f"unhinged exec {name} -- PROGRAM ARGUMENT…")
    if options.tty and desk.is_json:
        raise ConfigError("--tty and --json exclude each other", hint="leave one of them out")
    params: dict[str, Any] = {"argv": options.words}
    for key, value in (("cwd", options.cwd), ("user", options.user), ("timeout_s", options.timeout)):
        if value is not None:
            params[key] = value
    if options.env:
        params["env"] = dict(_split_variable(entry) for entry in options.env)
    if options.checkpoint:
        from control.vm.checkpoints import take_checkpoint

        take_checkpoint(desk.location, name)
    return run_in_guest(desk, name, params, reads_stdin=not options.no_stdin, is_terminal=options.tty)


def run_in_guest(
    desk: Desk,
    name: str,
    params: dict[str, Any],
    *,
    reads_stdin: bool = True,
    is_terminal: bool = False,
    find_more: Callable[[], Mapping[str, Any]] = dict,
    runtime: Path | None = None,
) -> int:
    """Run a program in the guest, with our standard streams, and return its exit code.

    Args:
        params: Of the supervisor's method `exec`.
        find_more: Called once it has ended: what the document of --json holds beside what it did.
        runtime: Where the machine runs, when that is not where the configuration's do.
    """
    from control.cli.stream import Streaming
    from control.vm.collect import Collected

    with connect(runtime or desk.runtime, name) as remote:
        streaming = Streaming(remote, reads_stdin=reads_stdin, is_terminal=is_terminal)
        collected = Collected() if desk.is_json else None
        result = streaming.run("exec", params, collected)
    more = find_more()
    if collected is not None:
        desk.show({"name": name, **result, **collected.to_plain(), **more})
    elif result["timed_out"]:
        desk.note(f"{params['argv'][0]} was killed after {params['timeout_s']:g} s")
    return EXIT_TIMEOUT if result["timed_out"] else int(result["exit_code"])


def _split_variable(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not name or not equals:
        raise ConfigError(f"--env {entry[:80]!r} is not NAME=VALUE", hint="as in --env LANG=C")
    return name, value


def put(desk: Desk) -> int:
    return _copy(desk, "put")


def get(desk: Desk) -> int:
    return _copy(desk, "get")


def _copy(desk: Desk, method: str) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    if len(options.paths) < 2:
        raise ConfigError("where to copy to is missing", hint=f"unhinged {method} {name} SOURCE… TARGET")
    if (options.via or _choose_way(desk, name)) == "ssh":
        from control.cli.ssh import copy

        return copy(desk, name, method, options.paths)
    *sources, target = options.paths
    # What follows the last slash matters to a copy, so paths are joined and not tidied up.
    here = str(Path.cwd())
    if method == "put":
        sources = [os.path.join(here, source) for source in sources]  # noqa: PTH118
    else:
        target = os.path.join(here, target)  # noqa: PTH118
    with connect(desk.runtime, name) as remote:
        copied = remote.call(method, {"sources": sources, "target": target}, timeout_s=COPY_TIMEOUT_S)
    desk.show({"name": name, "via": "agent", **copied})
    if not desk.is_json and copied["skipped"]:
        desk.note(f"{copied['skipped']} sockets or devices were not copied")
    return 0


def _choose_way(desk: Desk, name: str) -> str:
    """The agent where the guest has one: it is quicker, and what it has copied is verified. Else ssh."""
    record = look(desk.runtime, name).record
    has_ssh = desk.fleet.vms[name].ssh is not None
    return "ssh" if has_ssh and not (record is not None and record.agent) else "agent"


def send(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    if options.console is not None or desk.is_held(name):
        from control.cli.script import type_text

        return type_text(desk)
    params = {"text": options.text, "details": read_json(options.details, "--details"), "timeout_s": options.timeout}
    with connect(desk.runtime, name) as remote:
        answer = remote.call("send", params, timeout_s=options.timeout + 30.0)["answer"]
    desk.show({"name": name, "answer": answer}, json.dumps(answer, indent=1))
    return 0


def read_json(text: str, what: str) -> dict[str, Any]:
    """Read an object a user wrote. Raises ConfigError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} is not JSON: {error}", hint="""as in '{"key": "value"}'""") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is not a JSON object", hint="""as in '{"key": "value"}'""")
    return value
