"""Measures speed and memory beside a peer, in one run: `make bench`, or `python -m tests.bench --help`.

What the figures mean stands in `docs/performance.md`.
"""
