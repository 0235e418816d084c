"""A specification as plain data and back (floor 1): how it is kept in `state.json` and handed to a supervisor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from control.errors import ConfigError
from control.spec.held import HeldSpec, ProcessSpec, SerialSpec
from control.spec.limits import Limits
from control.spec.network import Forward, Network
from control.spec.vm_spec import Boot, DirectBoot, Disk, DiskBoot, Frozen, IsoBoot, RawSpec, Share, Spec, VMSpec

AnySpec = Spec | HeldSpec

_BOOTS: dict[str, type[Boot]] = {"direct": DirectBoot, "iso": IsoBoot, "disk": DiskBoot}
_KINDS: dict[type[AnySpec], str] = {VMSpec: "declared", RawSpec: "raw", ProcessSpec: "process", SerialSpec: "serial"}
_PATHS = {"path", "kernel", "initrd", "iso", "ovmf", "directory", "memory", "state"}


def to_plain(spec: AnySpec) -> dict[str, Any]:
    """Return `spec` as values that JSON knows."""
    plain = _flatten(spec)
    plain["kind"] = _KINDS[type(spec)]
    if isinstance(spec, VMSpec):
        plain["boot"]["kind"] = next(name for name, kind in _BOOTS.items() if isinstance(spec.boot, kind))
    result: dict[str, Any] = plain
    return result


def from_plain(plain: Mapping[str, Any]) -> AnySpec:
    """Return the specification that `to_plain` was given.

    Raises:
        ConfigError: It is none, or that of another version.
    """
    try:
        values = dict(plain)
        kind = values.pop("kind")
        if kind == "serial":
            return SerialSpec(**values)
        if kind == "process":
            limits = Limits(**values.pop("limits"))
            return ProcessSpec(**{**_with_paths(values), "command": tuple(values["command"])}, limits=limits)
        values["networks"] = tuple(Network(**network) for network in values["networks"])
        values["forwards"] = tuple(Forward(**forward) for forward in values["forwards"])
        values["share"] = Share(**_with_paths(values["share"])) if values["share"] is not None else None
        values["limits"] = Limits(**values.get("limits", {}))  # an earlier version kept none
        values = _with_paths(values)
        if kind == "raw":
            return RawSpec(**{**values, "words": tuple(values["words"])})
        if kind != "declared":
            raise ValueError(f"kind is {kind!r}")
        boot = _with_paths(values["boot"])
        values["boot"] = _BOOTS[boot.pop("kind")](**boot)
        values["disks"] = tuple(Disk(**_with_paths(disk)) for disk in values["disks"])
        frozen = values.pop("frozen", None)  # an earlier version knew no templates
        values["frozen"] = Frozen(**_with_paths(frozen)) if frozen is not None else None
        return VMSpec(**{**values, "extra_args": tuple(values["extra_args"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"what is kept of the VM cannot be read: {error!r}", hint="stop it and start it again with this version"
        ) from error


def _flatten(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _flatten(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _flatten(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_flatten(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _with_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: Path(value) if key in _PATHS and value is not None else value for key, value in values.items()}
