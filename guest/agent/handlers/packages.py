"""`package_list`, `package_install`, `package_remove` and `package_update` (guest floor)."""

from .. import packages, pages, parameters, steps, streams
from ..transcript import Transcript

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call


def package_list(call: "Call", params: "dict[str, Any]") -> None:
    packages.require_apt()
    steps.answer(call, _list_packages(params))


def _list_packages(params: "dict[str, Any]") -> "Generator[Any, Any, dict[str, Any]]":
    found = yield from packages.read_installed()
    prefix = params.get("prefix", "")
    names = sorted(name for name in found if name.startswith(prefix))
    return (yield from pages.build_page("packages", names, params, found.get))


def package_install(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    transcript = open_transcript(call, params)
    refresh, lock_s = params.get("refresh", False), _get_lock_s(params)
    return start_job(call, packages.install(params["names"], transcript, refresh, lock_s), transcript)


def package_remove(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    transcript = open_transcript(call, params)
    purge = params.get("purge", False)
    return start_job(call, packages.remove(params["names"], transcript, purge, _get_lock_s(params)), transcript)


def package_update(call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    transcript = open_transcript(call, params)
    lists_only = params.get("lists_only", False)
    work = packages.upgrade(params.get("names"), transcript, lists_only, _get_lock_s(params))
    return start_job(call, work, transcript)


def open_transcript(call: "Call", params: "dict[str, Any]") -> Transcript:
    packages.require_apt()
    return build_transcript(call, params)


def build_transcript(call: "Call", params: "dict[str, Any]") -> Transcript:
    """The transcript that goes into the stream `output`, if there is one."""
    number = params.get("output")
    return Transcript(None if number is None else call.agent.streams.open_writer(number))


def start_job(call: "Call", work: "Generator[Any, Any, Any]", transcript: Transcript) -> "dict[str, Any]":
    """Begins the work as a job, whose transcript ends with it."""

    def run() -> "Generator[Any, Any, Any]":
        try:
            return (yield from work)
        finally:
            transcript.close()

    try:
        job = call.start_job()
    except Exception:
        transcript.close()
        raise
    steps.follow(job, call.agent.loop, run())
    return {"job": job.id}


def _get_lock_s(params: "dict[str, Any]") -> float:
    lock_s: float = params.get("lock_timeout_s", packages.LOCK_S)
    return lock_s


_WISHES = parameters.list_of(parameters.matching(packages.is_wish, "a package: NAME, NAME=VERSION"), 1, 256)
NAMES = parameters.list_of(parameters.matching(packages.is_name, "the name of a package"), 1, 256)
_JOB = {"output": (False, streams.check_number), "lock_timeout_s": (False, parameters.number(0, 3600))}
_PREFIX = parameters.text(1, 128)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "package_list": (package_list, dict(pages.build_parameters(parameters.text(1, 256)), prefix=(False, _PREFIX))),
    "package_install": (
        package_install,
        dict(_JOB, names=(True, _WISHES), refresh=(False, parameters.boolean)),
    ),
    "package_remove": (package_remove, dict(_JOB, names=(True, NAMES), purge=(False, parameters.boolean))),
    "package_update": (package_update, dict(_JOB, names=(False, NAMES), lists_only=(False, parameters.boolean))),
}
