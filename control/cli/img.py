"""`unhinged img build` and `list` (floor 6): the images of the file, made and looked at."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from control.cli.desk import Desk, describe_error, show_error
from control.errors import ConfigError, ControlError
from control.image.manifest import find_state
from control.paths import IMAGE, cache_directory, find_instance_files
from control.spec.tomlfile import show_value, suggest
from control.units import format_duration, format_size

if TYPE_CHECKING:
    from control.image.workshop import Machine, Workshop
    from control.spec.image import ImageDeclaration


def img(desk: Desk) -> int:
    options = desk.options
    if options.action != "build":
        return list_images(desk)
    return build_ours(desk) if _are_ours(desk, options.names) else build(desk)


def _are_ours(desk: Desk, names: list[str]) -> bool:
    """Whether these are the images that there are without a configuration, and it declares none of that name."""
    from control.image.ours import OURS

    if not names or not set(names) <= OURS.keys():
        return False
    return not desk.has_configuration or not set(names) & desk.fleet.images.keys()


def build_ours(desk: Desk) -> int:
    """Bring our own images up to date, for which no configuration is needed."""
    from control.image.ours import OURS, make_ours
    from control.process.run import run

    rows = []
    for name in dict.fromkeys(desk.options.names):
        path = IMAGE / OURS[name].file
        before, began = _stat(path), time.monotonic()
        make_ours(name, run, desk.note, force=desk.options.force)
        outcome, seconds = "unchanged" if _stat(path) == before else "built", time.monotonic() - began
        desk.note(f"{name}: {outcome} ({format_duration(seconds)}): {path}")
        about = {"name": name, "builder": name, "state": "built", "size_bytes": path.stat().st_size, "path": str(path)}
        rows.append({**about, "outcome": outcome, "seconds": round(seconds, 3), "error": None})
    desk.show({"images": rows, "exit_code": 0})
    return 0


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def list_images(desk: Desk) -> int:
    rows = [_describe(desk, image) for image in desk.fleet.images.values()]
    width = max([4, *(len(row["name"]) for row in rows)])
    lines = [f"{'NAME':{width}}  BUILDER     STATE    SIZE       PATH"]
    for row in rows:
        size = "-" if row["size_bytes"] is None else format_size(row["size_bytes"])
        lines.append(f"{row['name']:{width}}  {row['builder']:10}  {row['state']:7}  {size:9}  {row['path']}")
    desk.show({"file": str(desk.location.path), "images": rows}, "\n".join(lines))
    return 0


def build(desk: Desk) -> int:
    """Build one after the other: each takes all that the host has. The exit code is that of the first failure."""
    images = _choose(desk)
    shop = _open_workshop(desk)
    rows, exit_code = [], 0
    for image in images:
        began = time.monotonic()
        outcome, error = _build_one(desk, image, shop)
        seconds = time.monotonic() - began
        if error is None:
            desk.note(f"{image.name}: {outcome} ({format_duration(seconds)}): {image.path}")
        elif not desk.is_json:
            show_error(error, is_json=False)
        exit_code = exit_code or (error.exit_code if error is not None else 0)
        failure = describe_error(error) if error is not None else None
        rows.append({**_describe(desk, image), "outcome": outcome, "seconds": round(seconds, 3), "error": failure})
    desk.show({"images": rows, "exit_code": exit_code})
    return exit_code


def _build_one(desk: Desk, image: ImageDeclaration, shop: Workshop) -> tuple[str, ControlError | None]:
    from control.image.build import build_image

    try:
        return ("built" if build_image(image, shop, force=desk.options.force) else "unchanged"), None
    except ControlError as error:
        return "failed", error


def _describe(desk: Desk, image: ImageDeclaration) -> dict[str, Any]:
    state = find_state(image, _list_variables(desk))
    size = None if state == "missing" else image.path.stat().st_size
    return {"name": image.name, "builder": image.builder, "state": state, "size_bytes": size, "path": str(image.path)}


def _list_variables(desk: Desk) -> dict[str, Any]:
    paths = {name: str(image.path) for name, image in desk.fleet.images.items()}
    return {**desk.fleet.vars, "img": paths}


def _choose(desk: Desk) -> list[ImageDeclaration]:
    """The images the command is about. Raises ConfigError, which names the nearest."""
    images, names = desk.fleet.images, list(dict.fromkeys(desk.options.names))
    if desk.options.all and names:
        raise ConfigError("--all and names exclude each other", hint="name images, or say --all")
    if desk.options.all:
        return list(images.values())
    if not names:
        raise ConfigError("no image is named", hint=f"name one of: {', '.join(list(images)[:20])}; or say --all")
    for name in names:
        if name not in images:
            raise ConfigError(
                f"there is no image {show_value(name)} in {desk.location.file}",
                file=desk.location.file,
                key=f"img.{name[:80]}",
                hint=suggest(name, list(images), kind="images"),
            )
    return [images[name] for name in names]


# -- what a build is given to work with --------------------------------------------------------------------------------


def _open_workshop(desk: Desk) -> Workshop:
    from control.image.workshop import Workshop
    from control.process.handle import start_keeper
    from control.process.run import run

    return Workshop(
        runner=run,
        note=desk.note,
        keep=start_keeper,
        find_machine=lambda: _find_machine(desk),
        find_overlays=lambda name: _find_overlays(desk, name),
        downloads=cache_directory() / "images",
        directory=desk.location.directory,
        qemu_img=desk.fleet.qemu_img or "qemu-img",
        variables=_list_variables(desk),
        boot_timeout_s=desk.options.timeout,
    )


def _find_overlays(desk: Desk, image: str) -> list[Path]:
    """What VMs have written over an image of the file."""
    users = [vm.name for vm in desk.fleet.vms.values() if vm.image is not None and vm.image.name == image]
    overlays = [find_instance_files(desk.runtime, name).overlay for name in users]
    return [overlay for overlay in overlays if overlay.exists()]


def _find_machine(desk: Desk) -> Machine:
    from control.accel.choice import choose_without_loop
    from control.image.workshop import Machine
    from control.process.run import run
    from control.vm.declared import find_qemu_of

    qemu = find_qemu_of(desk.fleet)
    choice = choose_without_loop(Path(qemu), run, cache_directory())
    desk.note_once(choice.reason)
    return Machine(qemu, choice.name)
