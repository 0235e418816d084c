"""Progress of a build as lines on stderr (room: image; called by `iso/build.py`)."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """Prints one line per step with the seconds since the build began, so that slow can be told from stuck."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """Show that `text` begins now."""
        seconds = time.monotonic() - self._began
        try:
            print(f"image {seconds:6.1f} s  {text}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            # The reader of our progress went away; the image is still wanted.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stderr.fileno())
            os.close(null)
