"""What an image was made from, and whether that is still so (floor 2). Nothing slow is imported: `img list` asks it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from control.paths import ROOT
from control.spec.image import ImageDeclaration

FORMAT = 1
"""Counts up when the same inputs come to another image."""

State = Literal["built", "stale", "missing"]


def find_state(image: ImageDeclaration, variables: Mapping[str, Any]) -> State:
    """Say whether the image is there (`built`), whether what it was made from has changed since (`stale`)."""
    if not image.path.exists():
        return "missing"
    if image.builder == "builtin":
        return "built"
    return "built" if _read_manifest(image).get("inputs") == hash_inputs(image, variables) else "stale"


def was_written(image: ImageDeclaration) -> bool:
    """Tell whether somebody has written to the image since it was built; without a manifest nobody knows."""
    return image.path.exists() and _read_manifest(image).get("modified_ns") != image.path.stat().st_mtime_ns


def _find_manifest(image: ImageDeclaration) -> Path:
    return image.path.parent / "manifest.json"


def _read_manifest(image: ImageDeclaration) -> dict[str, Any]:
    """What is known of the image; nothing where its manifest is missing or damaged."""
    try:
        known = json.loads(_find_manifest(image).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def hash_inputs(image: ImageDeclaration, variables: Mapping[str, Any]) -> str:
    """Return the hash of all that the image is made from.

    A base image is known by its sha256sum, or by its size and time where there is none, as it may be large; a file
    that is missing is known to be missing.
    """
    inputs: dict[str, Any] = {"format": FORMAT, "builder": image.builder, "size": image.img_size}
    if image.builder == "debian":
        inputs["sources"] = [_hash_file(path) for path in _list_debian_sources()]
    if image.base is not None:
        inputs["base"] = [image.base.sha256sum, *(_stat_file(image.base.path) if image.base.path is not None else ())]
    if image.builder == "cloud-init":
        inputs["env"] = image.env
        if image.env_hook is not None:
            inputs["hook"] = [image.env_hook.interpreter, _hash_file(image.env_hook.script)]
        inputs["templates"] = [[each.output, _hash_file(each.template)] for each in image.templates]
        inputs["downloads"] = [[each.filename, each.sha256sum] for each in image.sources]
        inputs["words"] = image.build_args
        if any("{{" in word for word in image.build_args):
            inputs["variables"] = variables
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def publish(image: ImageDeclaration, made: Path, inputs: str) -> None:
    """Put `made` in the place of the image; at each moment there is the old one or the new one, whole."""
    with made.open("rb") as file:
        os.fsync(file.fileno())
    manifest = _find_manifest(image)
    text = json.dumps({"format": FORMAT, "inputs": inputs, "modified_ns": made.stat().st_mtime_ns}, indent=1) + "\n"
    fresh = manifest.with_name(f"{manifest.name}.new")
    fresh.write_text(text, encoding="utf-8")
    manifest.unlink(missing_ok=True)  # were we killed after the next line, the image would count as stale
    made.replace(image.path)
    fresh.replace(manifest)


def _list_debian_sources() -> Iterator[Path]:
    for folder in ("iso", "guest/agent"):
        yield from sorted(path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc")


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)


def _stat_file(path: Path) -> list[str | int]:
    try:
        status = path.stat()
    except OSError as error:
        return [str(path), str(error.strerror)]
    return [str(path), status.st_size, status.st_mtime_ns]
