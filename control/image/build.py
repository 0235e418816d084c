"""Builds one image (floor 2): whether it has to be, by whom, and that nobody else does at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from control.errors import ControlError, HostError, StateError
from control.image.cloud import make_cloud
from control.image.disk import make_raw
from control.image.manifest import find_state, hash_inputs, publish, was_written
from control.image.ours import make_builtin, make_debian
from control.image.workshop import Workshop
from control.paths import open_image_directory
from control.spec.image import ImageDeclaration

_SCRATCH = "build."

_MAKERS: Mapping[str, Callable[[ImageDeclaration, Workshop, Path], Path]] = {
    "raw": make_raw,
    "cloud-init": make_cloud,
    "debian": make_debian,
}
"""Each makes the image in an empty directory, and says where it is."""


def build_image(image: ImageDeclaration, shop: Workshop, *, force: bool = False) -> bool:
    """Bring `image` up to date; tells whether there was anything to do.

    Args:
        force: Build it again, though nothing it is made from has changed.

    Raises:
        ConfigError, ImageError, BootError: What is declared does not work.
        StateError: Another command is building it, or what is on it or over it would be lost.
        HostError: A program, QEMU or room on the disk is missing.
        WaitTimeout: It took too long. However it fails, an older image is as it was.
    """
    with _naming(image):
        if image.builder == "builtin":
            return make_builtin(image, shop, force=force)
        directory = open_image_directory(image.path.parent)
        with _hold(directory):
            if not force and find_state(image, shop.variables) == "built":
                return False
            _check_unwritten(image, shop, force=force)
            for left in directory.glob(f"{_SCRATCH}*/"):  # of a build that was killed
                shutil.rmtree(left)
            inputs = hash_inputs(image, shop.variables)
            with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=directory) as scratch:
                made = _MAKERS[image.builder](image, shop, Path(scratch))
                _check_unwritten(image, shop, force=force)  # that took minutes, and VMs may have been started
                publish(image, made, inputs)
            return True


@contextlib.contextmanager
def _naming(image: ImageDeclaration) -> Iterator[None]:
    """Say of an error which image it is about; one of the operating system becomes one of ours."""
    try:
        yield
    except ControlError as error:
        error.args = (f"[img.{image.name}] {error}",)
        raise
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        raise HostError(f"[img.{image.name}] {what}", hint="look at rights and room there") from error


@contextlib.contextmanager
def _hold(directory: Path) -> Iterator[None]:
    """Keep other builds of this image away; the kernel forgets it however we end."""
    with (directory / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                "another command is building it", state="building", required=("idle",), hint="wait for its end"
            ) from error
        yield


def _check_unwritten(image: ImageDeclaration, shop: Workshop, *, force: bool) -> None:
    """What VMs have written, over the image or into it, is not lost unasked."""
    overlays = shop.find_overlays(image.name)
    if overlays and image.path.exists():
        raise StateError(
            f"what VMs have written lies over the image as it is: {', '.join(path.parent.name for path in overlays)}",
            state="used",
            required=("unused",),
            hint=f"stop them and remove what they have written: rm {' '.join(map(str, overlays))}",
        )
    if not force and was_written(image):
        raise StateError(
            f"{image.path} has been written to since it was built, and a new one would be without that",
            state="written",
            required=("as it was built",),
            hint="--force makes it anew, and loses what was written",
        )
