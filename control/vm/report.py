"""A supervisor's one word to whoever started it (floor 3)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from control.errors import ControlError
from control.failure import build_failure


class Report:
    """Tells whoever started us, once, whether the VM runs."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def tell_success(self) -> None:
        self._tell({"ok": True})

    def tell_failure(self, error: ControlError) -> bool:
        """Whether there was still somebody to be told."""
        return self._tell({"error": build_failure(error)})

    def _tell(self, word: Mapping[str, Any]) -> bool:
        if self._descriptor < 0:
            return False
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(BrokenPipeError):  # they have gone; the VM is none the worse for it
            os.write(descriptor, json.dumps(word).encode() + b"\n")
        os.close(descriptor)
        return True
