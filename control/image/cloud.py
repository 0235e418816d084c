"""Images that set themselves up with cloud-init (floor 2): a base image, an ISO that says how, and one boot of both.

cloud-init looks for a disk with the label `cidata` that holds `user-data` and `meta-data`.
Source: cloud-init documentation, "NoCloud".
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control.errors import HostError, ImageBuildError, WaitTimeout
from control.host import find_program
from control.image.disk import copy_disk, grow_disk
from control.image.download import fetch, hash_file
from control.image.setup_boot import boot_once
from control.image.workshop import Workshop, show_lines
from control.spec.image import BaseImage, EnvHook, ImageDeclaration
from control.spec.template import TemplateError, render_file

HOOK_TIMEOUT_S = 300.0
ISO_TIMEOUT_S = 300.0


def make_cloud(image: ImageDeclaration, shop: Workshop, scratch: Path) -> Path:
    """Make the image: what is quick to be wrong comes first, the boot last.

    Raises:
        ConfigError, ImageBuildError, HostError, BootError, LaunchError, WaitTimeout: One of its steps fails.
    """
    if image.base is None:
        raise ImageBuildError("has no base_img", hint="name one")
    env = _work_out_env(image, shop)
    content = scratch / "iso"
    content.mkdir()
    _write_files(image, env, content)
    for source in image.sources:
        shutil.copyfile(fetch(source.url, source.sha256sum, shop.downloads, shop.note), content / source.filename)
    iso = scratch / "cloud-init.iso"
    argv = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(iso), "-R", "-J", "-V", "cidata", str(content)]
    shop.run_well(argv, "write the ISO", timeout_s=ISO_TIMEOUT_S, hint="make room there")
    base = _find_base(image.base, shop)
    disk = scratch / "stage1.img"
    shop.note(f"{image.name}: copying {image.base.path or 'the base image'}")
    copy_disk(base, disk, shop, is_trusted=image.base.path is not None)
    grow_disk(disk, image.img_size, shop)
    boot_once(image, shop, disk, iso, env)
    return disk


def _find_base(base: BaseImage, shop: Workshop) -> Path:
    if base.path is None:
        return fetch(base.url, base.sha256sum, shop.downloads, shop.note)
    if not base.path.is_file():
        raise ImageBuildError(f"there is no base image {base.path}", hint="look at path in base_img")
    if base.sha256sum and (found := hash_file(base.path)) != base.sha256sum:
        raise ImageBuildError(
            f"{base.path} is not what is wanted: its sha256 is {found}, not {base.sha256sum}",
            hint="it has changed, or sha256sum is of another file",
        )
    return base.path


# -- variables and files -----------------------------------------------------------------------------------------------


def _work_out_env(image: ImageDeclaration, shop: Workshop) -> Mapping[str, Any]:
    """The variables of the templates: those of the file, or what the script makes of them."""
    hook = image.env_hook
    if hook is None:
        return image.env
    # Dates are the only values of TOML that JSON has no word for.
    given = json.dumps(image.env, default=str).encode() + b"\n"
    done = shop.run(_build_hook_argv(hook), timeout_s=HOOK_TIMEOUT_S, stdin=given)
    said = show_lines(done.stderr)
    if done.timed_out:
        raise WaitTimeout(f"the env_hook {hook.script} to end", HOOK_TIMEOUT_S, last_seen=said)
    if done.return_code != 0:
        raise ImageBuildError(f"the env_hook {hook.script} ended with exit code {done.return_code}", seen=said)
    try:
        env = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        env = None
    if not isinstance(env, dict):
        # What it printed is not shown: there may be secrets in it.
        raise ImageBuildError(
            f"the last line that the env_hook {hook.script} prints is not a JSON object",
            seen=said,
            hint="it is given env as one line of JSON, and prints the new one as its last",
        )
    return env


def _build_hook_argv(hook: EnvHook) -> list[str]:
    if not hook.script.is_file():
        raise ImageBuildError(f"there is no env_hook {hook.script}", hint="look at script in env_hook")
    interpreter = hook.interpreter.split()
    if not interpreter and not os.access(hook.script, os.X_OK):
        raise ImageBuildError(
            f"the env_hook {hook.script} cannot be run", hint='chmod +x it, or name an interpreter = "bash"'
        )
    if interpreter and find_program(interpreter[0], os.environ.get("PATH", os.defpath)) is None:
        raise HostError(
            f"the interpreter of the env_hook, {interpreter[0]}, is not installed", hint="install it, or name another"
        )
    return [*interpreter, str(hook.script)]


def _write_files(image: ImageDeclaration, env: Mapping[str, Any], content: Path) -> None:
    total = hashlib.sha256()
    for each in image.templates:
        try:
            text = render_file(each.template.read_text(encoding="utf-8"), env)
        except TemplateError as error:
            error.args = (f"{each.template}: {error}",)
            raise
        except UnicodeDecodeError as error:
            raise ImageBuildError(f"{each.template} is not text in UTF-8: {error.reason}") from error
        except FileNotFoundError as error:
            raise ImageBuildError(f"there is no template {each.template}", hint="look at templates") from error
        total.update(text.encode())
        (content / each.output).write_text(text, encoding="utf-8")
    names = {*(each.output for each in image.templates), *(each.filename for each in image.sources)}
    if "user-data" in names and "meta-data" not in names:
        # Without one cloud-init does not look at the other.
        (content / "meta-data").write_text(f"instance-id: {image.name}-{total.hexdigest()[:16]}\n", encoding="utf-8")
