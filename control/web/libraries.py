"""The browser's libraries (floor 5): pinned packages of the npm registry, fetched once, held against their hashes.

They are kept for the user in the cache directory, unpacked below the name of their hash, and served from there.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from control.errors import ControlError, HostError, ImageBuildError
from control.image.download import fetch
from control.paths import cache_directory

REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True)
class Library:
    """A package of the registry.

    Attributes:
        name: Under which the pages know it.
        package, version: Which one it is.
        sha256: Of the archive.
        licence: Its SPDX name, and the file that holds its text.
        parts: What is served of it.
    """

    name: str
    package: str
    version: str
    sha256: str
    licence: tuple[str, str]
    parts: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.package}/-/{self.package.rsplit('/', 1)[-1]}-{self.version}.tgz"


LIBRARIES = (
    Library("novnc", "@novnc/novnc", "1.7.0", "32689f18d6abe96bc6530828a6bd0b9ae33bda07c083a6575ed255b5a8f2e903",
            ("MPL-2.0", "LICENSE.txt"), ("core", "vendor")),
    Library("xterm", "@xterm/xterm", "6.0.0", "908e66e04af6c8dc6b00dd3b54de088e2e81e5ed866284fd6c2fb3c2d1c7a3f6",
            ("MIT", "LICENSE"), ("lib", "css")),
    Library("addon-fit", "@xterm/addon-fit", "0.11.0",
            "26003b4517a132b64e4ff228fd88a5fda3fff5e606c76093f6dcff772e9ecec0", ("MIT", "LICENSE"), ("lib",)),
    Library("addon-search", "@xterm/addon-search", "0.16.0",
            "e9d0795c72f4de749ed996ad7868f0738b44f37cee1e483be81977cefd7f4f81", ("MIT", "LICENSE"), ("lib",)),
    Library("addon-web-links", "@xterm/addon-web-links", "0.12.0",
            "bf463cfff1af4bb1903509830c62ed06bcd0589039f15ea5fba71d7bae5a86da", ("MIT", "LICENSE"), ("lib",)),
    Library("addon-unicode11", "@xterm/addon-unicode11", "0.9.0",
            "b665667792f916873fe946ba98cc98a1a742af08e163fb66e1c0809c120ca42e", ("MIT", "LICENSE"), ("lib",)),
)  # fmt: skip


def ensure_libraries(note: Callable[[str], None]) -> dict[str, Path]:
    """Return where each library lies, by name; what is not there yet is fetched.

    Raises:
        HostError: One cannot be had, or kept; what is there already stays.
    """
    place = cache_directory() / "web"
    return {library.name: _ensure(library, place, note) for library in LIBRARIES}


def _ensure(library: Library, place: Path, note: Callable[[str], None]) -> Path:
    final = place / library.sha256
    if final.is_dir():
        return final
    partial = place / f".{library.sha256}.{os.getpid()}"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        archive = fetch(library.url, library.sha256, place / "archives", note)
        _unpack(archive, partial)
        try:
            partial.rename(final)
        except OSError:
            if not final.is_dir():  # another server was quicker
                raise
    except ImageBuildError as error:
        raise HostError(
            f"{library.package} {library.version} cannot be had: {error}",
            hint="the web console needs it once, from registry.npmjs.org; then it works without a network",
        ) from error
    except (OSError, tarfile.TarError) as error:
        raise HostError(f"{library.package} cannot be kept in {place}: {error}", hint="make room there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _unpack(archive: Path, target: Path) -> None:
    """Unpack an archive of npm, whose files lie in `package/`; the filter keeps them within `target`."""
    with tarfile.open(archive) as packed:
        packed.extractall(target, filter="data")
    inner = target / "package"
    if not inner.is_dir():
        raise ControlError(f"{archive} is no package of npm")
    for entry in inner.iterdir():
        entry.rename(target / entry.name)
    inner.rmdir()
