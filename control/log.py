"""One logger for the whole package, silent until a face asks for more (floor 0)."""

from __future__ import annotations

import logging
import sys

LOG = logging.getLogger("unhinged")
LOG.addHandler(logging.NullHandler())


def show_debug_log() -> None:
    """Write debug lines to stderr from now on; called by a face for `--debug`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(relativeCreated)7.0f ms  %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.DEBUG)
