"""`ssh_key_list`, `ssh_key_add` and `ssh_key_remove` (guest floor)."""

from .. import dispatch, parameters, sshkeys, steps, usertables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..dispatch import Call

_MAX_KEYS = 256


def ssh_key_list(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    user = usertables.get_user(params["user"])
    keys = sshkeys.list_keys(user)
    listed = [
        {"type": key.type, "key": key.blob, "comment": key.comment[:1024], "fingerprint": key.fingerprint}
        for key in keys[:_MAX_KEYS]
    ]
    return {"keys": listed, "total": len(keys), "others": sshkeys.count_others(user)}


def ssh_key_add(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    user = usertables.get_user(params["user"])
    try:
        added = sshkeys.add_keys(user, params["keys"])
    except OSError as error:
        raise steps.refuse(error) from None
    return {"added": added}


def ssh_key_remove(_call: "Call", params: "dict[str, Any]") -> "dict[str, Any]":
    user = usertables.get_user(params["user"])
    keys = [sshkeys.parse(line) for line in params.get("keys", [])]
    fingerprints = set(params.get("fingerprints", []))
    if not keys and not fingerprints:
        raise dispatch.CallError(dispatch.INVALID_PARAMS, "give keys or fingerprints", {"key": "keys"})
    try:
        removed = sshkeys.remove_keys(user, {key.blob for key in keys if key is not None}, fingerprints)
    except OSError as error:
        raise steps.refuse(error) from None
    return {"removed": removed}


def _is_fingerprint(value: object) -> bool:
    return parameters.is_text(value, 50, 50) and str(value).startswith("SHA256:")


_USER = (True, parameters.matching(usertables.is_name, "the name of a user"))
KEYS = parameters.list_of(
    parameters.matching(sshkeys.is_key, "a public key on one line, without options"), 1, _MAX_KEYS
)

METHODS: "dict[str, tuple[Any, ...]]" = {
    "ssh_key_list": (ssh_key_list, {"user": _USER}),
    "ssh_key_add": (ssh_key_add, {"user": _USER, "keys": (True, KEYS)}),
    "ssh_key_remove": (
        ssh_key_remove,
        {
            "user": _USER,
            "keys": (False, KEYS),
            "fingerprints": (
                False,
                parameters.list_of(parameters.matching(_is_fingerprint, "a fingerprint like SHA256:…"), 1, _MAX_KEYS),
            ),
        },
    ),
}
