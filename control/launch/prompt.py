"""The commands behind Ctrl-] (floor 6): read a line, do it, show the result."""

from __future__ import annotations

import asyncio
import codecs
import difflib
import json
import shlex
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from control.console.tail import to_plain_text
from control.errors import ConfigError, ControlError
from control.launch.render import render_error
from control.units import format_duration, format_size
from control.vm.screen import save_screenshot
from control.vm.vm import VM, build_command

if TYPE_CHECKING:
    from control.agent.trees import Copied

ANSWER_TIMEOUT_S = 30.0
MAX_STEP_S = 1.0
"""How often the progress of a copy is shown."""

Say = Callable[[str], Awaitable[None]]
"""Shows a piece of text at once."""


@dataclass(frozen=True)
class Command:
    """One word of the prompt: how it is used and what it does."""

    usage: str
    effect: str
    run: Callable[[VM, str, Say], Awaitable[str]]


class EndOfTalk(Exception):
    """Leave the console: `detach` lets the VM run on, `quit` brings it down."""

    def __init__(self, *, detach: bool) -> None:
        super().__init__()
        self.detach = detach


async def run_command(vm: VM, line: str, say: Say) -> str:
    """Do what `line` says and return what there is to show at its end; an error is shown, not raised.

    What a command has to show before its end goes to `say`. Cancelled, it ends what it began in the guest.

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
        return await command.run(vm, rest.strip(), say)
    except ControlError as error:
        return render_error(error, colour=False)


async def _help(vm: VM, rest: str, say: Say) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"  {command.usage:<{width}}  {command.effect}" for command in COMMANDS.values()]
    lines.append(f"  {'steal':<{width}}  take the keyboard back from whoever has it")
    return "\n".join([*lines, f"  {'(an empty line)':<{width}}  back to the guest", ""])


async def _monitor(vm: VM, rest: str, say: Say) -> str:
    if not rest:
        raise ConfigError("monitor needs a command", hint="as in: monitor info status")
    return (await vm.monitor.human(rest)).replace("\r", "").rstrip() or "done"


async def _qmp(vm: VM, rest: str, say: Say) -> str:
    name, _, arguments = rest.partition(" ")
    if not name:
        raise ConfigError("qmp needs a command", hint='as in: qmp query-status, or qmp device_del {"id": "x"}')
    return json.dumps(await vm.monitor.execute(name, _read_json_object(arguments)), indent=1)


async def _send(vm: VM, rest: str, say: Say) -> str:
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


async def _exec(vm: VM, rest: str, say: Say) -> str:
    argv = _split(rest)
    if not argv:
        raise ConfigError("exec needs a command", hint="as in: exec uname -a (no shell: for one, exec sh -c '…')")
    await vm.agent.wait_until_ready(ANSWER_TIMEOUT_S)
    async with await vm.guest.exec(argv) as running:
        await asyncio.gather(*(_show(output, say) for output in (running.stdout, running.stderr) if output is not None))
        status = await running.wait()
    return f"[killed by signal {status.signal}]" if status.signal else f"[exit code {status.exit_code}]"


async def _show(output: AsyncIterable[bytes], say: Say) -> None:
    """Show what comes, as plain text; a character that was cut in two waits for its other half."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for chunk in output:
        await say(to_plain_text(decoder.decode(chunk).encode()))
    await say(to_plain_text(decoder.decode(b"", final=True).encode()))


async def _put(vm: VM, rest: str, say: Say) -> str:
    *sources, target = _split_copy("put", rest)
    await vm.agent.wait_until_ready(ANSWER_TIMEOUT_S)
    return await _copy(lambda progress: vm.guest.put(sources, target, progress=progress), say)


async def _get(vm: VM, rest: str, say: Say) -> str:
    *sources, target = _split_copy("get", rest)
    await vm.agent.wait_until_ready(ANSWER_TIMEOUT_S)
    return await _copy(lambda progress: vm.guest.get(sources, target, progress=progress), say)


async def _copy(begin: Callable[[Callable[[int], None]], Coroutine[Any, Any, Copied]], say: Say) -> str:
    """Copy, show how far it is now and then, and return what was copied."""
    done = 0

    def note(content_bytes: int) -> None:
        nonlocal done
        done = content_bytes

    started = time.monotonic()
    copying = asyncio.create_task(begin(note))
    try:
        while not (await asyncio.wait((copying,), timeout=MAX_STEP_S))[0]:
            await say(f"{format_size(done)}\n")
        copied = copying.result()
    finally:
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
    took = format_duration(time.monotonic() - started)
    left_out = f", {copied.skipped} sockets and devices left out" if copied.skipped else ""
    changed = f", changed meanwhile: {', '.join(copied.changed[:5])}" if copied.changed else ""
    files = "1 entry" if copied.entries == 1 else f"{copied.entries} entries"
    return to_plain_text(f"{files}, {format_size(copied.content_bytes)} in {took}{left_out}{changed}".encode())


def _split(rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"that line cannot be split into words: {error}") from error


def _split_copy(word: str, rest: str) -> list[str]:
    words = _split(rest)
    if len(words) < 2:
        hint = "put FILE… /path/in/the/guest" if word == "put" else "get /path/in/the/guest… FILE"
        raise ConfigError(f"{word} needs what to copy, and where to", hint=f"as in: {hint}")
    return words


async def _screenshot(vm: VM, rest: str, say: Say) -> str:
    name = rest or f"{vm.name}-{datetime.now():%Y%m%d-%H%M%S}.png"
    path = Path(name).expanduser().absolute()
    await save_screenshot(vm.monitor, path)
    return f"saved as {path}"


async def _status(vm: VM, rest: str, say: Say) -> str:
    phases = ", ".join(f"{phase} after {format_duration(seconds)}" for phase, seconds in vm.phases.items())
    lines = [
        f"VM {vm.name}: {vm.state.value}, QEMU says {await vm.monitor.query_runstate()}, accelerator {vm.accelerator}",
        f"boot: {phases or 'not watched'}",
        f"files: {vm.files.directory}",
    ]
    return "\n".join(lines)


async def _pause(vm: VM, rest: str, say: Say) -> str:
    await vm.monitor.execute("stop")
    return "paused"


async def _resume(vm: VM, rest: str, say: Say) -> str:
    await vm.monitor.execute("cont")
    return "runs"


async def _detach(vm: VM, rest: str, say: Say) -> str:
    raise EndOfTalk(detach=True)


async def _quit(vm: VM, rest: str, say: Say) -> str:
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
    "put": Command("put FILE… PATH", "copy files and directories into the guest", _put),
    "get": Command("get PATH… FILE", "copy files and directories out of the guest", _get),
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
