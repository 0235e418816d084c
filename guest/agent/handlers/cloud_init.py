"""`cloud_init_apply` (guest floor): what a cloud image does at its first boot, done when the host asks for it."""

from .. import cloudinit, streams
from . import packages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call


def cloud_init_apply(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    directives = params["directives"]
    cloudinit.check(directives)
    cloudinit.check_permissions(call.agent, directives)
    transcript = packages.build_transcript(call, params)
    return packages.start_job(call, cloudinit.apply(call.agent, directives, transcript), transcript)


def _check_directives(value: object) -> "str | None":
    return None if isinstance(value, dict) and value else "is not an object of at least one directive"


METHODS: "dict[str, tuple[Any, ...]]" = {
    "cloud_init_apply": (
        cloud_init_apply,
        {"directives": (True, _check_directives), "output": (False, streams.check_number)},
    ),
}
