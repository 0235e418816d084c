"""Everything that can go wrong, as records with a way out (floor 0).

Each error carries one clear sentence (`str(error)`), its evidence as attributes, a `hint` that says what to do
next, and the `exit_code` a face ends with. Only the faces (floor 6) print or exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_GUEST_PANICKED = 3
EXIT_QEMU_DIED = 4
EXIT_BOOT_HUNG = 5
EXIT_TIMEOUT = 124
EXIT_INTERRUPTED = 130


class ControlError(Exception):
    """The root of all errors of this package.

    Attributes:
        hint: What the user can do next; empty when there is nothing sensible to say.
        exit_code: The process exit code a face uses for this error.
    """

    exit_code = EXIT_ERROR

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def evidence(self) -> tuple[str, ...]:
        """Lines that show what was seen, most telling first; bounded, printable text."""
        return ()


class ConfigError(ControlError):
    """What the user asked for is not possible as written: a wrong value, a missing file, an unknown key."""

    exit_code = EXIT_USAGE

    def __init__(self, message: str, *, file: Path | None = None, key: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.key = key


class HostError(ControlError):
    """This host lacks something: a program, a right, a device, memory, disk space."""


class LaunchError(ControlError):
    """QEMU could not be started, or ended before its monitor answered; nothing of it is left running."""

    exit_code = EXIT_QEMU_DIED

    def __init__(
        self, message: str, *, argv: Sequence[str], return_code: int | None, output_tail: Sequence[str], hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = tuple(argv)
        self.return_code = return_code
        self.output_tail = tuple(output_tail)

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.output_tail


class BootError(ControlError):
    """The guest did not come up, or broke down; `code` is the cause's short name, `seen` the lines that show it."""

    exit_code = EXIT_BOOT_HUNG

    def __init__(
        self, message: str, *, code: str, seen: Sequence[str], hint: str = "", exit_code: int = EXIT_BOOT_HUNG
    ) -> None:
        super().__init__(message, hint=hint)
        self.code = code
        self.seen = tuple(seen)
        self.exit_code = exit_code

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.seen


class StateError(ControlError):
    """The VM is not in a state in which this can be done; it stays as it is."""

    def __init__(self, message: str, *, state: str, required: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.state = state
        self.required = tuple(required)


class MonitorError(ControlError):
    """QEMU's monitor refused a command, or the connection to it was lost."""


class ConsoleError(ControlError):
    """A console could not be reached, read or written; holds what it said last, where that tells something."""

    def __init__(self, message: str, *, seen: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.seen = tuple(seen)

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.seen


class AgentProtocolError(ControlError):
    """The guest agent's channel is lost or does not speak the protocol; pending calls have all failed."""


class AgentCallError(ControlError):
    """The guest agent answered a call with an error (JSON-RPC 2.0 error object: `code`, `data`)."""

    def __init__(self, message: str, *, method: str, code: int, data: object = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.method = method
        self.code = code
        self.data = data


class ExecError(ControlError):
    """A command in the guest ended, and not well; `exit_code` is its own, or 128 and the number of the signal.

    Attributes:
        command: Program and arguments.
        signal: The signal that killed it, else 0.
        stdout, stderr: What it wrote.
    """

    def __init__(
        self, command: Sequence[str], exit_code: int, stdout: bytes, stderr: bytes, *, signal: int = 0
    ) -> None:
        how = f"was killed by signal {signal}" if signal else f"ended with exit code {exit_code}"
        super().__init__(f"{_show_command(command)} {how} in the guest")
        self.command = tuple(command)
        self.exit_code = exit_code
        self.signal = signal
        self.stdout = stdout
        self.stderr = stderr

    @property
    def evidence(self) -> tuple[str, ...]:
        return _show_output(self.stderr, self.stdout)


class TransferError(ControlError):
    """A file or tree could not be copied; no file is left half written under its own name, those before it are there.

    Attributes:
        path: What it failed at, as far as it is known.
    """

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class MessageError(ControlError):
    """A text that claims to be a message does not fit the message schema; it was not delivered."""


class WaitTimeout(ControlError):
    """A wait's deadline passed; says what was waited for and what was last seen."""

    exit_code = EXIT_TIMEOUT

    def __init__(self, waited_for: str, seconds: float, *, last_seen: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(f"waited {seconds:g} s for {waited_for}, and it did not come", hint=hint)
        self.waited_for = waited_for
        self.seconds = seconds
        self.last_seen = tuple(last_seen)

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.last_seen


class ExecTimeout(WaitTimeout):
    """A command in the guest took longer than it may; holds the output so far.

    Attributes:
        killed: Whether its whole process group was killed; otherwise it runs on.
    """

    def __init__(self, command: Sequence[str], seconds: float, stdout: bytes, stderr: bytes, *, killed: bool) -> None:
        super().__init__(f"the end of {_show_command(command)} in the guest", seconds)
        self.command = tuple(command)
        self.stdout = stdout
        self.stderr = stderr
        self.killed = killed

    @property
    def evidence(self) -> tuple[str, ...]:
        return _show_output(self.stderr, self.stdout)


class ImageError(ControlError):
    """A disk, ISO or kernel file is missing, unreadable, or is not what it claims to be."""


class ImageBuildError(ImageError):
    """An image could not be made, and one that was there before is as it was; `seen` are the lines that show why."""

    def __init__(self, message: str, *, seen: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.seen = tuple(seen)

    @property
    def evidence(self) -> tuple[str, ...]:
        return self.seen


def _show_command(command: Sequence[str]) -> str:
    shown = " ".join(command)
    return shown if len(shown) <= 120 else shown[:120] + "…"


def _show_output(*outputs: bytes) -> tuple[str, ...]:
    """The last lines of the first output that holds any."""
    for output in outputs:
        lines = output[-2000:].decode("utf-8", "replace").splitlines()
        if lines:
            return tuple("".join(c if c.isprintable() else "?" for c in line)[:300] for line in lines[-6:])
    return ()
