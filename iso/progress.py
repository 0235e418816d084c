"""Progress of a build as lines on stderr (room: image; called by `iso/build.py`)."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints one line per step, with the seconds since the build began, so that a silent step can be told from a stuck one."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """Show that `text` begins now."""
        seconds = time.monotonic() - self._began
        try:
            print(f"image {seconds:6.1f} s  {text}", file=sys.stderr, flush=True)
        except BrokenPipeError:
            # The reader of our progress went away; the image is still wanted.
            sys.stderr = open("/dev/null", "w", encoding="utf-8")  # noqa: SIM115 - lives until the process ends
