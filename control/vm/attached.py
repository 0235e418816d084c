"""A seat at a console, for programs that do not write asyncio (floor 3): read what it says, type, leave.

What the console says is read from its file, so nothing is lost or doubled, and the death of the supervisor is no more
than a pause in what can be typed: the next one is asked for a seat, and reading goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from control.console.follow import open_watch
from control.console.plain import ESCAPES
from control.errors import ConsoleError, ControlError, HostError, StateError, WaitTimeout
from control.process.punch import KEPT_BYTES
from control.vm.remote import Remote, encode_input, read_answer

READ_BYTES = 256 * 1024
PIECE_BYTES = 32 * 1024
WINDOW_BYTES = 256 * 1024
"""What a supervisor takes before it says that it was taken (docs/control.md)."""

SEAT_WAIT_S = 30.0
LEAVE_WAIT_S = 1.0
"""What was typed last has so long to arrive before a seat is left: with the seat goes what waits in the supervisor."""

LINE_MAX_BYTES = 4096
LOOK_S = 5.0
"""Some file systems (those of a network among them) tell of no change."""

Turn = Literal["yours", "waiting", "lost", "reading"]


class Attached:
    """A seat at one console. Use it as a context manager. Not thread-safe.

    Args:
        connect: Opens a connection to the supervisor, and starts one where there is none.
        console: Its name; empty for the machine's first.
        mode: As `attach` has it (docs/control.md).
        who: What others are told of us.
        start: Where in the history to begin: a number of bytes from its beginning, or, negative, from its end; None for
            what comes from now on.

    Attributes:
        console: Its name.
        log: The file.
        position: How far in it we have read.
        missed: Bytes that could not be read because the host had given their blocks back meanwhile.
        turn, holder: Whether we may type, and who has the keyboard.
        how: How it ended; empty while it has not.

    Raises:
        StateError: The machine does not run, or has no such console.
        WaitTimeout: The supervisor, or the agent for a shell, did not answer.
    """

    def __init__(
        self,
        connect: Callable[[], Remote],
        *,
        console: str = "",
        mode: Literal["write", "steal", "read"] = "write",
        who: str = "",
        start: int | None = None,
    ) -> None:
        self.console = console
        self.turn: Turn = "reading"
        self.holder = ""
        self.how = ""
        self.missed = 0
        self.notes: list[str] = []
        self._connect = connect
        self._mode = mode
        self._who = who or f"pid {os.getpid()}"
        self._size: tuple[int, int] | None = None
        self._outstanding = 0
        self._refused = 0
        self._refusal = ""
        self._remote: Remote | None = None
        self._call = 0
        self._descriptor = self._watch = -1
        try:
            size = self._sit()
            self._descriptor = os.open(self.log, os.O_RDONLY | os.O_CLOEXEC)
            self._watch = open_watch(self._descriptor)
        except OSError as error:
            self.close()
            raise HostError(f"{self.log} cannot be read: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        self.position = size if start is None else max(0, size + start) if start < 0 else min(start, size)
        self._skip_what_is_gone()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; a second time there is nothing left to do. Whoever waits for the keyboard gets it."""
        if self._remote is not None:
            with contextlib.suppress(ControlError):  # a guest that does not read is left with what it has
                self.wait_until_typed(LEAVE_WAIT_S)
        if self._remote is not None:
            self._remote.close()
            self._remote = None
        for descriptor in (self._watch, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._watch = self._descriptor = -1

    @property
    def is_closed(self) -> bool:
        return self._descriptor < 0

    # -- what it says ----------------------------------------------------------------------------------------------

    def filenos(self) -> tuple[int, ...]:
        """What becomes readable when there is something to `read` or to `attend`; they change when we sit down anew."""
        return (self._watch, self._remote.fileno()) if self._remote is not None else (self._watch,)

    def read(self, size: int = READ_BYTES) -> bytes:
        """Return what it has said since, at most `size` bytes; empty when that is nothing.

        Raises:
            ConsoleError: This seat was left.
        """
        if self.is_closed:
            raise ConsoleError("this seat was left", hint="attach again")
        with contextlib.suppress(BlockingIOError):  # looked at before the file is: what comes after that is told again
            os.read(self._watch, READ_BYTES)
        self._skip_what_is_gone()
        data = os.pread(self._descriptor, size, self.position)
        self.position += len(data)
        return data

    def begin_at_the_last_line(self) -> None:
        """Go back to where the last line begins, if it says anything: to a prompt that waits for us."""
        end = self.position
        self.position = max(0, end - LINE_MAX_BYTES)
        said = self.read(end - self.position)
        begins = said.rfind(b"\n") + 1
        self.position = end if not ESCAPES.sub(b"", said[begins:]).strip() else end - len(said) + begins

    def wait(self, within_s: float | None, *others: int) -> set[int]:
        """Wait until there may be something to read or attend, or one of `others` is readable; return those that are.

        An empty set means that it took too long, or that only we have news.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        if self._has_more():
            deadline = 0.0  # whoever says a lot must not keep the others from being heard
        ours = self.filenos()
        poller = select.poll()
        for descriptor in (*ours, *others):
            poller.register(descriptor, select.POLLIN)
        while True:
            left = LOOK_S if deadline is None else min(LOOK_S, max(0.0, deadline - time.monotonic()))
            ready = {descriptor for descriptor, _ in poller.poll(left * 1000)}
            if ready or self._has_more() or (deadline is not None and time.monotonic() >= deadline):
                return ready - set(ours)

    def attend(self) -> None:
        """Take in what the supervisor has told; one that is gone is replaced. Raises what it ended of."""
        remote = self._remote
        while remote is not None and not self.how and select.select([remote], [], [], 0)[0]:
            if not remote.receive():
                self._sit_again(remote)
                return
            self._drain(remote)

    @property
    def is_over(self) -> bool:
        """Whether it has ended and all of it was read."""
        return bool(self.how) and not self._has_more()

    # -- what is typed ---------------------------------------------------------------------------------------------

    def type(self, data: bytes, within_s: float = SEAT_WAIT_S) -> None:
        """Type `data`; returns when the supervisor has it, which may be before the guest reads it.

        Raises:
            ConsoleError: The console has ended, somebody else has the keyboard, or what was typed before was not let
                through; how much of `data` arrived is unknown.
            WaitTimeout: The guest does not read what is typed.
        """
        deadline = time.monotonic() + within_s
        view = memoryview(data)
        while view:
            self.attend()
            self._raise_refusal()
            remote = self._remote
            if self.how or remote is None:
                raise ConsoleError(f"nothing can be typed: {self.how or 'this seat was left'}", hint="attach again")
            if self.turn != "yours":
                raise ConsoleError(
                    f"the keyboard is with {self.holder or 'somebody else'}", hint="wait for it, or steal it"
                )
            if self._outstanding + min(len(view), PIECE_BYTES) > WINDOW_BYTES:
                self._wait_for_word(deadline, "the guest to read what is typed")
                continue
            piece = view[:PIECE_BYTES]
            view = view[len(piece) :]
            self._outstanding += len(piece)
            try:
                remote.notify("input", call=self._call, data=encode_input(bytes(piece)))
            except StateError:
                self._sit_again(remote)
                raise ConsoleError(
                    "the supervisor has gone while something was typed", hint="look at what arrived, and type the rest"
                ) from None

    def _raise_refusal(self) -> None:
        if self._refused:
            refused, self._refused = self._refused, 0
            raise ConsoleError(f"{refused} bytes were not typed: {self._refusal}")

    @property
    def can_type_at_once(self) -> bool:
        """Whether a piece of `PIECE_BYTES` can be typed without waiting for the guest."""
        return self._outstanding + PIECE_BYTES <= WINDOW_BYTES

    def wait_until_typed(self, within_s: float) -> None:
        """Wait until the console has taken all that was typed. Raises ConsoleError, WaitTimeout as `type`."""
        deadline = time.monotonic() + within_s
        while self._outstanding > 0 and self._remote is not None and not self.how:
            self._wait_for_word(deadline, "the guest to read what is typed")
        self._raise_refusal()

    def wait_for_turn(self, within_s: float) -> None:
        """Wait until the keyboard is ours. Raises WaitTimeout; ConsoleError when the console ends."""
        deadline = time.monotonic() + within_s
        self.attend()
        while self.turn != "yours":
            if self.how:
                raise ConsoleError(f"nothing can be typed: {self.how}")
            self._wait_for_word(deadline, f"the keyboard, which {self.holder or 'somebody else'} has")

    def steal(self) -> None:
        """Take the keyboard from whoever has it; `turn` tells when it is ours."""
        self._wish("steal")

    def queue(self) -> None:
        """Have the keyboard when nobody before us wants it."""
        self._wish("write")

    def release(self) -> None:
        """Leave the keyboard to others, and read on."""
        self._wish("read")

    def resize(self, rows: int, columns: int) -> None:
        """Let the console have this size while we have the keyboard; without a size (0) nothing is done."""
        if rows > 0 and columns > 0:
            self._size = (min(rows, 10000), min(columns, 10000))
            self._tell_size()

    # -- the supervisor --------------------------------------------------------------------------------------------

    def _sit(self) -> int:
        """Ask for a seat, and return how long the console is."""
        self._remote = remote = self._connect()
        self._outstanding = 0
        params = {"console": self.console, "mode": self._mode, "who": self._who[:200]}
        self._call = remote.begin("attach", params)
        size = -1
        for message in remote.messages(SEAT_WAIT_S):
            self._take(message)
            if message.get("method") == "attached":
                self.console = message["params"]["console"]
                self.log = Path(message["params"]["log"])
                size = int(message["params"]["bytes"])
                self._tell_size()
            elif message.get("method") == "turn" and size >= 0:
                self._drain(remote)
                return size
            elif self.how:
                break
        raise StateError("there is no seat at this console", state=self.how or "unknown", required=("RUNNING",))

    def _sit_again(self, gone: Remote) -> None:
        """Take a seat with the supervisor that comes after one that was killed; the console may have ended with it."""
        gone.close()
        self._remote = None
        before = os.fstat(self._descriptor).st_ino
        try:
            self._sit()
        except ControlError as error:
            self.how = str(error)
            return
        if self.log.stat().st_ino != before:
            self.how = "it ended, and another has begun"

    def _drain(self, remote: Remote) -> None:
        while (message := remote.take_message()) is not None:
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case None if message.get("id") == self._call:
                self.how = str(read_answer(message)["how"])
            case "turn":
                self.turn, self.holder = params["turn"], params["holder"]
            case "taken":
                self._outstanding -= params["bytes"]
            case "refused":
                self._refused += params["bytes"]
                self.holder = params["holder"]
                self._refusal = params["why"]
            case "note":
                self.notes.append(params["text"])

    def _wait_for_word(self, deadline: float, what: str) -> None:
        assert self._remote is not None
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(what, 0.0)
        select.select([self._remote], [], [], left)
        self.attend()

    def _wish(self, wants: str) -> None:
        self._mode = {"steal": "steal", "write": "write", "read": "read"}[wants]  # type: ignore[assignment]
        if self._remote is not None and not self.how:
            self._remote.notify("turn", call=self._call, wants=wants)

    def _tell_size(self) -> None:
        if self._size is not None and self._remote is not None and not self.how:
            self._remote.notify("resize", call=self._call, rows=self._size[0], columns=self._size[1])

    # -- the file --------------------------------------------------------------------------------------------------

    def _has_more(self) -> bool:
        return os.fstat(self._descriptor).st_size > self.position

    def _skip_what_is_gone(self) -> None:
        """Go on behind what the host has given back of the file: it would read as zeros."""
        if os.fstat(self._descriptor).st_size - self.position <= KEPT_BYTES:
            return
        try:
            data = os.lseek(self._descriptor, self.position, os.SEEK_DATA)
        except OSError:
            return  # nothing is there yet
        if data > self.position:
            self.missed += data - self.position
            self.position = data


@contextlib.contextmanager
def attach(
    runtime: Path,
    name: str,
    *,
    console: str = "",
    mode: Literal["write", "steal", "read"] = "write",
    who: str = "",
    start: int | None = None,
) -> Iterator[Attached]:
    """A seat at a console of the instance `name` for the body; see `Attached`, whose errors it raises."""
    from control.vm.reach import connect

    with Attached(lambda: connect(runtime, name), console=console, mode=mode, who=who, start=start) as attached:
        yield attached
