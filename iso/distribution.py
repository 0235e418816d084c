"""Which distribution builds the image and which of its packages (room: image; data: `distributions/*.toml`)."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from iso.failure import BuildError

DATA = Path(__file__).resolve().parent / "distributions"


@dataclass(frozen=True)
class Distribution:
    """The packages of one distribution that the guest is made of.

    Attributes:
        key: The name of its data file, `debian-12`.
        title: Its name for people.
        python: The guest's interpreter, `python3.11`.
        kernel_meta: The package whose dependency names the kernel to take.
        kernel_depends: The pattern of that dependency; its group is the kernel's own version.
        kernel_packages: Names of the kernel's packages, `{}` standing for that version.
        packages: For each package of the guest, the patterns of the files taken from it.
        boot_packages: The same for what only the ISO needs.
    """

    key: str
    title: str
    python: str
    kernel_meta: str
    kernel_depends: str
    kernel_packages: tuple[str, ...]
    packages: dict[str, list[str]]
    boot_packages: dict[str, list[str]]


def load(key: str) -> Distribution:
    """Read the data file of one distribution.

    Raises:
        BuildError: There is none of that name; names those that exist.
    """
    path = DATA / f"{key}.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in DATA.glob("*.toml")))
        raise BuildError(
            f"the guest image cannot be built from the packages of {key}",
            hint=f"build it on one of: {known}; or describe {key} in iso/distributions/",
        ) from error
    kernel = data["kernel"]
    return Distribution(
        key=key,
        title=data["title"],
        python=data["python"],
        kernel_meta=kernel["meta"],
        kernel_depends=kernel["depends"],
        kernel_packages=tuple(kernel["packages"]),
        packages=data["packages"],
        boot_packages=data["boot"],
    )


def probe_key(os_release: Path = Path("/etc/os-release")) -> str:
    """Name the distribution this host runs, as `debian-12`.

    Source: os-release(5).
    """
    values: dict[str, str] = {}
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition("=")
        values[name] = value.strip("\"'")
    return f"{values.get('ID', 'unknown')}-{values.get('VERSION_ID', 'unknown')}"
