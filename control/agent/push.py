"""Brings the agent into a guest that has nothing but a Python and a shell on a console (floor 2); called by programs.

It is handed the console as a stream and the agent as bytes (`build/agent/unhinged-agent.pyz`). The console is a
terminal: it echoes, cuts lines at 4095 bytes (termios(3), canonical mode), and the kernel talks on it too. So only two
short lines are typed at the shell. They start a receiver, which switches the terminal to raw, takes the agent in
numbered pieces with a checksum each, and answers every one; a piece whose answer does not come is sent again.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from control.errors import AgentProtocolError, ConsoleError, WaitTimeout

PIECE_BYTES = 1536
"""One piece, in base64 2048 characters: the queue of a terminal holds 4096 (Linux, N_TTY_BUF_SIZE)."""

ANSWER_S = 10.0
TRIES = 5
SHELL_S = 60.0
PYTHON_S = 60.0
KEPT_BYTES = 65536

DEFAULT_PATH = "/run/unhinged-agent.pyz"


class Terminal(Protocol):
    """A console of a guest; `control.console.channel.ConsoleChannel` is one."""

    def chunks(self) -> AsyncIterator[bytes]: ...

    async def write(self, data: bytes) -> None: ...


@dataclass(frozen=True)
class Login:
    """How to get from the console's `login:` to a shell.

    Attributes:
        password: None when the user has none.
    """

    user: str = "root"
    password: str | None = None


# In the guest, started by the shell. It is one line in single quotes, so it must hold none of them itself; and short,
# since the line editor of busybox takes 1024 characters. It joins the words, so no echo of this line looks like them.
_STARTER = 'import sys;print("{0}"+"{1} begin");sys.stdout.flush();exec(eval(sys.stdin.readline()))'

# In the guest, read by the starter as one line: the terminal becomes raw, then pieces come, `NUMBER CRC BASE64`.
_RECEIVER = """
import os, sys
def say(text):
    os.write(1, ("\\r\\n" + WORD + " " + text + " .\\r\\n").encode())
try:
    import binascii, hashlib, termios, zlib
except ImportError as error:
    say("fault " + str(error))
    sys.exit(1)
before = termios.tcgetattr(0)
raw = termios.tcgetattr(0)
raw[0] = 0
raw[3] = 0
termios.tcsetattr(0, termios.TCSANOW, raw)
pieces, rest = [], b""
def lines():
    global rest
    while True:
        line, end, after = rest.partition(b"\\n")
        if end:
            rest = after
            yield line.strip()
        else:
            data = os.read(0, 4096)
            if not data:
                sys.exit(1)
            rest += data
def start(data):
    if hashlib.sha256(data).hexdigest() != SUM:
        return "fault what arrived is not what was sent"
    try:
        fd = os.open(PATH + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o700)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
        os.close(fd)
        os.rename(PATH + ".part", PATH)
    except OSError as error:
        return "fault " + str(error)
    gone, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open("/dev/null", os.O_RDWR)
        log = os.open(PATH + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.set_inheritable(alive, True)
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-B", PATH] + OPTIONS)
    os.waitpid(pid, 0)
    os.close(alive)
    import select
    if select.select([gone], [], [], SECONDS)[0]:
        with open(PATH + ".log", errors="replace") as log:
            return "fault the agent ended at once: " + " ".join(log.read(400).split())
    return "started"
try:
    say("raw")
    for line in lines():
        word = line.split(b" ", 2)
        if word[0] == b"end":
            try:
                data = zlib.decompress(b"".join(pieces))
            except zlib.error as error:
                say("fault " + str(error))
                break
            say(start(data))
            break
        try:
            number, total, piece = int(word[0]), int(word[1]), binascii.a2b_base64(word[2])
        except (ValueError, IndexError, binascii.Error):
            continue
        if binascii.crc32(piece) != total or number > len(pieces):
            continue
        if number == len(pieces):
            pieces.append(piece)
        say("got %d" % number)
finally:
    termios.tcsetattr(0, termios.TCSADRAIN, before)
"""

_SECONDS_TO_LIVE = 1.0
"""An agent that cannot open its port ends within this time of its start."""


async def push_agent(
    terminal: Terminal,
    agent: bytes,
    *,
    login: Login | None = None,
    options: Sequence[str] = (),
    path: str = DEFAULT_PATH,
    shell_timeout_s: float = SHELL_S,
) -> None:
    """Install and start the agent through a guest's console; its shell is free again afterwards.

    The agent runs until the guest is switched off. It waits for the port `org.unhinged.agent.0` by itself.

    Args:
        terminal: The console; nobody else reads it meanwhile.
        agent: The zipapp.
        login: How to log in when the console shows `login:`; None for a console that shows a shell.
        options: Command-line options of the agent, for example `--port /dev/ttyS1`.
        path: Where the agent is put; `.log` is added for what it says.
        shell_timeout_s: How long the console may take until a shell answers, a boot included.

    Raises:
        ConsoleError: The console is gone, or the guest cannot take the agent; the message names the step.
        WaitTimeout: A step did not come to its end; names it and shows the last lines.
        AgentProtocolError: The agent was started and ended at once; the message holds what it said.
    """
    async with aclosing(_Dialogue(terminal)) as dialogue:
        await _reach_shell(dialogue, login, shell_timeout_s)
        word = await _start_receiver(dialogue, agent, options, path)
        await _send(dialogue, word, zlib.compress(agent, 9))


async def _reach_shell(dialogue: _Dialogue, login: Login | None, timeout_s: float) -> None:
    """Type until a shell answers; what it is to answer cannot be taken for its own echo."""
    first, second = secrets.token_hex(4), secrets.token_hex(4)
    answer = f"{first}{second}"
    probe = f"\nprintf '%s%s\\n' {first} {second}\n".encode()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    prompt = r"login: *$|assword: *$" if login else r"(?!)"
    asked = False
    await dialogue.type(b"\n" if login else probe)
    while (left := deadline - loop.time()) > 0:
        found = await dialogue.find(rf"{answer}|{prompt}|[#$>] (?:\x1b\[[?0-9;]*[a-zA-Z])*$", min(left, ANSWER_S))
        if found is None:
            await dialogue.type(b"\n" if login and not asked else probe)
        elif found.group() == answer:
            return
        elif login is not None and "login" in found.group():
            if asked and login.password is None:
                raise ConsoleError(
                    f"the guest does not let {login.user} log in on its console",
                    hint="give another user, or a password",
                )
            asked = True
            await dialogue.type(f"{login.user}\n".encode())
        elif login is not None and "assword" in found.group():
            if login.password is None:
                raise ConsoleError(f"the guest asks for a password of {login.user}", hint="give one, or another user")
            await dialogue.type(f"{login.password}\n".encode())
        else:
            await dialogue.type(probe)
    raise dialogue.build_timeout("a shell on the console", timeout_s, "is there one on this console, and is it root's?")


async def _start_receiver(dialogue: _Dialogue, agent: bytes, options: Sequence[str], path: str) -> str:
    """Start the guest's half of the transfer; return the word it begins its answers with."""
    halves = secrets.token_hex(4), secrets.token_hex(4)
    word = "".join(halves)
    starter = _STARTER.format(*halves)
    missing = f"{word}-none"
    # The shell says in two words what it does not find, for the same reason.
    await dialogue.type(f"python3 -c '{starter}' || printf '%s%s-none\\n' {halves[0]} {halves[1]}\n".encode())
    found = await dialogue.find(rf"{word} begin|{missing}", PYTHON_S)
    if found is None:
        raise dialogue.build_timeout("Python in the guest", PYTHON_S, "does python3 start there?")
    if found.group() == missing:
        raise ConsoleError("the guest has no python3 that starts", hint="install python3 there, 3.9 or newer")
    names = {
        "WORD": word,
        "SUM": hashlib.sha256(agent).hexdigest(),
        "PATH": path,
        "OPTIONS": list(options),
        "SECONDS": _SECONDS_TO_LIVE,
    }
    program = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + _RECEIVER
    # Compressed and quoted, it is one line well below what a terminal in canonical mode takes.
    packed = base64.b64encode(zlib.compress(program.encode(), 9)).decode()
    line = f'__import__("zlib").decompress(__import__("binascii").a2b_base64("{packed}"))\n'
    await dialogue.type(line.encode())
    await _expect(dialogue, word, "raw", "the receiver in the guest", PYTHON_S)
    return word


async def _send(dialogue: _Dialogue, word: str, packed: bytes) -> None:
    for number, at in enumerate(range(0, len(packed), PIECE_BYTES)):
        piece = packed[at : at + PIECE_BYTES]
        line = f"\n{number} {zlib.crc32(piece)} {base64.b64encode(piece).decode()}\n".encode()
        for _ in range(TRIES):
            await dialogue.type(line)
            if await dialogue.find(rf"{word} got {number} \.", ANSWER_S):
                break
        else:
            raise dialogue.build_timeout(f"piece {number} to arrive", ANSWER_S * TRIES, "does the console take input?")
    await dialogue.type(b"\nend\n")
    await _expect(dialogue, word, "started", "the agent to start", PYTHON_S)


async def _expect(dialogue: _Dialogue, word: str, wanted: str, what: str, timeout_s: float) -> None:
    found = await dialogue.find(rf"{word} (?:({wanted})|fault ([^\r\n]*)) \.|{word}-none", timeout_s)
    if found is None:
        raise dialogue.build_timeout(what, timeout_s, "see the console's last lines")
    if found.group(1) is None:
        fault = (found.group(2) or "its Python could not run the receiver").strip()
        if "ended at once" in fault:
            raise AgentProtocolError(fault, hint="has the machine the port, and is no other agent using it?")
        raise ConsoleError(f"the guest cannot take the agent: {fault}", hint="is there room, and is the shell root's?")


class _Dialogue:
    """What the console said since something was last found in it."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._chunks = terminal.chunks()
        self._next: asyncio.Task[bytes] | None = None
        self._text = ""
        self._last = ""

    async def aclose(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)
        if isinstance(self._chunks, AsyncGenerator):
            await self._chunks.aclose()

    async def type(self, data: bytes) -> None:
        await self._terminal.write(data)

    async def find(self, pattern: str, timeout_s: float) -> re.Match[str] | None:
        """Read until `pattern` is there, and forget everything up to its end; None when it did not come."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (found := re.search(pattern, self._text)) is None:
            if self._next is None:
                self._next = asyncio.ensure_future(anext(self._chunks, b""))
            done, _ = await asyncio.wait({self._next}, timeout=max(0.0, deadline - loop.time()))
            if not done:
                return None
            chunk, self._next = self._next.result(), None
            if not chunk:
                raise ConsoleError("the console is gone: QEMU hung up", hint="is the VM still running?")
            text = chunk.decode("utf-8", "replace")
            self._text = (self._text + text)[-KEPT_BYTES:]
            self._last = (self._last + text)[-2000:]
        self._text = self._text[found.end() :]
        return found

    def build_timeout(self, waited_for: str, seconds: float, hint: str) -> WaitTimeout:
        plain = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|[^\t\n\x20-\x7e]", "", self._last)
        lines = [line[:200] for line in plain.splitlines() if line.strip()]
        return WaitTimeout(waited_for, seconds, last_seen=lines[-5:], hint=hint)
