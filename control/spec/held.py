"""Machines that no QEMU runs (floor 1): a program on a terminal of this host, and a board at a serial port.

A holder has each of them, as QEMU has a VM (`control.process.pty_holder`, `control.process.serial_holder`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from control.spec.limits import NO_LIMITS, Limits

Parity = Literal["none", "even", "odd", "mark", "space"]
Flow = Literal["none", "rtscts", "xonxoff", "dsrdtr"]

PARITIES: tuple[Parity, ...] = ("none", "even", "odd", "mark", "space")
FLOWS: tuple[Flow, ...] = ("none", "rtscts", "xonxoff", "dsrdtr")
PORT_SCHEMES = ("socket://", "rfc2217://")
"""What pyserial opens beside devices and we let through: a port behind TCP, bare or with its lines (RFC 2217)."""


class _Held:
    """What a VM may have and these never do."""

    accelerator: ClassVar[None] = None
    agent: ClassVar[bool] = False
    hvc0: ClassVar[bool] = False
    share: ClassVar[None] = None


@dataclass(frozen=True)
class ProcessSpec(_Held):
    """A program on a terminal of its own.

    Attributes:
        command: The program, looked for in PATH, and its arguments.
        directory: Where it is started.
        env: Over the environment its supervisor was started with.
        limits: What it, and all it starts, may use of the host.
    """

    name: str
    command: tuple[str, ...]
    directory: Path
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = NO_LIMITS


@dataclass(frozen=True)
class SerialSpec(_Held):
    """A real machine at the other end of a serial line.

    Attributes:
        port: A device, or an address as `socket://HOST:PORT` or `rfc2217://HOST:PORT`.
        baud: Symbols per second.
        dtr, rts: How these lines are set when the port is opened; None leaves them to the driver.
    """

    name: str
    port: str
    baud: int = 115200
    data_bits: Literal[5, 6, 7, 8] = 8
    parity: Parity = "none"
    stop_bits: Literal[1, 2] = 1
    flow: Flow = "none"
    dtr: bool | None = None
    rts: bool | None = None

    limits: ClassVar[Limits] = NO_LIMITS


HeldSpec = ProcessSpec | SerialSpec
