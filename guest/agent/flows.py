"""Moves bytes between a stream and a generator, in slices and as the user of `run_as` (guest floor).

Made by `handlers/transfer.py` and `handlers/file.py`. The end of either is told once, by `done(result, error)`; by then
the generator has cleared up.
"""

import os
from time import monotonic

from . import dispatch, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .loop import Timer
    from .main import Agent
    from .streams import Reader

_TURN_S = 0.01
# What the host may send beyond what it has been told is gone: enough to keep it sending, little enough to hold.
_AHEAD_BYTES = 1024 * 1024


def _check_room(agent: "Agent") -> None:
    if agent.guard.flows >= agent.config["transfers_concurrent"]:
        text = "%d transfers are running already" % agent.guard.flows
        raise dispatch.CallError(dispatch.BUSY, text)


class _Flow:
    """What both directions have in common."""

    def __init__(self, agent: "Agent", work: "Generator[Any, Any, Any]", done: "Callable[..., Any]") -> None:
        agent.guard.flows += 1
        timeout_s = agent.config["transfer_timeout_s"]
        self._loop = agent.loop
        self._guard = agent.guard
        self._work = work
        self._done = done
        self._ended = False
        self._begun = False
        self._timer: "Timer | None" = None
        if timeout_s:
            self._timer = agent.loop.later(timeout_s, self._time_out)

    def cancel(self) -> None:
        """The host has given it up."""
        self.stop(dispatch.CallError(dispatch.CANCELLED, "it was cancelled"))

    def stop(self, error: Exception) -> None:
        """Ends it early: the generator clears up."""
        if not self._ended:
            try:
                with self._guard.as_user():
                    if not self._begun:
                        next(self._work)  # one that has not begun would not clear up
                    self._work.close()
            except Exception as failure:
                self._end(None, failure)
            else:
                self._end(None, error)

    def reset(self, reason: str) -> None:
        """Gives the stream up and tells the host why."""
        raise NotImplementedError

    def _time_out(self) -> None:
        text = "it took longer than transfer_timeout_s of the agent's configuration"
        self.stop(dispatch.CallError(dispatch.FAILED, text))

    def _lose(self, reason: str) -> None:
        self.stop(dispatch.CallError(dispatch.CANCELLED, reason or "the host gave the stream up"))

    def _end(self, result: "Any", error: "Exception | None") -> None:
        self._ended = True
        self._guard.flows -= 1
        if self._timer is not None:
            self._timer.cancel()
        if error is not None:
            self.reset(str(error))
        self._done(result, error)


class Outflow(_Flow):
    """Sends what the generator yields: bytes that nobody changes any more, or None to let others have their turn."""

    def __init__(
        self,
        agent: "Agent",
        work: "Generator[Any, Any, Any]",
        done: "Callable[..., Any]",
        number: int,
    ) -> None:
        _check_room(agent)
        self._writer = agent.streams.open_writer(number, self._lose)
        _Flow.__init__(self, agent, work, done)
        self._loop.soon(self._go_on)

    def reset(self, reason: str) -> None:
        self._writer.reset(reason)

    def _go_on(self) -> None:
        if self._ended:
            return
        self._begun = True
        until = monotonic() + _TURN_S
        try:
            with self._guard.as_user():
                while monotonic() < until:
                    piece = next(self._work)
                    if piece is not None and not self._writer.write(piece):
                        self._writer.when_ready(self._go_on)
                        return
        except StopIteration as end:
            self._writer.end()
            self._end(end.value, None)
            return
        except Exception as error:
            self._end(None, error)
            return
        self._loop.soon(self._go_on)


class Sink:
    """Where bytes go. `run` is a generator that eats `view`.

    It yields None where it may be interrupted, and must when `view` is empty; when the stream has ended there,
    EOFError is thrown into it. It yields a `files.NeedSync` to wait for a disk.
    """

    def __init__(self) -> None:
        self.view = memoryview(b"")

    def run(self) -> "Generator[Any, Any, Any]":
        raise NotImplementedError


class Inflow(_Flow):
    """Feeds a sink from a stream, or with what its `view` holds already when there is none.

    A sink that waits holds up its own stream only.
    """

    def __init__(
        self,
        agent: "Agent",
        sink: Sink,
        done: "Callable[..., Any]",
        number: "int | None",
    ) -> None:
        self._reader: "Reader | None" = None
        if number is not None:
            _check_room(agent)
            self._reader = agent.streams.open_reader(number, self._take, self._hear_end, self._lose)
            self._reader.grant(_AHEAD_BYTES)
        self._sink = sink
        self._waiting: "list[bytes]" = []
        self._size = 0
        self._idle = False
        self._stream_ended = number is None
        _Flow.__init__(self, agent, sink.run(), done)
        self._loop.soon(self._go_on)

    def reset(self, reason: str) -> None:
        if self._reader is not None and not self._stream_ended:
            self._reader.reset(reason)

    def _take(self, piece: memoryview) -> None:
        if self._ended:
            return
        if not self._idle:
            self._waiting.append(bytes(piece))
            return
        self._begin_piece(piece)
        self._go_on()
        # What was not eaten yet is needed later, and the memory of the piece is not ours.
        self._sink.view = memoryview(bytes(self._sink.view))

    def _hear_end(self) -> None:
        self._stream_ended = True
        if self._idle:
            self._go_on()

    def _begin_piece(self, piece: "bytes | memoryview") -> None:
        self._sink.view = memoryview(piece)
        self._size = len(piece)

    def _go_on(self, error: "Exception | None" = None) -> None:
        if self._ended:
            return
        self._idle = False
        self._begun = True
        until = monotonic() + _TURN_S
        try:
            with self._guard.as_user():
                while monotonic() < until:
                    wish = next(self._work) if error is None else self._work.throw(error)
                    error = None
                    if wish is not None:
                        self._sync(wish.fd)
                        return
                    if not self._sink.view:
                        self._grant()
                        if self._waiting:
                            self._begin_piece(self._waiting.pop(0))
                        elif self._stream_ended:
                            error = EOFError("the stream ended too early")
                        else:
                            self._idle = True
                            return
        except StopIteration as end:
            self._grant()
            self._end(end.value, None)
            return
        except EOFError as failure:
            self._end(None, files.Corrupted(str(failure)))
            return
        except Exception as failure:
            self._end(None, failure)
            return
        self._loop.soon(lambda: self._go_on(error))

    def _grant(self) -> None:
        if self._size and self._reader is not None and not self._stream_ended:
            self._reader.grant(self._size)
        self._size = 0

    def _sync(self, fd: int) -> None:
        # The sink may be stopped, and close the file, before the disk has answered.
        own = os.dup(fd)

        def done() -> None:
            os.close(own)
            self._go_on(OSError(sync.error, "the disk did not take it") if sync.error else None)

        sync = files.Sync(self._loop, own, done)
