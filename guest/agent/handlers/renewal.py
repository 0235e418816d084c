"""`get_identity`, `renew_identity` (guest floor): a clone becomes a machine of its own before anybody works with it."""

import binascii

from .. import clock, hostname, parameters, renewal, steps, system

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call

_MAX_TIME_NS = 2**63 - 1
_HEX = frozenset("0123456789abcdef")


def get_identity(_call: "Call", _params: "dict[str, Any]") -> "dict[str, Any]":
    return {"hostname": system.read_hostname(), "machine_id": renewal.read_machine_id()}


def renew_identity(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    try:
        # First of all what the rest depends on: keys made of the template's random numbers would be everybody's.
        renewal.stir(binascii.a2b_base64(params["seed"]))
        clock.set_clock(params["time_ns"])
        is_reachable = params["reachable"] if "reachable" in params else renewal.has_network()
        server = renewal.hold_ssh() if is_reachable else ""
        old_name, old_id = system.read_hostname(), renewal.read_machine_id()
        hostname.set_hostname(params["hostname"], persistent=False)
        renewal.set_machine_id(old_id, params["machine_id"])
        interfaces = renewal.set_macs(params.get("macs", {}))
    except OSError as error:
        raise steps.refuse(error) from None
    # Nobody can take it for the template any more. What takes longer need not be waited for.
    loop = call.agent.loop
    loop.soon(lambda: hostname.keep_hostname(old_name, params["hostname"]))
    loop.soon(clock.keep_time)
    steps.Steps(loop, _finish(is_reachable, server, interfaces), _report)
    steps.Steps(loop, renewal.renew_journal(old_id, params["machine_id"]), _report)
    return {"hostname": params["hostname"], "machine_id": params["machine_id"], "interfaces": interfaces}


def _finish(is_reachable: bool, server: str, interfaces: "list[str]") -> "Generator[Any, Any, None]":
    if not is_reachable:
        # Where nobody could reach it, no server comes back; that its keys are gone is no less.
        server = renewal.hold_ssh()
    try:
        yield from renewal.run_all(renewal.list_lease_programs(interfaces))
    finally:
        yield from renewal.renew_ssh(server, comes_back=is_reachable)


def _report(_value: object, error: "Exception | None") -> None:
    """What fails here is reported by the loop: nobody waits for an answer any more."""
    if error is not None:
        raise error


def _check_seed(value: object) -> "str | None":
    if parameters.is_text(value, 44, 1024):
        try:
            binascii.a2b_base64(value, strict_mode=True)  # type: ignore[arg-type]
        except binascii.Error:
            pass
        else:
            return None
    return "is not at least 32 bytes in base64"


def _check_machine_id(value: object) -> "str | None":
    if isinstance(value, str) and len(value) == 32 and _HEX.issuperset(value):
        return None
    return "is not 32 digits of a to f and 0 to 9"


def _check_macs(value: object) -> "str | None":
    if isinstance(value, dict) and len(value) <= 64 and all(map(_is_mac, value)) and all(map(_is_mac, value.values())):
        return None
    return "is not an object of at most 64 MAC addresses to MAC addresses"


def _is_mac(value: object) -> bool:
    if not isinstance(value, str) or len(value) != 17:
        return False
    parts = value.split(":")
    return len(parts) == 6 and all(len(part) == 2 and _HEX.issuperset(part) for part in parts)


METHODS: "dict[str, tuple[Any, ...]]" = {
    "get_identity": (get_identity, {}),
    "renew_identity": (
        renew_identity,
        {
            "hostname": (True, parameters.matching(hostname.is_hostname, "a name of a host, 1 to 64 of a-z 0-9 - .")),
            "machine_id": (True, _check_machine_id),
            "seed": (True, _check_seed),
            "time_ns": (True, parameters.integer(0, _MAX_TIME_NS)),
            "reachable": (False, parameters.boolean),
            "macs": (False, _check_macs),
        },
    ),
}
