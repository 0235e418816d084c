"""`service_list`, `service_status`, `service_start`, `service_stop` and `service_restart` (guest floor)."""

from .. import pages, parameters, services, steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from ..dispatch import Call

# systemd gives a service 90 s to start or to stop, and a restart is both. Source: systemd-system.conf(5).
_CHANGE_S = 200.0


def service_list(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _list_services(params))


def _list_services(params: "dict[str, Any]") -> "Generator[Any, Any, dict[str, Any]]":
    found = yield from services.find_all()
    return (yield from pages.build_page("services", sorted(found), params, found.get))


def service_status(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, services.get_status(params["name"]))


def _change(action: str) -> "Callable[[Call, dict[str, Any]], None]":
    def change(call: "Call", params: "dict[str, Any]") -> None:
        steps.answer(call, services.carry_out(params["name"], action, params.get("timeout_s", _CHANGE_S)))

    return change


_NAME = parameters.matching(services.is_name, "the name of a service")
_ONE = {"name": (True, _NAME)}
_ACTION = dict(_ONE, timeout_s=(False, parameters.number(1, 3600)))

METHODS: "dict[str, tuple[Any, ...]]" = {
    "service_list": (service_list, pages.build_parameters(_NAME)),
    "service_status": (service_status, _ONE),
    "service_start": (_change("start"), _ACTION),
    "service_stop": (_change("stop"), _ACTION),
    "service_restart": (_change("restart"), _ACTION),
}
