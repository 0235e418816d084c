"""Runs a program one of whose standard streams is ours (floor 2); blocking. Copies over ssh are made with it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import IO, Literal

from control.errors import HostError

ERRORS_BYTES = 64 * 1024
"""So much of what it says on stderr is kept, the end of it."""


def run_piped(
    argv: Sequence[str], stream: Literal["stdin", "stdout"], work: Callable[[IO[bytes]], None]
) -> tuple[int, str]:
    """Run `argv` while `work` writes its stdin, or reads its stdout; return its exit code and what it said on stderr.

    A program that ends before it has read everything is no error of `work`: its exit code says what it was.

    Raises:
        HostError: It cannot be started.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stream == "stdin" else subprocess.DEVNULL,
                stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
                stderr=errors,
            )
        except OSError as error:
            raise HostError(f"{argv[0]} cannot be started: {error.strerror}") from error
        try:
            pipe = child.stdin if stream == "stdin" else child.stdout
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError), pipe:
                work(pipe)
        except BaseException:
            child.kill()
            raise
        finally:
            code = child.wait()
        errors.seek(max(0, errors.seek(0, 2) - ERRORS_BYTES))
        return code, errors.read().decode("utf-8", "replace")
