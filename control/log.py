"""One logger for the whole package, silent until a face asks for more (floor 0)."""

from __future__ import annotations

import logging
import sys

LOG = logging.getLogger("unhinged")
LOG.addHandler(logging.NullHandler())


def show_debug_log() -> None:
    """Write debug lines to stderr from now on; called by a face for `--debug`."""
    _show("%(relativeCreated)7.0f ms  %(message)s", logging.DEBUG)


def write_log() -> None:
    """Write what somebody may ask for later to stderr from now on; called by a program whose stderr is a log."""
    _show("%(asctime)s %(message)s", logging.INFO)


def _show(form: str, level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(form))
    LOG.addHandler(handler)
    LOG.setLevel(level)
