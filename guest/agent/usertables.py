"""The tables of users (guest floor): `useradd` and its kin where they are, and the files themselves where they are not.

The built-in guest has no programs for accounts: busybox comes without them there. A password goes to a program on its
standard input, never as an argument, and into no message.
Source: passwd(5), group(5), shadow(5); useradd(8), usermod(8), userdel(8), chpasswd(8).
"""

import os

from . import dispatch, process, steps, textfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

_PASSWD, _GROUP, _SHADOW = "/etc/passwd", "/etc/group", "/etc/shadow"
_FIRST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz_")
_CHARACTERS = _FIRST_CHARACTERS | frozenset("0123456789-.")
# Source: crypt(5). A colon would begin the next field; `!` and `*` stand for no password.
_HASH_CHARACTERS = frozenset("./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz$=,!*-")
# Source: login.defs(5), UID_MIN and UID_MAX; SYS_UID_MIN and SYS_UID_MAX.
_UIDS = range(1000, 60000)
_SYSTEM_UIDS = range(100, 1000)


def is_name(name: object) -> bool:
    """Whether `name` can be a user or a group: what useradd of every distribution takes, and never an option."""
    return (
        isinstance(name, str) and 1 <= len(name) <= 32 and name[0] in _FIRST_CHARACTERS and _CHARACTERS.issuperset(name)
    )


class User:
    """One line of the table of users, and the groups besides its own."""

    __slots__ = ("comment", "gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, fields: "list[str]") -> None:
        self.name = fields[0]
        self.uid = int(fields[2])
        self.gid = int(fields[3])
        self.comment = fields[4]
        self.home = fields[5]
        self.shell = fields[6]
        self.groups: "list[str]" = []


def read_users() -> "dict[str, User]":
    """The users in the files of this guest by name; a line that is none is passed over."""
    users: "dict[str, User]" = {}
    for fields in _read_lines(_PASSWD):
        if len(fields) == 7 and fields[2].isdigit() and fields[3].isdigit():
            users.setdefault(fields[0], User(fields))
    for fields in _read_lines(_GROUP):
        if len(fields) == 4:
            for name in fields[3].split(","):
                if name in users:
                    users[name].groups.append(fields[0])
    return users


def get_user(name: str) -> User:
    """The user with this name.

    Raises:
        CallError: There is none.
    """
    user = read_users().get(name)
    if user is None:
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no user %s" % name)
    return user


def get_group(name: str) -> int:
    """The number of the group with this name.

    Raises:
        CallError: There is none.
    """
    groups = _read_groups()
    if name not in groups:
        raise dispatch.CallError(dispatch.NOT_FOUND, "there is no group %s" % name)
    return groups[name]


def create(name: str, wish: "dict[str, Any]") -> "Generator[Any, Any, User]":
    """Makes a user with a group of its own and, unless `create_home` is false, a home directory.

    Args:
        wish: `uid`, `groups`, `home`, `shell`, `comment`, `system`, `create_home`; all of them optional.

    Raises:
        CallError: The name or the number is taken, or a group is missing. Nothing has been made then.
    """
    users = read_users()
    if name in users or name in _read_groups():
        raise dispatch.CallError(dispatch.EXISTS, "there is a user or a group %s already" % name)
    if any(user.uid == wish.get("uid") for user in users.values()):
        raise dispatch.CallError(dispatch.EXISTS, "there is a user %d already" % wish["uid"])
    for group in wish.get("groups", []):
        get_group(group)
    if _has_program("useradd"):
        result = yield steps.Run(_build_useradd(name, wish))
        steps.check_success(result, "useradd")
    else:
        _add_lines(name, wish, users)
    return get_user(name)


def delete(name: str, remove_home: bool) -> "Generator[Any, Any, None]":
    """Removes a user, with `remove_home` its home directory too.

    Raises:
        CallError: There is no such user, it is root, or it is in use.
    """
    user = get_user(name)
    if user.uid == 0:
        raise dispatch.CallError(dispatch.NOT_PERMITTED, "%s is the superuser" % name)
    if _has_program("userdel"):
        result = yield steps.Run(["userdel", *(["--remove"] if remove_home else []), "--", name])
        # Source: userdel(8): 8 means that the user is logged in, 12 that the home directory could not be removed.
        if result.exit_code == 8:
            raise dispatch.CallError(dispatch.BUSY, "%s has processes that run" % name)
        steps.check_success(result, "userdel")
        return
    for path in (_PASSWD, _GROUP, _SHADOW):
        _change_lines(path, lambda fields: None if fields[0] == name else fields)
    _change_lines(_GROUP, lambda fields: _without_member(fields, name))
    if remove_home and _is_own_home(user):
        result = yield steps.Run(["rm", "-rf", "--", user.home])
        steps.check_success(result, "rm")


def set_password(name: str, password: str, hashed: bool = False) -> "Generator[Any, Any, None]":
    """Gives a user a password; `hashed` says that it is one as crypt(5) makes it.

    Raises:
        CallError: There is no such user, a hash is none, or the guest's own rules refuse the password.
    """
    get_user(name)
    if hashed and not _HASH_CHARACTERS.issuperset(password):
        raise dispatch.CallError(
            dispatch.INVALID_PARAMS, "password is not one as crypt(5) makes it", {"key": "password"}
        )
    if _has_program("chpasswd"):
        line = "%s:%s\n" % (name, password)
        result = yield steps.Run(["chpasswd", *(["--encrypted"] if hashed else [])], secret=line.encode())
        steps.check_success(result, "chpasswd")
        return
    if not hashed:
        # -P 0: the password comes on standard input. Source: busybox, mkpasswd --help.
        result = yield steps.Run(["mkpasswd", "-m", "sha512", "-P", "0"], secret=password.encode() + b"\n")
        steps.check_success(result, "mkpasswd")
        password = result.stdout.decode("ascii", "replace").strip()
    _store_hash(name, password)


def lock_password(name: str) -> "Generator[Any, Any, None]":
    """Lets nobody log in with the user's password any more; keys are not concerned.

    Raises:
        CallError: There is no such user.
    """
    get_user(name)
    if _has_program("usermod"):
        result = yield steps.Run(["usermod", "--lock", "--", name])
        steps.check_success(result, "usermod")
    else:
        stored = next((fields[1] for fields in _read_lines(_SHADOW) if fields[0] == name and len(fields) > 1), "")
        if not stored.startswith("!"):
            _store_hash(name, "!" + stored)


def add_to_groups(name: str, groups: "list[str]") -> "Generator[Any, Any, None]":
    """Makes a user a member of these groups as well.

    Raises:
        CallError: There is no such user or group.
    """
    get_user(name)
    for group in groups:
        get_group(group)
    if _has_program("usermod"):
        result = yield steps.Run(["usermod", "--append", "--groups", ",".join(groups), "--", name])
        steps.check_success(result, "usermod")
    else:
        _join(name, groups)


def _build_useradd(name: str, wish: "dict[str, Any]") -> "list[str]":
    argv = ["useradd", "--user-group", "--shell", wish.get("shell", "/bin/bash")]
    argv.append("--create-home" if wish.get("create_home", True) else "--no-create-home")
    if "uid" in wish:
        argv += ["--uid", str(wish["uid"])]
    if wish.get("groups"):
        argv += ["--groups", ",".join(wish["groups"])]
    if "home" in wish:
        argv += ["--home-dir", wish["home"]]
    if "comment" in wish:
        argv += ["--comment", wish["comment"]]
    if wish.get("system", False):
        argv.append("--system")
    return [*argv, "--", name]


def _has_program(name: str) -> bool:
    return process.find_program(name, process.build_environment()) is not None


# The files themselves, where nobody else writes them


def _add_lines(name: str, wish: "dict[str, Any]", users: "dict[str, User]") -> None:
    taken = {user.uid for user in users.values()} | set(_read_groups().values())
    uid = wish.get("uid")
    if uid is None:
        numbers = _SYSTEM_UIDS if wish.get("system", False) else _UIDS
        uid = next((number for number in numbers if number not in taken), None)
        if uid is None:
            raise dispatch.CallError(dispatch.FAILED, "there is no number left for a user")
    home = wish.get("home", "/home/" + name)
    shell = wish.get("shell", "/bin/sh")
    # `!` is no password: nobody can log in with one until there is one.
    _append(_SHADOW, "%s:!:%d:0:99999:7:::" % (name, _today()), 0o600)
    _append(_GROUP, "%s:x:%d:" % (name, uid))
    _append(_PASSWD, "%s:x:%d:%d:%s:%s:%s" % (name, uid, uid, wish.get("comment", ""), home, shell))
    _join(name, wish.get("groups", []))
    if wish.get("create_home", True):
        os.makedirs(os.path.dirname(home), 0o755, exist_ok=True)
        os.mkdir(home, 0o700)
        os.chown(home, uid, uid)


def _store_hash(name: str, password: str) -> None:
    if not any(fields[0] == name for fields in _read_lines(_SHADOW)):
        _append(_SHADOW, "%s:!:%d:0:99999:7:::" % (name, _today()), 0o600)
    _change_lines(_SHADOW, lambda fields: [name, password, *fields[2:]] if fields[0] == name else fields)
    _change_lines(_PASSWD, lambda fields: [name, "x", *fields[2:]] if fields[0] == name else fields)


def _join(name: str, groups: "list[str]") -> None:
    def join(fields: "list[str]") -> "list[str]":
        members = [member for member in fields[3].split(",") if member] if len(fields) == 4 else []
        if fields[0] not in groups or name in members:
            return fields
        return [*fields[:3], ",".join([*members, name])]

    if groups:
        _change_lines(_GROUP, join)


def _without_member(fields: "list[str]", name: str) -> "list[str]":
    if len(fields) != 4:
        return fields
    return [*fields[:3], ",".join(member for member in fields[3].split(",") if member != name)]


def _is_own_home(user: User) -> bool:
    """Whether the home directory is the user's, so that `/` or another's is never removed."""
    try:
        seen = os.lstat(user.home)
    except OSError:
        return False
    return seen.st_uid == user.uid and seen.st_mode & 0o170000 == 0o040000 and user.home.count("/") > 1


def _read_groups() -> "dict[str, int]":
    lines = _read_lines(_GROUP)
    return {fields[0]: int(fields[2]) for fields in lines if len(fields) == 4 and fields[2].isdigit()}


def _read_lines(path: str) -> "list[list[str]]":
    return [line.split(":") for line in textfile.read(path).splitlines() if line and line[0] not in "#+-"]


def _append(path: str, line: str, mode: int = 0o644) -> None:
    text = textfile.read(path)
    textfile.replace(path, text + ("" if not text or text.endswith("\n") else "\n") + line + "\n", mode)


def _change_lines(path: str, change: "Any") -> None:
    """Replaces each line by what `change(fields)` makes of it, None for nothing."""
    lines = []
    before = textfile.read(path)
    for line in before.splitlines():
        fields = change(line.split(":"))
        if fields is not None:
            lines.append(":".join(fields))
    after = "".join(line + "\n" for line in lines)
    if after != before:
        textfile.replace(path, after)


def _today() -> int:
    """Days since 1970, as shadow(5) counts them."""
    import time

    return int(time.time()) // 86400
