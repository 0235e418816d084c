"""What a QEMU process may use of its host (floor 1)."""

from __future__ import annotations

from dataclasses import dataclass

from control.units import format_size


@dataclass(frozen=True)
class Limits:
    """None for no limit.

    Attributes:
        cpu: Host CPUs, as 1.5 for one and a half.
        memory_bytes: All of QEMU's memory, the guest's within.
    """

    cpu: float | None = None
    memory_bytes: int | None = None

    def __bool__(self) -> bool:
        return self.cpu is not None or self.memory_bytes is not None

    def __str__(self) -> str:
        cpu = f"{self.cpu:g} CPUs" if self.cpu is not None else ""
        memory = f"{format_size(self.memory_bytes)} of memory" if self.memory_bytes is not None else ""
        return ", ".join(filter(None, (cpu, memory)))


NO_LIMITS = Limits()
