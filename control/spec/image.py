"""One image as a configuration declares it (floor 1): how it is built, and where it is then.

Read only for a file that declares images, so that the others need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from control.errors import ConfigError
from control.spec.declaration import Surroundings
from control.spec.tables import Table
from control.spec.tomlfile import show_value
from control.units import parse_size_bytes

IMAGE_KEYS = ("builder", "img_size", "base_img", "env", "env_hook", "templates", "sources", "build_args")
BASE_IMAGE_KEYS = ("url", "path", "sha256sum")
HOOK_KEYS = ("interpreter", "script")
TEMPLATE_KEYS = ("template", "output")
SOURCE_KEYS = ("url", "sha256sum", "filename")

BUILDERS = ("raw", "cloud-init", "builtin", "debian")
IMAGE_FILES = {"raw": "image.img", "cloud-init": "stage3.img", "debian": "image.qcow2"}
"""What a built image is called in its directory; the first two are qqmgr's names."""


@dataclass(frozen=True)
class BaseImage:
    """What a cloud-init image is made from: an URL or a path, and what it must hash to."""

    url: str = ""
    path: Path | None = None
    sha256sum: str = ""


@dataclass(frozen=True)
class EnvHook:
    """A script that is given the variables of an image as one line of JSON, and prints the new ones as its last."""

    script: Path
    interpreter: str = ""


@dataclass(frozen=True)
class TemplateFile:
    """A template, and the name of what is made from it on the cloud-init ISO."""

    template: Path
    output: str


@dataclass(frozen=True)
class Source:
    """A file that is downloaded and put onto the cloud-init ISO."""

    url: str
    sha256sum: str
    filename: str


@dataclass(frozen=True)
class ImageDeclaration:
    """One `[img.NAME]`.

    Attributes:
        path: Where it is once it is built.
        build_args: Words for the QEMU that boots it once; `{{.img_self}}`, `{{.cloud_init_iso}}` and `env` in them
            are filled in when it is built.
    """

    name: str
    builder: Literal["raw", "cloud-init", "builtin", "debian"]
    path: Path
    img_size: str = ""
    base: BaseImage | None = None
    env: Mapping[str, Any] = field(default_factory=dict)
    env_hook: EnvHook | None = None
    templates: tuple[TemplateFile, ...] = ()
    sources: tuple[Source, ...] = ()
    build_args: tuple[str, ...] = ()


def read_image(table: Table, name: str, *, directory: Path, around: Surroundings, builtin: Path) -> ImageDeclaration:
    """Read `[img.NAME]`.

    Args:
        directory: Where it is built.
        builtin: The image that the builder `builtin` stands for.
    """
    table.check_keys(IMAGE_KEYS, kind="keys of an image")
    builder = table.choice("builder", BUILDERS)
    if "builder" not in table:
        table.report(None, "an image needs a builder", hint="one of " + ", ".join(BUILDERS))
    if builder in ("raw", "cloud-init") and "img_size" not in table:
        table.report(None, f"a {builder} image needs img_size", hint='as in img_size = "10G"')
    img_size = table.parse("img_size", _check_image_size) or ""
    base = _read_base(table, around)
    if builder == "cloud-init" and "base_img" not in table:
        table.report(None, "a cloud-init image needs base_img", hint=f"write [img.{name}.base_img] with url or path")
    templates = tuple(template for inner in table.tables("templates") if (template := _read_template(inner, around)))
    sources = tuple(source for inner in table.tables("sources") if (source := _read_source(inner)))
    taken: set[str] = set()
    for output in (*(template.output for template in templates), *(source.filename for source in sources)):
        if output in taken:
            table.report(None, f"two files of the ISO are called {show_value(output)}", hint="rename one of them")
        taken.add(output)
    return ImageDeclaration(
        name=name,
        builder=cast(Any, builder or "raw"),
        path=builtin if builder == "builtin" else directory / IMAGE_FILES.get(builder or "raw", "image.img"),
        img_size=img_size,
        base=base,
        env=table.get("env", dict, "a table") or {},
        env_hook=_read_hook(table, around),
        templates=templates,
        sources=sources,
        build_args=table.texts("build_args", filled=False) or (),
    )


def _check_image_size(text: str) -> str:
    # qemu-img counts bytes where a unit is missing, and so did qqmgr; "1024" is left to it.
    if parse_size_bytes(text, key="img_size") == 0:
        raise ConfigError("an image cannot be empty", hint='as in img_size = "10G"')
    return text


def _read_base(table: Table, around: Surroundings) -> BaseImage | None:
    base = table.table("base_img")
    if base is None:
        return None
    base.check_keys(BASE_IMAGE_KEYS, kind="keys of a base image")
    url, path = _read_url(base), base.parse("path", around.path)
    if ("url" in base) == ("path" in base):
        base.report(None, "a base image has either url or path", hint="name where it comes from")
    checksum = _read_checksum(base)
    if url and "sha256sum" not in base:
        base.report(None, "what is downloaded needs its sha256sum", hint="run sha256sum on a copy you trust")
    return BaseImage(url, path, checksum)


def _read_url(table: Table) -> str:
    url = table.text("url") or ""
    if "url" in table and not url.startswith(("https://", "http://", "file://")):
        table.report("url", f"url {show_value(url)} cannot be downloaded", hint="use https://, http:// or file://")
    return url


def _read_checksum(table: Table) -> str:
    text = (table.text("sha256sum") or "").lower()
    if "sha256sum" in table and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        table.report("sha256sum", "sha256sum is not 64 hexadecimal digits", hint="run sha256sum on a copy you trust")
    return text


def _read_hook(table: Table, around: Surroundings) -> EnvHook | None:
    hook = table.table("env_hook")
    if hook is None:
        return None
    hook.check_keys(HOOK_KEYS, kind="keys of an env_hook")
    script = hook.parse("script", around.path)
    if "script" not in hook:
        hook.report(None, "an env_hook needs a script", hint='as in script = "scripts/env.sh"')
    return None if script is None else EnvHook(script, hook.text("interpreter") or "")


def _read_template(table: Table, around: Surroundings) -> TemplateFile | None:
    table.check_keys(TEMPLATE_KEYS, kind="keys of a template")
    for key in TEMPLATE_KEYS:
        if key not in table:
            table.report(None, f"a template needs {key}", hint='as in template = "user-data.tpl", output = "user-data"')
    template = table.parse("template", around.path)
    output = table.parse("output", _check_file_name)
    return TemplateFile(template, output) if template is not None and output is not None else None


def _read_source(table: Table) -> Source | None:
    table.check_keys(SOURCE_KEYS, kind="keys of a source")
    for key in SOURCE_KEYS:
        if key not in table:
            table.report(None, f"a source needs {key}")
    url, checksum = _read_url(table), _read_checksum(table)
    filename = table.parse("filename", _check_file_name)
    return Source(url, checksum, filename) if url and filename else None


def _check_file_name(text: str) -> str:
    """A name on an ISO: no way out of the directory it is made in."""
    if text in ("", ".", "..") or "/" in text or len(text.encode()) > 200 or not text.isprintable():
        raise ConfigError(f"{show_value(text)} cannot be the name of a file", hint="use a plain name, as user-data")
    return text
