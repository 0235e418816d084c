"""What was measured, as data: samples, the peer's samples taken in turn with them, and the targets they are held to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Basis = Literal["ours", "difference", "ratio"]


@dataclass(frozen=True)
class Samples:
    """One side of a comparison.

    Attributes:
        label: What was measured, in a few words.
        values: In the order in which they were taken; never empty.
    """

    label: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"no samples of {self.label}")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """How far the samples lie apart, as a part of their median; 0.1 is ten percent."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "spread": self.spread,
            "samples": list(self.values),
        }


@dataclass(frozen=True)
class Target:
    """A bound on the median of our samples, or of our differences from or ratios to the peer, pair by pair."""

    limit: float
    better: Literal["lower", "higher"] = "lower"
    basis: Basis = "ours"


@dataclass(frozen=True)
class Figure:
    """One row of the table: our samples, those of the peer taken in turn with them, and the targets.

    Attributes:
        unit: `s`, `ms`, `MB`, `MB/s`, `1/s` or empty for a bare number.
        notes: What a reader should know of this run; one sentence each.
    """

    name: str
    unit: str
    ours: Samples
    peer: Samples | None = None
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours divided by the peer's, pair by pair: what else the machine did weighs on both halves of a pair."""
        if self.peer is None:
            return ()
        return tuple(mine / theirs for mine, theirs in zip(self.ours.values, self.peer.values, strict=True))

    @property
    def differences(self) -> tuple[float, ...]:
        """Ours less the peer's, pair by pair."""
        if self.peer is None:
            return ()
        return tuple(mine - theirs for mine, theirs in zip(self.ours.values, self.peer.values, strict=True))

    def value_of(self, basis: Basis) -> float:
        """The median that a target on `basis` is about."""
        values: Sequence[float] = {
            "ours": self.ours.values,
            "difference": self.differences,
            "ratio": self.ratios,
        }[basis]
        return statistics.median(values)

    def is_met(self, target: Target) -> bool:
        value = self.value_of(target.basis)
        return value <= target.limit if target.better == "lower" else value >= target.limit

    def to_json(self) -> dict[str, Any]:
        ratios = self.ratios
        return {
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours.to_json(),
            "peer": self.peer.to_json() if self.peer else None,
            "ratio": Samples("ours / peer", ratios).to_json() if ratios else None,
            "targets": [
                {
                    "limit": target.limit,
                    "better": target.better,
                    "basis": target.basis,
                    "value": self.value_of(target.basis),
                    "met": self.is_met(target),
                }
                for target in self.targets
            ],
            "notes": list(self.notes),
        }
