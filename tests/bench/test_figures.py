"""The arithmetic of the benchmarks, and the table they leave: wrong figures would be believed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.bench import payload
from tests.bench.console import build_burst
from tests.bench.figures import Figure, Samples, Target
from tests.bench.report import BEGIN, END, build_markdown, replace_table

MACHINE = {
    "time": "2026-01-01T00:00:00+00:00",
    "cpu": "a CPU",
    "cores": 2,
    "memory_gib": 4,
    "kernel": "6.1",
    "python": "3.11",
    "qemu": "7.2",
    "commit": "abc",
    "accelerator": "tcg",
    "load": 0.1,
    "load_after": 0.2,
}


def make_figure(*targets: Target) -> Figure:
    return Figure("f", "s", Samples("ours", (2.0, 4.0, 9.0)), Samples("peer", (1.0, 4.0, 3.0)), targets)


def test_compares_pair_by_pair() -> None:
    figure = make_figure()
    assert figure.ratios == (2.0, 1.0, 3.0)
    assert figure.differences == (1.0, 0.0, 6.0)
    assert figure.value_of("ratio") == 2.0  # the medians of both sides would give 1.33
    assert figure.ours.spread == pytest.approx(7 / 4)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(4.0), True),
        (Target(3.9), False),
        (Target(1.0, basis="difference"), True),
        (Target(0.9, basis="difference"), False),
        (Target(4.0, "higher"), True),
        (Target(4.1, "higher"), False),
        (Target(2.0, basis="ratio"), True),
        (Target(1.9, basis="ratio"), False),
    ],
)
def test_holds_the_median_to_its_target(target: Target, met: bool) -> None:
    assert make_figure(target).is_met(target) is met


def test_uneven_pairs_and_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Samples("nothing", ())
    with pytest.raises(ValueError, match="zip"):
        _ = Figure("f", "s", Samples("ours", (1.0, 2.0)), Samples("peer", (1.0,))).ratios


def test_the_table_says_what_was_missed() -> None:
    table = build_markdown(
        MACHINE, {"boot": [make_figure(Target(2.6), Target(0.25, basis="difference"))]}, "make bench"
    )
    assert "at most 2.60 s: **missed**" in table
    assert "2.00 (1.00 to 3.00)" in table


def test_only_the_table_of_the_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    replace_table(page, "new\n")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="marks"):
        replace_table(page, "new\n")


@pytest.mark.parametrize("messages", [0, 16])
def test_host_and_guest_make_the_same_burst(tmp_path: Path, messages: int) -> None:
    path = tmp_path / "burst"
    payload.main([str(path), "3", str(messages)])
    burst = build_burst("", 3, messages)
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == burst.digest
    assert len(data) == burst.bytes == 3 * payload.BLOCK_BYTES
    assert data.count(b'\n{"timestamp"') == burst.messages
    blocks = {data[begin : begin + payload.BLOCK_BYTES] for begin in range(0, len(data), payload.BLOCK_BYTES)}
    assert len(blocks) == 3
