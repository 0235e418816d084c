"""What a guest says, sorted (floor 3): console text apart from messages, messages noted once, answers given to who
waits for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from control.console.scanner import Candidate, MessageScanner
from control.errors import MessageError
from control.vm.journal import Journal
from control.vm.listener import Carrier, Listener
from control.wire import Message, parse_message
from control.wire.message import read_envelope

HELD_LINE_S = 0.5
"""How long the beginning of a possible message is held back before it is shown as the text it may well be."""

REMEMBERED_IDS = 4096
# ECMA-48: device status report (busybox's shell asks where the cursor is at each prompt) and device attributes; ENQ.
_QUESTIONS = re.compile(rb"\x1b\[[?>=]?[0-9;]*[nc]|\x05")
_EMPTY_LINE_AT_END = re.compile(rb"(?:(?<=\n)|\A)(?:\r\n?|\n)\Z")


@dataclass
class Counters:
    """What the guest sent that was of no use; reported at the end, so that nothing is dropped in silence."""

    not_messages: int = 0
    claimed_from_host: int = 0


class Traffic:
    """Takes what comes over the console and the agent's port; hands it to the listener in order.

    Args:
        observe: Called with each message of the guest before the listener is.
    """

    def __init__(self, journal: Journal, listener: Listener, observe: Callable[[Message], None]) -> None:
        self.counters = Counters()
        self._journal = journal
        self._listener = listener
        self._observe = observe
        self._scanner = MessageScanner()
        self._in_order = asyncio.Lock()
        self._release: asyncio.TimerHandle | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._at_line_start = True
        self._empty_line = b""
        self._seen: dict[str, None] = {}
        self._answers: dict[str, asyncio.Future[Message]] = {}

    async def take_console(self, chunk: bytes) -> None:
        """Take console bytes; what may become a message is held back for up to `HELD_LINE_S`."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        async with self._in_order:
            for piece in self._scanner.feed(chunk):
                if isinstance(piece, Candidate):
                    await self._take_candidate(piece.data)
                else:
                    await self._pass_on(piece.data)
            self._journal.flush()
        if self._scanner.holds_back:
            self._release = asyncio.get_running_loop().call_later(HELD_LINE_S, self._start_release)

    def close(self) -> None:
        """Stop the clock of a line that is held back; the listener is told nothing any more."""
        if self._release is not None:
            self._release.cancel()

    async def end_console(self) -> None:
        """Pass on what is still held back, after the console has ended."""
        if self._release is not None:
            self._release.cancel()
        async with self._in_order:
            await self._pass_on(self._scanner.release(), to_the_end=True)

    async def take_agent(self, params: object) -> None:
        """Take the parameters of a `message` notification."""
        await self._take_apart(lambda: read_envelope(params), "agent")

    async def take_share(self, data: bytes | None) -> None:
        """Take a file of the shared directory's outbox; None counts as one that is no message."""
        if data is None:
            self.counters.not_messages += 1
            return
        await self._take_apart(lambda: parse_message(data), "share")

    async def _take_apart(self, read: Callable[[], Message], carrier: Carrier) -> None:
        """Take what comes apart from the console, without getting in the middle of a line of it."""
        try:
            message = read()
        except MessageError:
            self.counters.not_messages += 1
            return
        async with self._in_order:
            await self._take_message(message, carrier)
            self._journal.flush()

    async def show_history(self, history: bytes) -> None:
        """Show console bytes of the past, messages as messages; nothing is noted or answered again.

        Questions to the terminal are left out: it would answer them now, and its answer would be typed into the guest.
        """
        scanner = MessageScanner()
        for piece in scanner.feed(_QUESTIONS.sub(b"", history)):
            message = _read_guest_message(piece.data) if isinstance(piece, Candidate) else None
            if message is not None:
                await self._listener.on_message(message, "console")
            else:
                await self._listener.on_text(piece.data)
        await self._listener.on_text(scanner.release())

    @contextlib.contextmanager
    def expect_answer(self, message: Message) -> Iterator[asyncio.Future[Message]]:
        """Give the future of the answer to `message`, which is about to be sent, and note it in the journal.

        Raises:
            MessageError: One with the same id waits for its answer; nothing was noted.
        """
        if message.id in self._answers:
            raise MessageError(
                f"a message with the id {message.id!r} is under way", hint="give each one an id of its own"
            )
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[message.id] = answer
        self._journal.append(message)
        try:
            yield answer
        finally:
            del self._answers[message.id]

    def _start_release(self) -> None:
        task = asyncio.create_task(self.end_console())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _take_candidate(self, line: bytes) -> None:
        try:
            message = parse_message(line)
        except MessageError:
            self.counters.not_messages += 1
        else:
            if await self._take_message(message, "console"):
                self._empty_line = b""
                return
        await self._pass_on(line)

    async def _pass_on(self, text: bytes, *, to_the_end: bool = False) -> None:
        """Hand text to the listener; an empty line at its end waits for what comes next.

        The guest begins a message with a line feed, to end whatever line may stand there. Where none does, that is an
        empty line, which belongs to the message and goes with it.
        """
        text = self._empty_line + text
        self._empty_line = b""
        # Only the last two bytes can be one: to search all of a burst for it costs more than everything else here.
        match = None if to_the_end else _EMPTY_LINE_AT_END.search(text, max(0, len(text) - 2))
        if match and (match.start() or self._at_line_start):
            self._empty_line = match[0]
            text = text[: match.start()]
        if text:
            self._at_line_start = text.endswith(b"\n")
            await self._listener.on_text(text)

    async def _take_message(self, message: Message, carrier: Carrier) -> bool:
        """Note, pass on and answer a message of the guest; False when it claims to come from the host."""
        if message.direction != "vm-to-host":
            self.counters.claimed_from_host += 1
            if self.counters.claimed_from_host == 1:
                self._listener.on_note("the guest sent a message that claims to come from the host; it has no effect")
            return False
        if message.id and not self._is_new(message.id):
            return True
        self._journal.append(message)
        self._observe(message)
        answer = self._answers.get(message.in_reply_to)
        if answer is not None and not answer.done():
            answer.set_result(message)
        await self._listener.on_message(message, carrier)
        return True

    def _is_new(self, message_id: str) -> bool:
        """Whether this `id` was not seen lately: a message may come over both carriers."""
        if message_id in self._seen:
            return False
        self._seen[message_id] = None
        if len(self._seen) > REMEMBERED_IDS:
            del self._seen[next(iter(self._seen))]
        return True


def _read_guest_message(line: bytes) -> Message | None:
    try:
        message = parse_message(line)
    except MessageError:
        return None
    return message if message.direction == "vm-to-host" else None
