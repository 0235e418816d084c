"""Directives of cloud-init, a well-defined part of them, carried out on request (guest floor); for `cloud_init_apply`.

Everything is checked before anything is done: a directive or a key that is not known is an error that names it. Then
the directives are carried out in a fixed order; one that fails is recorded, and the ones after it are carried out all
the same, as cloud-init does. Source: cloud-init, module reference (the meaning of each directive).
"""

import os

from . import clock, dispatch, files, hostname, packages, parameters, pathpolicy, sshkeys, steps, textfile, usertables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    from .main import Agent
    from .parameters import Check
    from .transcript import Transcript

    Work = Generator[Any, Any, str]

_MAX_CONTENT = 2 * 1024 * 1024
_LOCK_S = 120.0
_SUDOERS = "/etc/sudoers.d"


class _Wrong(Exception):
    """What is wrong with the directives; `key` says where."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__("%s %s" % (key, reason))
        self.key = key


def check(directives: object) -> None:
    """Refuses directives that cannot be carried out as they stand.

    Raises:
        CallError: Wrong parameters; `data.key` names the directive and the key in it. Nothing has been done.
    """
    try:
        _check_object("directives", directives, _DIRECTIVES)
    except _Wrong as fault:
        raise dispatch.CallError(dispatch.INVALID_PARAMS, str(fault), {"key": fault.key[:256]}) from None


def check_permissions(agent: "Agent", directives: "dict[str, Any]") -> None:
    """Refuses directives that do what the configuration lets no method do.

    Raises:
        CallError: Not permitted. Nothing has been done.
    """
    for name, methods in _METHODS.items():
        for method in methods:
            if name in directives and not agent.guard.allows(method):
                text = "%s is not permitted, because %s is not" % (name, method)
                raise dispatch.CallError(dispatch.NOT_PERMITTED, text, {"key": name})


def apply(agent: "Agent", directives: "dict[str, Any]", transcript: "Transcript") -> "Generator[Any, Any, Any]":
    """Carries out what `check` has let through; gives what was done for each directive."""
    results = []
    for name, carry_out in _ORDER:
        if name not in directives:
            continue
        result = {"directive": name, "ok": True}
        try:
            result["detail"] = (yield from carry_out(agent, directives[name], transcript))[:1024]
        except dispatch.CallError as error:
            if error.code == dispatch.CANCELLED:
                raise
            result.update(ok=False, detail=str(error)[:1024])
        except OSError as error:
            result.update(ok=False, detail=str(steps.refuse(error))[:1024])
        results.append(result)
    return {"directives": results, "failed": sum(1 for result in results if not result["ok"])}


# Carrying out


def _set_hostname(_agent: "Agent", name: str, _transcript: "Transcript") -> "Work":
    hostname.set_hostname(name)
    yield
    return "the guest is called %s" % name


def _set_timezone(_agent: "Agent", name: str, _transcript: "Transcript") -> "Work":
    clock.set_timezone(name)
    yield
    return "the time zone is %s" % name


def _make_users(agent: "Agent", users: "list[dict[str, Any]]", _transcript: "Transcript") -> "Work":
    made = 0
    for wish in users:
        name = wish["name"]
        groups = _split_groups(wish.get("groups", []))
        if name in usertables.read_users():
            if groups:
                yield from usertables.add_to_groups(name, groups)
        else:
            yield from usertables.create(name, _build_account(wish, groups))
            made += 1
        if "plain_text_passwd" in wish or "passwd" in wish:
            hashed = "passwd" in wish
            yield from usertables.set_password(name, wish["passwd" if hashed else "plain_text_passwd"], hashed)
        if wish.get("lock_passwd", False):
            yield from usertables.lock_password(name)
        if wish.get("ssh_authorized_keys"):
            sshkeys.add_keys(usertables.get_user(name), wish["ssh_authorized_keys"])
        if wish.get("sudo"):
            _allow_sudo(name, wish["sudo"])
    return "%d users made, %d were there" % (made, len(users) - made)


def _build_account(wish: "dict[str, Any]", groups: "list[str]") -> "dict[str, Any]":
    account: "dict[str, Any]" = {"groups": groups, "create_home": not wish.get("no_create_home", False)}
    for theirs, ours in (("gecos", "comment"), ("homedir", "home"), ("shell", "shell"), ("uid", "uid")):
        if theirs in wish:
            account[ours] = wish[theirs]
    account["system"] = wish.get("system", False)
    return account


def _split_groups(groups: "Any") -> "list[str]":
    return [group.strip() for group in groups.split(",")] if isinstance(groups, str) else list(groups)


def _allow_sudo(name: str, rules: "Any") -> None:
    if not os.path.isdir(_SUDOERS):
        raise dispatch.CallError(dispatch.NOT_SUPPORTED, "this guest has no %s" % _SUDOERS)
    lines = ["%s %s\n" % (name, rule) for rule in ([rules] if isinstance(rules, str) else rules)]
    # A dot in the name would make sudo pass the file over. Source: sudoers(5).
    textfile.replace("%s/90-unhinged-%s" % (_SUDOERS, name.replace(".", "-")), "".join(lines), 0o440)


def _add_keys(_agent: "Agent", keys: "list[str]", _transcript: "Transcript") -> "Work":
    added = sshkeys.add_keys(usertables.get_user("root"), keys)
    yield
    return "%d keys added for root" % added


def _set_passwords(_agent: "Agent", wish: "dict[str, Any]", _transcript: "Transcript") -> "Work":
    for user in wish["users"]:
        yield from usertables.set_password(user["name"], user["password"], user.get("type", "text") == "hash")
    return "%d passwords set" % len(wish["users"])


def _write_files(agent: "Agent", wishes: "list[dict[str, Any]]", _transcript: "Transcript") -> "Work":
    for wish in wishes:
        _write_file(agent, wish)
        yield
    return "%d files written" % len(wishes)


def _write_file(agent: "Agent", wish: "dict[str, Any]") -> None:
    path = files.encode(wish["path"])
    data = _decode_content(wish)
    owner = _find_owner(wish["owner"]) if "owner" in wish else None
    with agent.guard.as_user():
        _make_parents(agent, path)
        with agent.guard.paths.find(path, pathpolicy.WRITE) as place:
            if wish.get("append", False) and place.find_stat() is not None:
                fd = place.open_file(os.O_RDWR)
                try:
                    before = os.pread(fd, _MAX_CONTENT, 0)
                    if os.fstat(fd).st_size > len(before):
                        raise OSError(27, "it is too large to append to", wish["path"])
                    data = before + data
                finally:
                    os.close(fd)
            limit = agent.config["transfer_bytes"]
            if limit and len(data) > limit:
                text = "%s: more than transfer_bytes of the agent's configuration" % wish["path"]
                raise dispatch.CallError(dispatch.TOO_LARGE, text)
            place.check()
            hidden = files.Hidden(place.dir_fd, place.name)
            try:
                fd = hidden.open()
                files.write_all(fd, data, 0)
                if owner is not None:
                    os.fchown(fd, *owner)
                os.fchmod(fd, int(str(wish.get("permissions", "0644")), 8))
                place.check()
                hidden.commit()
            finally:
                hidden.discard()


def _make_parents(agent: "Agent", path: bytes) -> None:
    parent = os.path.dirname(path)
    while parent not in (b"", b"/") and not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    for name in os.path.dirname(path)[len(parent) :].split(b"/"):
        if name:
            parent = parent.rstrip(b"/") + b"/" + name
            with agent.guard.paths.find(parent, pathpolicy.WRITE) as place:
                place.check()
                os.mkdir(place.name, 0o755, dir_fd=place.dir_fd)


def _find_owner(text: str) -> "tuple[int, int]":
    user, _, group = text.partition(":")
    uid = gid = -1
    if user:
        found = usertables.get_user(user)
        uid, gid = found.uid, found.gid
    if group:
        gid = usertables.get_group(group)
    return uid, gid


def _decode_content(wish: "dict[str, Any]") -> bytes:
    content: str = wish.get("content", "")
    if wish.get("encoding", "text/plain") == "text/plain":
        return content.encode("utf-8")
    return _decode_base64(content) or b""


def _decode_base64(text: str) -> "bytes | None":
    """What base64 stands for, None when it is none; line feeds in it do not count."""
    import binascii

    text = "".join(text.split())
    try:
        data = binascii.a2b_base64(text.encode("ascii"))
    except (ValueError, UnicodeEncodeError):
        return None
    # What is not of the alphabet is passed over by the library, and would be lost unseen.
    return data if binascii.b2a_base64(data, newline=False).decode("ascii") == text else None


def _update_packages(_agent: "Agent", wanted: bool, transcript: "Transcript") -> "Work":
    if not wanted:
        return "not wanted"
    packages.require_apt()
    yield from packages.update_lists(transcript, _LOCK_S)
    return "the lists of packages are up to date"


def _upgrade_packages(_agent: "Agent", wanted: bool, transcript: "Transcript") -> "Work":
    if not wanted:
        return "not wanted"
    packages.require_apt()
    done = yield from packages.upgrade(None, transcript, False, _LOCK_S)
    return "%d packages changed" % done["changed_total"]


def _install_packages(_agent: "Agent", names: "list[str]", transcript: "Transcript") -> "Work":
    packages.require_apt()
    done = yield from packages.install(names, transcript, False, _LOCK_S)
    return "%d packages changed" % done["changed_total"]


def _run_commands(agent: "Agent", commands: "list[Any]", transcript: "Transcript") -> "Work":
    from .handlers import command as handler

    failed = []
    for number, command in enumerate(commands):
        # A string is a line of shell, as cloud-init has it. It stands in the directive itself; nothing is put into it.
        argv = ["sh", "-c", command] if isinstance(command, str) else command
        try:
            start = handler.prepare(agent, {"argv": argv})
        except dispatch.CallError as error:
            failed.append("%d: %s" % (number, error))
            continue
        result = yield steps.Run(argv, transcript=transcript, start=start)
        if result.exit_code != 0:
            how = "exit code %s" % result.exit_code if result.signal is None else "signal %d" % result.signal
            failed.append("%d: %s" % (number, how))
    if failed:
        text = "of %d commands these failed: %s" % (len(commands), ", ".join(failed))
        raise dispatch.CallError(dispatch.FAILED, text)
    return "%d commands run" % len(commands)


# Checking. A table of keys has (required, check); a check gives a reason, or raises _Wrong for something inside.


def _check_object(where: str, value: object, keys: "dict[str, tuple[bool, Any]]") -> None:
    if not isinstance(value, dict):
        raise _Wrong(where, "is not an object")
    inside = "" if where == "directives" else where + "."
    for key in value:
        if key not in keys:
            raise _Wrong(inside + str(key)[:64], "is not known here")
    for key, (required, check_value) in keys.items():
        if key in value:
            reason = check_value(inside + key, value[key])
            if reason is not None:
                raise _Wrong(inside + key, reason)
        elif required:
            raise _Wrong(inside + key, "is missing")


def _plain(check_value: "Check") -> "Callable[[str, object], str | None]":
    return lambda _where, value: check_value(value)


def _object(keys: "dict[str, tuple[bool, Any]]") -> "Callable[[str, object], None]":
    return lambda where, value: _check_object(where, value, keys)


def _list(check_item: "Callable[[str, object], str | None]", most: int) -> "Callable[[str, object], None]":
    def check_list(where: str, value: object) -> None:
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            raise _Wrong(where, "is not a list of 1 to %d entries" % most)
        for number, item in enumerate(value):
            place = "%s[%d]" % (where, number)
            reason = check_item(place, item)
            if reason is not None:
                raise _Wrong(place, reason)

    return check_list


def _check_groups(_where: str, value: object) -> "str | None":
    groups = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else None
    if groups is None or len(groups) > 64 or not all(isinstance(group, str) for group in groups):
        return "is neither a list of groups nor a string with commas"
    return None if all(usertables.is_name(group.strip()) for group in groups) else "holds something that is no group"


def _check_sudo(_where: str, value: object) -> "str | None":
    rules = [] if value is None or value is False else value if isinstance(value, list) else [value]
    is_right = all(parameters.is_text(rule, 1, 1024, "\0\n\r\\") for rule in rules)
    return None if is_right and len(rules) <= 16 else "is neither null, false, nor one rule of sudo or several"


def _check_permissions(_where: str, value: object) -> "str | None":
    if isinstance(value, str) and 3 <= len(value) <= 5 and set(value) <= set("01234567"):
        return None
    return "is not a mode as a string, like 0644"


def _check_file(where: str, value: object) -> "str | None":
    _check_object(where, value, _FILE)
    wish: "dict[str, Any]" = value  # type: ignore[assignment] # it has just been found to be one
    is_text = wish.get("encoding", "text/plain") == "text/plain"
    return None if is_text or _decode_base64(wish.get("content", "")) is not None else "holds what is not base64"


def _check_owner(_where: str, value: object) -> "str | None":
    parts = value.split(":") if isinstance(value, str) else []
    is_right = 1 <= len(parts) <= 2 and any(parts) and all(not part or usertables.is_name(part) for part in parts)
    return None if is_right else "is not USER, USER:GROUP or :GROUP"


def _check_command(_where: str, value: object) -> "str | None":
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not 1 <= len(words) <= 4096 or not words[0]:
        return "is neither a line of shell nor a list of a program and its arguments"
    is_right = all(parameters.is_text(word, 0, 131072) for word in words)
    return None if is_right else "holds something that no argument can be"


def _no(what: object) -> "Callable[[str, object], str | None]":
    return lambda _where, value: None if value is what else "can only be %s here" % str(what).lower()


_BOOLEAN = _plain(parameters.boolean)
_NAME = _plain(parameters.matching(usertables.is_name, "the name of a user"))
_HOST = _plain(parameters.matching(hostname.is_hostname, "a name of a host"))
_KEYS = _list(_plain(parameters.matching(sshkeys.is_key, "a public key on one line, without options")), 256)
_PASSWORD = _plain(parameters.text(1, 512, "\0\n\r"))
_LINE = _plain(parameters.text(0, 256, "\0\n\r:,="))
_PLACE = _plain(
    parameters.matching(
        lambda value: parameters.is_text(value, 1, 1024, "\0\n\r:") and value.startswith("/"), "an absolute path"
    )
)
_USER = {
    "name": (True, _NAME),
    "gecos": (False, _LINE),
    "groups": (False, _check_groups),
    "homedir": (False, _PLACE),
    "shell": (False, _PLACE),
    "uid": (False, _plain(parameters.integer(1, 2**31 - 1))),
    "system": (False, _BOOLEAN),
    "no_create_home": (False, _BOOLEAN),
    "passwd": (False, _PASSWORD),
    "plain_text_passwd": (False, _PASSWORD),
    "lock_passwd": (False, _BOOLEAN),
    "ssh_authorized_keys": (False, _KEYS),
    "sudo": (False, _check_sudo),
}
_FILE = {
    "path": (True, _plain(files.check_path)),
    "content": (False, _plain(parameters.text(0, _MAX_CONTENT, ""))),
    "encoding": (False, _plain(parameters.choice("text/plain", "b64", "base64"))),
    "owner": (False, _check_owner),
    "permissions": (False, _check_permissions),
    "append": (False, _BOOLEAN),
}
_PASSWORDS = {
    "users": (
        True,
        _list(
            _object(
                {
                    "name": (True, _NAME),
                    "password": (True, _PASSWORD),
                    "type": (False, _plain(parameters.choice("text", "hash"))),
                }
            ),
            256,
        ),
    ),
    "expire": (False, _no(False)),
}
_PACKAGE = _plain(parameters.matching(packages.is_wish, "a package: NAME or NAME=VERSION"))
_DIRECTIVES = {
    "hostname": (False, _HOST),
    "fqdn": (False, _HOST),
    "timezone": (False, _plain(parameters.text(1, 255, "\0\n\r "))),
    "users": (False, _list(_object(_USER), 256)),
    "ssh_authorized_keys": (False, _KEYS),
    "chpasswd": (False, _object(_PASSWORDS)),
    "write_files": (False, _list(_check_file, 1024)),
    "package_update": (False, _BOOLEAN),
    "package_upgrade": (False, _BOOLEAN),
    "packages": (False, _list(_PACKAGE, 256)),
    "runcmd": (False, _list(_check_command, 1024)),
}
# A full name of the host is a name of the host: where both are given, it comes last and stays.
_ORDER: "tuple[tuple[str, Callable[..., Any]], ...]" = (
    ("hostname", _set_hostname),
    ("fqdn", _set_hostname),
    ("timezone", _set_timezone),
    ("users", _make_users),
    ("ssh_authorized_keys", _add_keys),
    ("chpasswd", _set_passwords),
    ("write_files", _write_files),
    ("package_update", _update_packages),
    ("package_upgrade", _upgrade_packages),
    ("packages", _install_packages),
    ("runcmd", _run_commands),
)
# What a directive does is permitted where these methods are.
_METHODS = {
    "hostname": ("set_hostname",),
    "fqdn": ("set_hostname",),
    "timezone": ("set_time",),
    "users": ("user_create", "user_set_password", "ssh_key_add"),
    "ssh_authorized_keys": ("ssh_key_add",),
    "chpasswd": ("user_set_password",),
    "write_files": ("file_write",),
    "package_update": ("package_update",),
    "package_upgrade": ("package_update",),
    "packages": ("package_install",),
    "runcmd": ("exec_command",),
}
