"""`unhinged img build` and `list` (floor 4): the images of the file, made and looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from control.cli.desk import Desk
from control.errors import ConfigError, ControlError
from control.spec.tomlfile import show_value, suggest

if TYPE_CHECKING:
    from control.image.workshop import Machine, Workshop
    from control.spec.image import ImageDeclaration


def img(desk: Desk) -> int:
    return build(desk) if desk.options.action == "build" else list_images(desk)


def list_images(desk: Desk) -> int:
    images = list(desk.fleet.images.values())
    rows = [_describe(desk, image) for image in images]
    width = max([4, *(len(image.name) for image in images)])
    lines = [f"{'NAME':{width}}  BUILDER     STATE    SIZE       PATH"]
    lines += [
        f"{row['name']:{width}}  {row['builder']:10}  {row['state']:7}  {_show_size(row):9}  {row['path']}"
        for row in rows
    ]
    desk.show({"file": str(desk.location.path), "images": rows}, "\n".join(lines))
    return 0


def _describe(desk: Desk, image: ImageDeclaration) -> dict[str, Any]:
    from control.image.manifest import find_state

    state = find_state(image, _variables(desk))
    size = None if state == "missing" else image.path.stat().st_size
    return {"name": image.name, "builder": image.builder, "state": state, "size_bytes": size, "path": str(image.path)}


def _show_size(row: dict[str, Any]) -> str:
    from control.units import format_size

    return "-" if row["size_bytes"] is None else format_size(row["size_bytes"])


def _variables(desk: Desk) -> dict[str, Any]:
    paths = {name: str(image.path) for name, image in desk.fleet.images.items()}
    return {**desk.fleet.vars, "img": paths}


def build(desk: Desk) -> int:
    from control.cli.desk import show_error
    from control.units import format_duration
    from control.wire.failure import build_failure

    shop = _open_workshop(desk)
    rows, exit_code = [], 0
    for image in _choose(desk):
        outcome, seconds, error = _build_one(desk, image, shop)
        exit_code = exit_code or (error.exit_code if error is not None else 0)
        failure = build_failure(error) if error is not None else None
        row = {**_describe(desk, image), "outcome": outcome, "seconds": round(seconds, 3), "error": failure}
        rows.append(row)
        if error is not None and not desk.is_json:
            show_error(error, is_json=False)
        elif error is None:
            desk.note(f"{image.name}: {outcome} ({format_duration(seconds)}) {image.path}")
    desk.show({"images": rows, "exit_code": exit_code})
    return exit_code


def _build_one(desk: Desk, image: ImageDeclaration, shop: Workshop) -> tuple[str, float, ControlError | None]:
    import time

    from control.image.build import build_image

    began = time.monotonic()
    try:
        outcome = "built" if build_image(image, shop, force=desk.options.force) else "unchanged"
    except ControlError as error:
        return "failed", time.monotonic() - began, error
    return outcome, time.monotonic() - began, None


def _choose(desk: Desk) -> list[ImageDeclaration]:
    """The images the command is about. Raises ConfigError, which names the nearest."""
    images, names = desk.fleet.images, list(dict.fromkeys(desk.options.names))
    if desk.options.all and names:
        raise ConfigError("--all and names exclude each other", hint="name images, or say --all")
    if not desk.options.all and not names:
        raise ConfigError("no image is named", hint=suggest("", list(images), kind="images") + "; or say --all")
    for name in names:
        if name not in images:
            raise ConfigError(
                f"there is no image {show_value(name)} in {desk.location.file}",
                file=desk.location.file,
                key=f"img.{name[:80]}",
                hint=suggest(name, list(images), kind="images"),
            )
    return [images[name] for name in names] if names else list(images.values())


def _open_workshop(desk: Desk) -> Workshop:
    from control.image.workshop import Workshop
    from control.paths import cache_directory
    from control.process.run import run

    return Workshop(
        runner=run,
        note=desk.note,
        find_machine=lambda: _find_machine(desk),
        downloads=cache_directory() / "images",
        directory=desk.location.directory,
        qemu_img=desk.fleet.qemu_img or "qemu-img",
        variables=_variables(desk),
        boot_timeout_s=desk.options.timeout,
    )


def _find_machine(desk: Desk) -> Machine:
    import asyncio
    from pathlib import Path

    from control.accel.choice import choose_accelerator
    from control.image.workshop import Machine
    from control.paths import cache_directory
    from control.process.run import run
    from control.vm.declared import find_qemu_of

    qemu = find_qemu_of(desk.fleet)
    choice = asyncio.run(choose_accelerator("auto", Path(qemu), run, cache_directory()))
    desk.note_once(choice.reason)
    return Machine(qemu, choice.name)
