"""`unhinged qmp`, `monitor`, `forward` and `line` (floor 6): what is done with the machine itself."""

from __future__ import annotations

import json

from control.cli.desk import Desk, printable
from control.cli.guest import read_json
from control.errors import ConfigError
from control.spec.network import parse_forward
from control.vm.reach import connect


def qmp(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    params = {"command": options.qmp_command, "arguments": read_json(options.arguments, "the arguments")}
    with connect(desk.runtime, name) as remote:
        answer = remote.call("qmp", params)["return"]
    desk.show({"name": name, "return": answer}, json.dumps(answer, indent=1))
    return 0


def monitor(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    with connect(desk.runtime, name) as remote:
        text: str = remote.call("monitor", {"line": " ".join(desk.options.words)})["text"]
    desk.show({"name": name, "text": text}, "\n".join(printable(line) for line in text.splitlines()))
    return 0


def forward(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    if (options.forward is None) is not (options.action == "list"):
        raise ConfigError(
            "list takes no forward" if options.forward else f"{options.action} needs a forward",
            hint=f"unhinged forward {name} add 8080:80; remove 8080:80; list",
        )
    params = {"action": options.action}
    if options.forward is not None:
        parse_forward(options.forward)
        params["forward"] = options.forward
    with connect(desk.runtime, name) as remote:
        answer = remote.call("forward", params)
    lines = answer["forwards"] if options.action == "list" else [answer["forward"]]
    desk.show({"name": name, "action": options.action, **answer}, "\n".join(lines))
    return 0


def line(desk: Desk) -> int:
    options = desk.options
    name = desk.check_name(options.name)
    how = options.how or "pulse"
    if options.line == "break" and options.how:
        raise ConfigError("a break is sent, and not set", key=options.how, hint=f"unhinged line {name} break")
    params = {"line": options.line, "how": how}
    if options.seconds is not None:
        params["seconds"] = options.seconds
    with connect(desk.runtime, name) as remote:
        remote.call("line", params)
    desk.show({"name": name, "line": options.line, "how": how})
    return 0
