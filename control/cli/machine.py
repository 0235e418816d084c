"""`unhinged qmp`, `monitor` and `screenshot` (floor 4): what is done with the machine itself."""

from __future__ import annotations

import json
from pathlib import Path

from control.cli.desk import Desk, printable
from control.cli.guest import read_json
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


def screenshot(desk: Desk) -> int:
    name = desk.check_name(desk.options.name)
    with connect(desk.runtime, name) as remote:
        saved = remote.call("screenshot", {"path": str(Path(desk.options.path).absolute())})
    desk.show({"name": name, **saved})
    return 0
