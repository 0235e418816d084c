"""Turns results into `results.json`, a Markdown table, and the table in `docs/performance.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure, Samples, Target

BEGIN, END = "<!-- begin results: written by make bench -->", "<!-- end results -->"


def build_results(machine: Mapping[str, Any], results: Mapping[str, Sequence[Figure]], command: str) -> dict[str, Any]:
    """Put everything into one JSON document."""
    return {
        "format": 1,
        "command": command,
        "machine": dict(machine),
        "benchmarks": {name: [figure.to_json() for figure in figures] for name, figures in results.items()},
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def build_markdown(machine: Mapping[str, Any], results: Mapping[str, Sequence[Figure]], command: str) -> str:
    """Write the table, with the command and the machine it comes from above it and the notes below."""
    lines = [
        f"`{command}` at commit {machine['commit']}, {machine['time']}.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; Linux {machine['kernel']};"
        f" QEMU {machine['qemu']}, accelerator {machine['accelerator']}; Python {machine['python']}."
        f" Load average {machine['load']:.1f} before and {machine['load_after']:.1f} after.",
        "",
        "| | ours: median (min to max), spread | peer: median (min to max), spread | ours / peer, by pairs | target |",
        "|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name, figures in results.items():
        for figure in figures:
            lines.append(_build_row(name, figure))
            notes += [f"* `{name}`, {figure.name}: {note}" for note in figure.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _build_row(name: str, figure: Figure) -> str:
    ratios = figure.ratios
    cells = [
        f"**{name}**: {figure.name}",
        _describe(figure.ours, figure.unit),
        _describe(figure.peer, figure.unit) if figure.peer else "",
        f"{Samples('', ratios).median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else "",
        "; ".join(_describe_target(figure, target) for target in figure.targets),
    ]
    return f"| {' | '.join(cells)} |"


def _describe(samples: Samples, unit: str) -> str:
    if len(samples.values) == 1:
        return f"{samples.label}: {format_value(samples.median, unit)}"
    return (
        f"{samples.label}: {format_value(samples.median, unit)}"
        f" ({format_value(min(samples.values), unit)} to {format_value(max(samples.values), unit)}),"
        f" {samples.spread:.0%}"
    )


def _describe_target(figure: Figure, target: Target) -> str:
    bound = "at most" if target.better == "lower" else "at least"
    verdict = "met" if figure.is_met(target) else "**missed**"
    value = figure.value_of(target.basis)
    if target.basis == "ratio":
        return f"{bound} {target.limit:g} times the peer: {verdict}"
    limit = format_value(target.limit, figure.unit)
    if target.basis == "difference":
        return f"{bound} {limit} more than the peer: {format_value(value, figure.unit)}, {verdict}"
    return f"{bound} {limit}: {verdict}"


def format_value(value: float, unit: str) -> str:
    """Show a value with its unit and no more digits than it deserves.

    >>> format_value(2.3456, "s"), format_value(31234.5, "1/s"), format_value(0.31, "ms"), format_value(3, "")
    ('2.35 s', '31234/s', '0.31 ms', '3')
    """
    if unit == "":
        return f"{value:g}"
    if unit == "1/s":
        return f"{value:.0f}/s"
    if unit in ("MB", "MB/s"):
        return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{value:.2f} {unit}"


def replace_table(page: Path, table: str) -> None:
    """Put `table` between the two marks of `page`; what stands around them is left alone.

    Raises:
        ValueError: The page has lost its marks; it is left as it is.
    """
    text = page.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has lost the marks its table stands between")
    page.write_text(f"{head}{BEGIN}\n\n{table}\n{END}{tail}", encoding="utf-8")
