"""What a QEMU process may use of its host (floor 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from control.errors import ConfigError
from control.units import MIB, format_size, parse_size_bytes

CPU_MIN, CPU_MAX = 0.01, 4096
MEMORY_MIN_BYTES = 16 * MIB
FILE_MIN_BYTES = MIB


@dataclass(frozen=True)
class Limits:
    """None for no limit.

    Attributes:
        cpu: Host CPUs, as 1.5 for one and a half.
        memory_bytes: All of QEMU's memory, the guest's within.
        file_bytes: What each file that it writes can come to: a disk's overlay, the console's log.
    """

    cpu: float | None = None
    memory_bytes: int | None = None
    file_bytes: int | None = None

    @property
    def needs_group(self) -> bool:
        """Whether it takes a control group to keep them."""
        return self.cpu is not None or self.memory_bytes is not None

    def __bool__(self) -> bool:
        return self.needs_group or self.file_bytes is not None

    def __str__(self) -> str:
        cpu = f"{self.cpu:g} CPUs" if self.cpu is not None else ""
        memory = f"{format_size(self.memory_bytes)} of memory" if self.memory_bytes is not None else ""
        file = f"{format_size(self.file_bytes)} a file" if self.file_bytes is not None else ""
        return ", ".join(filter(None, (cpu, memory, file)))


NO_LIMITS = Limits()


def read_limits(words: Sequence[str], unless: Limits = NO_LIMITS) -> Limits:
    """Read `cpu=1.5`, `memory=700M`, `file_size=8G`; of what is named twice the last one holds.

    Args:
        unless: What holds where nothing is said.

    Raises:
        ConfigError: It is something else, or too little to work with.
    """
    cpu, memory, file = unless.cpu, unless.memory_bytes, unless.file_bytes
    for word in words:
        key, _, value = word.partition("=")
        if key == "cpu":
            cpu = _read_cpu(value)
        elif key == "memory":
            memory = _read_size(key, value, MEMORY_MIN_BYTES)
        elif key == "file_size":
            file = _read_size(key, value, FILE_MIN_BYTES)
        else:
            raise ConfigError(f"{word[:80]!r} is no limit", hint="cpu=1.5, memory=700M, file_size=8G")
    return Limits(cpu, memory, file)


def _read_cpu(text: str) -> float:
    try:
        cpu = float(text)
    except ValueError:
        cpu = 0.0
    if not CPU_MIN <= cpu <= CPU_MAX:
        raise ConfigError(f"cpu cannot be {text[:80]!r}", hint=f"from {CPU_MIN:g} to {CPU_MAX} host CPUs")
    return cpu


def _read_size(key: str, text: str, least: int) -> int:
    size = parse_size_bytes(text, key=key)
    if size < least:
        raise ConfigError(f"{key} cannot be {format_size(size)}", hint=f"{format_size(least)} is the least")
    return size
