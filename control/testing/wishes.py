"""What the machines of a test are to be like (floor 6): from the ini file, `--vm-matrix`, markers and calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from control.errors import ConfigError
from control.spec.network import Network, parse_network
from control.spec.tomlfile import suggest
from control.spec.vm_spec import CPUS_MAX, Display
from control.units import parse_size_bytes
from control.vm.disposable import Shape

TROUBLES = ("panic", "oops", "oom", "unit")
"""What fails a test, unless it is allowed: see `control.testing.troubles`."""

KEYS = ("image", "memory", "cpus", "net", "display", "files", "fresh", "allow", "timeout")

MATRIX_KEYS = ("image", "memory", "cpus", "net")


@dataclass(frozen=True)
class Wish:
    """What a machine is to be like.

    Attributes:
        files: What is copied into it before the test: a path in the guest, and a path of the host or the bytes.
        fresh: It boots, and is no clone.
        allow: Those of `TROUBLES` that are none.
        timeout: Seconds that each command and each wait may take when it does not say otherwise.
    """

    shape: Shape
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    fresh: bool = False
    allow: frozenset[str] = frozenset()
    timeout: float = 60.0


def read_wish(values: Mapping[str, Any], directory: Path) -> Wish:
    """Read what was said with `KEYS`; paths are relative to `directory`. Raises ConfigError for what cannot be."""
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"a VM has no {key[:80]!r}", key="vm", hint=suggest(key, KEYS, kind="they have"))
    memory = values.get("memory")
    shape = Shape(
        image=_find_image(str(values.get("image", "builtin")), directory),
        memory_bytes=parse_size_bytes(str(memory), key="memory") if memory else None,
        cpus=_read_cpus(values.get("cpus", 1)),
        networks=_read_networks(values.get("net", "restricted")),
        display=_read_display(str(values.get("display", "std"))),
    )
    allow = values.get("allow", ())
    return Wish(
        shape,
        files={path: _read_source(path, source, directory) for path, source in dict(values.get("files", {})).items()},
        fresh=bool(values.get("fresh", False)),
        allow=_read_troubles((allow,) if isinstance(allow, str) else tuple(allow)),
        timeout=float(values.get("timeout", 60.0)),
    )


def _find_image(image: str, directory: Path) -> str:
    return str(directory / image) if "/" in image else image


def _read_cpus(value: object) -> int:
    try:
        cpus = int(str(value))
    except ValueError:
        cpus = 0
    if not 1 <= cpus <= CPUS_MAX:
        raise ConfigError(f"a guest cannot have {value!r} CPUs", key="cpus", hint=f"1 to {CPUS_MAX}")
    return cpus


def _read_networks(value: object) -> tuple[Network, ...]:
    words = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [str(value)]
    return tuple(parse_network(str(word)) for word in words)


def _read_display(value: str) -> Display:
    if value not in get_args(Display):
        raise ConfigError(f"there is no display {value[:80]!r}", key="display", hint=", ".join(get_args(Display)))
    return value  # type: ignore[return-value]  # mypy does not narrow by get_args


def _read_troubles(names: tuple[str, ...]) -> frozenset[str]:
    for name in names:
        if name not in TROUBLES:
            raise ConfigError(f"there is no trouble {name[:80]!r}", key="allow", hint=", ".join(TROUBLES))
    return frozenset(names)


def _read_source(path: str, source: object, directory: Path) -> Path | bytes:
    if not path.startswith("/"):
        raise ConfigError(f"{path[:80]!r} is no absolute path in the guest", key="files", hint="begin it with a slash")
    if isinstance(source, bytes):
        return source
    return directory / str(source)


def read_matrix(words: list[str]) -> list[dict[str, str]]:
    """Read `KEY=VALUE,VALUE` words: a wish for each combination. Raises ConfigError.

    >>> read_matrix(["image=builtin,debian", "cpus=2"])
    [{'image': 'builtin', 'cpus': '2'}, {'image': 'debian', 'cpus': '2'}]
    """
    cells: list[dict[str, str]] = [{}]
    for word in words:
        key, equals, values = word.partition("=")
        if key not in MATRIX_KEYS or not equals or not all(values.split(",")):
            raise ConfigError(f"--vm-matrix {word[:80]!r} is not KEY=VALUE,…", hint="as in image=builtin,debian")
        cells = [{**cell, key: value} for cell in cells for value in values.split(",")]
    return cells
