"""`user_list`, `user_create`, `user_delete` and `user_set_password` (guest floor)."""

from .. import pages, parameters, steps, usertables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call


def user_list(call: "Call", params: "dict[str, Any]") -> None:
    users = usertables.read_users()
    steps.answer(call, pages.build_page("users", sorted(users), params, lambda name: describe(users[name])))


def user_create(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _create(params))


def _create(params: "dict[str, Any]") -> "Generator[Any, Any, dict[str, Any]]":
    name = params["name"]
    user = yield from usertables.create(name, params)
    if "password" in params:
        try:
            yield from usertables.set_password(name, params["password"], params.get("hashed", False))
        except Exception:
            yield from usertables.delete(name, params.get("create_home", True))
            raise
    return describe(user)


def user_delete(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _delete(params["name"], params.get("remove_home", False)))


def _delete(name: str, remove_home: bool) -> "Generator[Any, Any, dict[str, Any]]":
    yield from usertables.delete(name, remove_home)
    return {}


def user_set_password(call: "Call", params: "dict[str, Any]") -> None:
    steps.answer(call, _set_password(params))


def _set_password(params: "dict[str, Any]") -> "Generator[Any, Any, dict[str, Any]]":
    yield from usertables.set_password(params["name"], params["password"], params.get("hashed", False))
    return {}


def describe(user: "usertables.User") -> "dict[str, Any]":
    return {
        "name": user.name[:256],
        "uid": user.uid,
        "gid": user.gid,
        "comment": user.comment[:256],
        "home": user.home[:4096],
        "shell": user.shell[:4096],
        "groups": [group[:256] for group in user.groups[:256]],
    }


def _is_path(value: object) -> bool:
    return parameters.is_text(value, 1, 1024, "\0\n\r:") and str(value).startswith("/")


_NAME = parameters.matching(usertables.is_name, "the name of a user, 1 to 32 of a-z 0-9 _ - . that begin with a letter")
# Source: passwd(5): a colon or a line feed would begin another field or another user.
_TEXT = parameters.text(0, 256, "\0\n\r:,=")
PASSWORD = parameters.text(1, 512, "\0\n\r")
_PATH = parameters.matching(_is_path, "an absolute path without colons")

CREATE = {
    "name": (True, _NAME),
    "uid": (False, parameters.integer(1, 2**31 - 1)),
    "groups": (False, parameters.list_of(_NAME, 0, 64)),
    "home": (False, _PATH),
    "shell": (False, _PATH),
    "comment": (False, _TEXT),
    "system": (False, parameters.boolean),
    "create_home": (False, parameters.boolean),
    "password": (False, PASSWORD),
    "hashed": (False, parameters.boolean),
}

METHODS: "dict[str, tuple[Any, ...]]" = {
    "user_list": (user_list, pages.build_parameters(parameters.text(1, 256))),
    "user_create": (user_create, CREATE),
    "user_delete": (user_delete, {"name": (True, _NAME), "remove_home": (False, parameters.boolean)}),
    "user_set_password": (
        user_set_password,
        {"name": (True, _NAME), "password": (True, PASSWORD), "hashed": (False, parameters.boolean)},
    ),
}
