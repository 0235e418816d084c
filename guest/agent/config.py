"""The agent's configuration (guest floor): an optional file, checked key by key.

A file with a fault stops the agent with one clear line: a wrong setting is never quietly replaced by a default.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PATH = "/etc/unhinged-agent/config.json"
_MAX_BYTES = 65536


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what is expected."""


def _number(low: float, high: float) -> "Callable[[object], str | None]":
    def check(value: object) -> "str | None":
        if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
            return "is not a number from %g to %g" % (low, high)
        return None

    return check


def _integer(low: int, high: int) -> "Callable[[object], str | None]":
    def check(value: object) -> "str | None":
        if type(value) is not int or not low <= value <= high:
            return "is not an integer from %d to %d" % (low, high)
        return None

    return check


def _path_or_null(value: object) -> "str | None":
    if value is None or (isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) < 4096):
        return None
    return "is neither an absolute path nor null"


def _argv_or_null(value: object) -> "str | None":
    if value is None:
        return None
    if isinstance(value, list) and value and all(isinstance(word, str) and "\0" not in word for word in value):
        return None
    return "is neither a list of strings (program and arguments) nor null"


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 64 and value.isascii() and value.isprintable()


def _name_or_null(value: object) -> "str | None":
    return None if value is None or _is_name(value) else "is neither a name of at most 64 characters nor null"


def _names(value: object) -> "str | None":
    if isinstance(value, list) and len(value) <= 256 and all(_is_name(name) for name in value):
        return None
    return "is not a list of at most 256 names of at most 64 characters"


def _names_or_null(value: object) -> "str | None":
    if value is None or _names(value) is None:
        return None
    return "is neither a list of at most 256 names of at most 64 characters nor null"


def _paths(value: object) -> "str | None":
    if isinstance(value, list) and len(value) <= 256 and all(path and not _path_or_null(path) for path in value):
        return None
    return "is not a list of at most 256 absolute paths"


def _paths_or_null(value: object) -> "str | None":
    return (
        None if value is None or _paths(value) is None else "is neither a list of at most 256 absolute paths nor null"
    )


# key: (default, check, whether `set configuration` may change it while the agent runs)
KEYS: "dict[str, tuple[Any, Callable[[object], str | None], bool]]" = {
    # seconds between heartbeats; 0 for none
    "heartbeat_s": (5, _number(0, 3600), True),
    # where message lines go; null for nowhere
    "console": ("/dev/console", _path_or_null, False),
    # where the shared directory is, or will be, mounted; null for none
    "share": ("/mnt/host", _path_or_null, False),
    # a FIFO into which services of the guest write `service NAME STATE` and `boot finished`; null for none
    "events": ("/run/unhinged-agent/events", _path_or_null, False),
    # how much of each output of a command is kept
    "exec_output_bytes": (262144, _integer(0, 524288), True),
    # how many commands run at the same time
    "exec_concurrent": (32, _integer(1, 256), True),
    # the time limit of a command whose caller gave none; 0 for none
    "exec_timeout_s": (0, _number(0, 86400), True),
    # the greatest time limit a command may have, and the one of a command that has none; 0 for none
    "exec_max_timeout_s": (0, _number(0, 86400), False),
    # a disk this full is nearly full, in percent; 0 says nothing of disks
    "disk_full_percent": (90, _integer(0, 100), True),
    # how to switch off and restart; null for the way that fits process 1
    "poweroff_command": (None, _argv_or_null, False),
    "reboot_command": (None, _argv_or_null, False),
    # methods that may be called, null for all of them, and methods that may not; `file_*` stands for many
    "method_allow": (None, _names_or_null, False),
    "method_deny": ([], _names, False),
    # programs that may be run, by the path at which they are found; null for all of them
    "command_allow": (None, _paths_or_null, False),
    # names in the environment that a call may set; null for any, or for harmless ones when command_allow is set
    "command_env": (None, _names_or_null, False),
    # below which directories files may be read and written, null for everywhere, and where neither
    "read_paths": (None, _paths_or_null, False),
    "write_paths": (None, _paths_or_null, False),
    "denied_paths": ([], _paths, False),
    # the user as whom commands run and files are touched; null for the agent's own
    "run_as": (None, _name_or_null, False),
    # calls a second in the long run, 0 for no limit, and at once
    "calls_per_second": (0, _number(0, 100000), False),
    "calls_burst": (100, _integer(1, 100000), False),
    # how much of a file goes into the line of a call or an answer
    "file_text_bytes": (262144, _integer(0, 524288), False),
    # how much one call may read or write, 0 for no limit, and how many entries of a tree
    "transfer_bytes": (0, _integer(0, 2**53), False),
    "transfer_entries": (0, _integer(0, 2**53), False),
    # how many run at the same time
    "transfers_concurrent": (16, _integer(1, 256), False),
    # how long one may take; 0 for no limit
    "transfer_timeout_s": (0, _number(0, 86400), False),
    # how many directories are watched at the same time
    "watch_directories": (1024, _integer(0, 8192), False),
    # where every call is written down, null for nowhere; how large the file becomes, and how many are kept
    "audit_log": (None, _path_or_null, False),
    "audit_log_bytes": (1048576, _integer(4096, 2**30), False),
    "audit_log_files": (4, _integer(1, 100), False),
}


def build_default() -> "dict[str, Any]":
    return {key: entry[0] for key, entry in KEYS.items()}


def find_fault(key: str, value: object) -> "str | None":
    """What is wrong with `value` for `key`; None when nothing is."""
    if key not in KEYS:
        return "is not a key of the configuration"
    return KEYS[key][1](value)


def _check_owner(path: str, seen: "os.stat_result") -> None:
    """Refuses rules that somebody else could change: they would be nobody's rules."""
    by_others = seen.st_mode & 0o002 or (seen.st_mode & 0o020 and seen.st_gid not in (0, os.getegid()))
    if by_others or seen.st_uid not in (0, os.geteuid()):
        raise ConfigError("%s can be changed by others than root and the user the agent runs as" % path)


def load(path: str, required: bool = False) -> "dict[str, Any]":
    """Reads the file over the defaults; a file that is not there changes nothing unless it is `required`.

    Raises:
        ConfigError: It cannot be read, others may write it, it is not an object of JSON, or a key or value is wrong.
    """
    config = build_default()
    try:
        with open(path, "rb", 0) as file:
            _check_owner(path, os.fstat(file.fileno()))
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError("%s does not exist" % path) from None
        return config
    except OSError as error:
        raise ConfigError("%s cannot be read: %s" % (path, error.strerror)) from None
    from . import wire

    if len(data) > _MAX_BYTES:
        raise ConfigError("%s has more than %d bytes" % (path, _MAX_BYTES))
    try:
        values = wire.decode(b" ".join(data.splitlines()))
    except wire.WireError as error:
        raise ConfigError("%s: %s" % (path, error)) from None
    if not isinstance(values, dict):
        raise ConfigError("%s does not hold an object" % path)
    for key, value in values.items():
        fault = find_fault(key, value)
        if fault is not None:
            raise ConfigError("%s: %s %s" % (path, key[:64], fault))
    config.update(values)
    return config
