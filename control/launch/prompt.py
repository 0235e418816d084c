"""The commands behind Ctrl-] (floor 4): read a line, do it, show the result."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from control.console.tail import to_plain_text
from control.errors import ConfigError, ControlError
from control.launch.render import render_error
from control.units import format_duration
from control.vm.screen import save_screenshot
from control.vm.vm import VM, build_command

ANSWER_TIMEOUT_S = 30.0
EXEC_TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Command:
    """One word of the prompt: how it is used and what it does."""

    usage: str
    effect: str
    run: Callable[[VM, str], Awaitable[str]]


class EndOfTalk(Exception):
    """Leave the console: `detach` lets the VM run on, `quit` brings it down."""

    def __init__(self, *, detach: bool) -> None:
        super().__init__()
        self.detach = detach


async def run_command(vm: VM, line: str) -> str:
    """Do what `line` says and return what there is to show; an error is shown, not raised.

    Raises:
        EndOfTalk: For `detach` and `quit`.
    """
    word, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(word) or COMMANDS.get(_SHORT.get(word, ""))
    if command is None:
        close = difflib.get_close_matches(word, COMMANDS, n=1)
        return f"no such command: {to_plain_text(word.encode())[:40]}" + (
            f"; did you mean {close[0]}?" if close else "; `help` lists them"
        )
    try:
        return await command.run(vm, rest.strip())
    except ControlError as error:
        return render_error(error, colour=False)


async def _help(vm: VM, rest: str) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  {command.usage:<{width}}  {command.effect}" for command in COMMANDS.values()]
    return "\n".join([*lines, f"  {'(an empty line)':<{width}}  back to the guest", ""])


async def _monitor(vm: VM, rest: str) -> str:
    if not rest:
        raise ConfigError("monitor needs a command", hint="as in: monitor info status")
    return (await vm.monitor.human(rest)).replace("\r", "").rstrip() or "done"


async def _qmp(vm: VM, rest: str) -> str:
    name, _, arguments = rest.partition(" ")
    if not name:
        raise ConfigError("qmp needs a command", hint='as in: qmp query-status, or qmp device_del {"id": "x"}')
    return json.dumps(await vm.monitor.execute(name, _read_json_object(arguments)), indent=1)


async def _send(vm: VM, rest: str) -> str:
    """Send a message; its answer is also shown among the console's messages, so here only a word."""
    if not rest:
        raise ConfigError("send needs a message", hint='as in: send diagnostics, or send show text {"text": "hello"}')
    if rest.startswith("{") and '"direction"' in rest:
        envelope = _read_json_object(rest)
    else:
        verb, brace, details = rest.partition("{")
        kind: Literal["command", "graphics"] = (
            "graphics" if verb.strip() in ("show text", "show picture", "set mode") else "command"
        )
        envelope = build_command(kind, verb.strip(), _read_json_object(brace + details))
    answer = await vm.send(envelope, timeout_s=ANSWER_TIMEOUT_S)
    return f"{answer.type}: {to_plain_text(answer.text.encode())}\n{json.dumps(dict(answer.details), indent=1)}"


async def _exec(vm: VM, rest: str) -> str:
    try:
        argv = shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"that line cannot be split into words: {error}") from error
    if not argv:
        raise ConfigError("exec needs a command", hint="as in: exec uname -a (no shell: for one, exec sh -c '…')")
    await vm.agent.wait_until_ready(ANSWER_TIMEOUT_S)
    result = await vm.agent.call("exec_command", {"argv": argv}, timeout_s=EXEC_TIMEOUT_S)
    text = to_plain_text((str(result.get("stdout", "")) + str(result.get("stderr", ""))).encode("utf-8", "replace"))
    ended = f"killed by signal {result['signal']}" if result.get("signal") else f"exit code {result.get('exit_code')}"
    if result.get("truncated"):
        ended += "; the output was longer, and is cut"
    return f"{text.rstrip()}\n[{ended}]".lstrip("\n")


async def _screenshot(vm: VM, rest: str) -> str:
    name = rest or f"{vm.name}-{datetime.now():%Y%m%d-%H%M%S}.png"
    path = Path(name).expanduser().absolute()
    await save_screenshot(vm.monitor, path)
    return f"saved as {path}"


async def _status(vm: VM, rest: str) -> str:
    phases = ", ".join(f"{phase} after {format_duration(seconds)}" for phase, seconds in vm.phases.items())
    lines = [
        f"VM {vm.name}: {vm.state.value}, QEMU says {await vm.monitor.query_runstate()}, accelerator {vm.accelerator}",
        f"boot: {phases or 'not watched'}",
        f"files: {vm.files.directory}",
    ]
    return "\n".join(lines)


async def _pause(vm: VM, rest: str) -> str:
    await vm.monitor.execute("stop")
    return "paused"


async def _resume(vm: VM, rest: str) -> str:
    await vm.monitor.execute("cont")
    return "runs"


async def _detach(vm: VM, rest: str) -> str:
    raise EndOfTalk(detach=True)


async def _quit(vm: VM, rest: str) -> str:
    raise EndOfTalk(detach=False)


def _read_json_object(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"that is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("a JSON object is needed", hint='as in {"text": "hello"}')
    return value


COMMANDS = {
    "help": Command("help", "this list", _help),
    "status": Command("status", "what the VM does", _status),
    "exec": Command("exec COMMAND…", "run a command in the guest", _exec),
    "send": Command("send MESSAGE [JSON]", "send the guest a message and show its answer", _send),
    "monitor": Command("monitor COMMAND…", "a command of QEMU's human monitor", _monitor),
    "qmp": Command("qmp COMMAND [JSON]", "a QMP command", _qmp),
    "screenshot": Command("screenshot [FILE]", "save the guest's screen (.png or .ppm)", _screenshot),
    "pause": Command("pause", "stop the guest's CPUs", _pause),
    "resume": Command("resume", "let them run again", _resume),
    "detach": Command("detach", "leave the VM running and go", _detach),
    "quit": Command("quit", "shut the VM down and go", _quit),
}
_SHORT = {"?": "help", "q": "quit", "d": "detach", "exit": "quit", "x": "exec", "m": "monitor", "s": "screenshot"}
