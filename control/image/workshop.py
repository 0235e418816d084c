"""What a build is given to work with (floor 2), and how it runs programs: blocking, with their words as evidence."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from control.errors import HostError, ImageBuildError, WaitTimeout
from control.host import find_program
from control.spec.vm_spec import Accelerator
from control.streams import Completed, PipedRunner

PACKAGES = {"qemu-img": "qemu-utils", "xorriso": "xorriso"}
"""Where the programs come from, on Debian and Ubuntu."""

SEEN_MAX_LINES = 12
SEEN_MAX_CHARACTERS = 300


@dataclass(frozen=True)
class Machine:
    """What the build boot runs on."""

    qemu: str
    accelerator: Accelerator


@dataclass(frozen=True)
class Workshop:
    """One command's surroundings.

    Attributes:
        note: Tells the user how far it is, a line at a time.
        keep: Sees to it, during a body, that the QEMU which writes that pid file does not outlive us.
        find_machine: Looks for QEMU and chooses the accelerator; asked only by who boots something.
        find_overlays: What VMs have written over the image of that name; it makes sense over that image only.
        downloads: Where downloads are kept, by what they hash to.
        directory: That of the configuration: scripts run there.
        variables: What the words of `build_args` may name besides `env`.
        boot_timeout_s: How long the build boot may take.
    """

    runner: PipedRunner
    note: Callable[[str], None]
    keep: Callable[[Path], AbstractContextManager[object]]
    find_machine: Callable[[], Machine]
    find_overlays: Callable[[str], Sequence[Path]]
    downloads: Path
    directory: Path
    qemu_img: str = "qemu-img"
    variables: Mapping[str, Any] = field(default_factory=dict)
    boot_timeout_s: float = 1800.0

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        on_stdout: Callable[[bytes], bool] | None = None,
        on_stderr: Callable[[bytes], None] | None = None,
    ) -> Completed:
        """Run a program to its end, whatever that is; the arguments are those of `PipedRunner`.

        Raises:
            HostError: It is missing; names the package.
        """
        program = argv[0]
        if "/" not in program and find_program(program, os.environ.get("PATH", os.defpath)) is None:
            package = PACKAGES.get(program)
            raise HostError(f"{program} is not installed", hint=f"apt-get install {package}" if package else "")
        return asyncio.run(
            self.runner(
                argv,
                timeout_s=timeout_s,
                cwd=self.directory,
                stdin=stdin,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
            )
        )

    def run_well(self, argv: Sequence[str], what: str, *, timeout_s: float, hint: str = "") -> Completed:
        """Run a program that has to succeed.

        Args:
            what: What it is to do, as the end of "could not …".

        Raises:
            HostError: It is missing.
            ImageBuildError, WaitTimeout: It failed; its own words are the evidence.
        """
        done = self.run(argv, timeout_s=timeout_s)
        if done.timed_out:
            raise WaitTimeout(f"{Path(argv[0]).name} to {what}", timeout_s, last_seen=show_lines(done.stderr))
        if done.return_code != 0:
            raise ImageBuildError(
                f"{Path(argv[0]).name} could not {what} (exit code {done.return_code})",
                seen=show_lines(done.stderr),
                hint=hint,
            )
        return done


def show_lines(output: bytes) -> tuple[str, ...]:
    """The last lines of what a program wrote, safe to show."""
    lines = ("".join(filter(str.isprintable, line)) for line in output.decode("utf-8", "replace").splitlines())
    return tuple(line[:SEEN_MAX_CHARACTERS] for line in lines if line.strip())[-SEEN_MAX_LINES:]
